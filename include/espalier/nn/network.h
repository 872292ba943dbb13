/// A classifier whose layers can be watched: what the trainer trains, and what counting and diagnosis look into.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "espalier/nn/activation.h"
#include "espalier/nn/compressed_weight.h"
#include "espalier/nn/wiring.h"

namespace espalier::nn {

/// One image: channels x height x width.
struct InputShape {
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::string text() const;  ///< "3x32x32"
  bool operator==(const InputShape& o) const {
    return channels == o.channels && height == o.height && width == o.width;
  }
};

/// Logits [N, classes] from images [N, C, H, W].
class Network : public torch::nn::Module {
 public:
  /// Called with a layer's dotted name (a weight layer "x" owns the parameter "x.weight") and its output, in the order
  /// of computation. The next layer may overwrite the output in place (ReLU): clone it to keep it.
  using Observer = std::function<void(const std::string& layer, const torch::Tensor& output)>;

  /// Hands outputs to the observer, if there is one, under the names of the module that computes.
  class Trace {
   public:
    Trace() = default;
    explicit Trace(const Observer& observer) : observer_(&observer) {}

    /// Then every layer hands over what it computes alone, and nothing is fused.
    bool observed() const { return observer_ != nullptr; }

    template <class Name>
    torch::Tensor operator()(const Name& layer, torch::Tensor output) const {
      if (observer_ != nullptr) (*observer_)(prefix_ + layer, output);
      return output;
    }
    template <class Name>
    Activation operator()(const Name& layer, Activation output) const {
      if (observer_ != nullptr) (*observer_)(prefix_ + layer, output.plain());
      return output;
    }
    /// For a submodule: its layers are named below it.
    template <class Name>
    Trace inside(const Name& submodule) const {
      Trace inner;
      inner.observer_ = observer_;
      if (observer_ != nullptr) inner.prefix_ = prefix_ + submodule + ".";
      return inner;
    }

   private:
    const Observer* observer_ = nullptr;
    std::string prefix_;
  };

  /// Throws Error(usage) unless images is [N, C, H, W] of input_shape().
  torch::Tensor forward(const torch::Tensor& images);
  torch::Tensor forward(const torch::Tensor& images, const Observer& observer);
  /// The same as the last layer leaves them, in batch tiles where that is sparse: nn::cross_entropy (loss.h) takes them
  /// so, which spares two of the four conversions of a training step.
  Activation logits(const torch::Tensor& images);

  InputShape input_shape() const { return input_; }
  std::int64_t classes() const { return classes_; }
  /// Its weight layers one after the other, in the order of registration; a network with branches says otherwise.
  virtual Wiring wiring() const;

 protected:
  Network(InputShape input, std::int64_t classes) : input_(input), classes_(classes) {}
  /// The logits. Hands every layer's output to `trace`: `x = trace("conv1", conv1->forward(x));`
  virtual Activation compute(const torch::Tensor& images, const Trace& trace) = 0;

 private:
  InputShape input_;
  std::int64_t classes_;
};

/// Every parameter but the entries of compressed weights, whose shape and order mean nothing without their index.
std::vector<std::pair<std::string, torch::Tensor>> plain_parameters(const torch::nn::Module& network);

std::vector<std::shared_ptr<CompressedWeight>> compressed_weights(const torch::nn::Module& network);

/// What a weight layer costs when it is dense.
struct LayerCost {
  std::string name;                        ///< of the module: its weight is the parameter <name>.weight
  std::string kind;                        ///< "linear" or "conv2d"
  std::vector<std::int64_t> weight_shape;  ///< [out, in] or [out, in / groups, kh, kw]
  std::int64_t weights = 0;                ///< entries of the weight, without the bias
  std::int64_t macs = 0;                   ///< multiply-accumulates of one sample, without the bias
  std::vector<std::int64_t> output_shape;  ///< of one sample
};

/// The weight layers in the order of computation, measured by one observed forward in evaluation mode: batch-norm
/// statistics, training flags and random generators stay as they are. Not to be called while another thread trains
/// `network`.
std::vector<LayerCost> layer_costs(Network& network);

}  // namespace espalier::nn
