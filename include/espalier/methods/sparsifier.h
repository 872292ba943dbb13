/// Wraps any torch optimiser so that a model trains sparse. The whole of a step stands in Sparsifier::step.
///
///   espalier::Sparsifier sparsifier(*net, espalier::make_method("gradual-magnitude"), espalier::Powerprop(1.5),
///                                   espalier::SparsifierOptions().sparsity(0.9).total_steps(2000));
///   torch::optim::SGD sgd(sparsifier.parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
///   for (auto& batch : loader) { loss(net, batch).backward(); sparsifier.step(sgd); }
///
/// Linear and Conv2d weights are sparsified, in masked storage, and those of nn::SparseLinear and nn::SparseConv2d,
/// which are compressed; biases and normalisation are left alone. Not thread-safe.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "espalier/methods/adaptive_alpha.h"
#include "espalier/methods/ever_active.h"
#include "espalier/methods/method.h"
#include "espalier/methods/optimizer_state.h"
#include "espalier/methods/probe.h"
#include "espalier/nn/reparametrisation.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// Where weight decay acts on reparametrised weights. An L2 penalty on phi is a penalty sum |w|^(2/alpha) on w (alpha =
/// 2: L1), so a comparison of reparametrisations has to say which. The two are one for the identity.
enum class DecaySpace { w, phi };

/// Weight decay on the sparsifiable weights, done by the Sparsifier because the optimiser's own would act on the tensor
/// it holds: phi for Update::gradient, w for Update::target. Give the optimiser weight_decay = 0 for
/// Sparsifier::weight_parameters() then.
struct WeightDecay {
  double rate = 0;
  DecaySpace space = DecaySpace::w;
  bool decoupled =
      false;  ///< AdamW's: multiply by (1 - lr rate) beside the step, instead of adding rate w to the gradient
};

struct SparsifierOptions {
  /// Positions of the first masks, by the names of weights, in place of random ones; every sparsified weight must be
  /// named.
  using Structure = std::map<std::string, at::Tensor>;
  TORCH_ARG(double, sparsity) = 0;
  TORCH_ARG(std::string, distribution) = "uniform";
  TORCH_ARG(std::vector<std::string>, dense_layers);
  TORCH_ARG(std::uint64_t, seed) = 1;
  TORCH_ARG(std::int64_t, total_steps) = 0;      ///< needed by methods whose durations are in per cent
  TORCH_ARG(std::int64_t, steps_per_epoch) = 0;  ///< needed by methods whose durations are in epochs
  TORCH_ARG(WeightDecay, weight_decay) = {};
  TORCH_ARG(std::shared_ptr<const Probe>, probe);  ///< needed by methods that look at the network before training
  TORCH_ARG(bool, restored) = false;  ///< `restore` follows: a method that is static does not draw its masks
  TORCH_ARG(Structure, structure);
  TORCH_ARG(std::optional<AdaptiveAlphaOptions>, adaptive_alpha) = std::nullopt;  ///< psi's alpha is where it begins
};

/// What a topology change did to one layer, and what it is like now.
struct LayerTopology {
  std::string name;
  std::int64_t nnz, dropped, grown;
  std::optional<double> threshold;
  /// Positions that have ever been active, of all; empty where they are not counted (EverActive).
  std::optional<std::int64_t> ever_active;
  std::int64_t positions;
  /// Units without a weight: outputs (rows) that nothing reaches, inputs (columns, or channels) that nothing leaves.
  std::int64_t dead_outputs, dead_inputs;
};

class Sparsifier {
 public:
  /// Takes over the weights of these layers of the model, which must outlive it. Draws the initial masks. Throws
  /// Error(usage) if the model has none, or the method cannot do what the options ask.
  Sparsifier(torch::nn::Module& model, std::unique_ptr<Method> method, const Reparametrisation& psi,
             const SparsifierOptions& options);

  /// What the optimiser is to be built over: for each weight its parameter, and every other parameter of the model.
  std::vector<at::Tensor> parameters() const;
  std::vector<at::Tensor> weight_parameters() const;  ///< of the sparsifiable weights alone
  std::vector<at::Tensor> other_parameters() const;   ///< biases, normalisation, …
  NamedParameters named_parameters() const;           ///< both, by their names in state_dict

  /// One step of the optimiser on the gradients that backward() has left: pull, optimise, settle, change the topology
  /// when due. Consumes the gradients: no zero_grad is needed.
  void step(torch::optim::Optimizer& optimizer);

  /// From the next step on.
  void set_weight_decay(const WeightDecay& decay) { decay_ = decay; }

  /// Where alpha adapts itself to the loss too (AdaptiveAlphaOptions::loss_tolerance): the loss of the step to come.
  void observe_loss(double loss);

  const Clock& clock() const { return context_.clock; }
  const std::vector<std::shared_ptr<SparseWeight>>& weights() const { return weights_; }
  const std::vector<SparseWeight*>& sparsified() const { return context_.weights; }  ///< without the dense_layers
  const Method& method() const { return *method_; }
  std::int64_t nnz() const;        ///< kept weights among the sparsified
  std::int64_t positions() const;  ///< all of them
  double sparsity() const;         ///< 1 - nnz / positions

  /// What the last step (or the preparation) changed, one entry for each sparsified layer; empty if nothing.
  std::vector<LayerTopology> take_topology();

  /// Whether alpha adapts itself, and what the last check (or the construction) saw and did; nothing if there was none
  /// since.
  bool adapts_alpha() const { return adaptive_.has_value(); }
  std::optional<AlphaTrace> take_alpha_trace();

  /// phi, masks, the step and what the method remembers; restored bit for bit.
  NamedTensors archive() const;
  void restore(const NamedTensors& tensors);

 private:
  /// Calls `act`, which may change topologies: optimiser state follows each change at once, topology_ becomes the
  /// record.
  void follow_changes(torch::optim::Optimizer* optimizer, const std::function<void()>& act);
  void update(torch::optim::Optimizer& optimizer);
  /// Alpha's control loop, where a check is due: phi and the optimiser's state move to the new coordinates, w does not.
  void adapt_alpha(torch::optim::Optimizer& optimizer);
  Clock next_step() const;
  void announce_next_step();
  void account(const SparseWeight& weight, std::optional<EverActive>& ever, LayerTopology& record) const;

  std::unique_ptr<Method> method_;
  WeightDecay decay_;
  std::vector<std::shared_ptr<SparseWeight>> weights_;
  NamedParameters others_;
  std::vector<at::Tensor> everything_;  // every tensor that may hold a gradient
  MethodContext context_;
  std::vector<LayerTopology> topology_;
  std::optional<AdaptiveAlpha> adaptive_;
  std::optional<AlphaTrace> alpha_trace_;
  bool optimizer_checked_ = false;
  std::vector<std::optional<EverActive>> ever_active_;  // of each sparsified weight, where it is counted
};

/// True if `name` matches a pattern with * (any run of characters) and ? (any one).
bool matches(const std::string& pattern, const std::string& name);

/// True if a pattern of [sparsity].dense_layers means the layer, by its own name ("fc1") or its weight's.
bool matches_layer(const std::string& pattern, const std::string& layer);
bool matches_layer(const std::vector<std::string>& patterns, const std::string& layer);

}  // namespace espalier
