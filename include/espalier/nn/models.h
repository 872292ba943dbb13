/// The models of the program: by name, or written as a list of layers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "espalier/core/options.h"
#include "espalier/nn/network.h"

namespace espalier::nn {

/// Table [model] of a configuration.
struct ModelOptions {
  std::string name = "mlp";
  std::vector<std::int64_t> widths = {300, 100};
  std::vector<std::string> layers;
  std::string init = "default";
  double dropout = 0;
  std::int64_t max_weights = 0;
  std::string storage = "auto";
  void describe(Describe& d);
};

struct ModelInfo {
  std::string name;
  std::string description;
  std::string init;  ///< used where the options say "default"
};

/// Every name that make_model knows, in the order of the documentation.
std::vector<ModelInfo> known_models();

/// What `max_weights` makes of a model: 1, or the largest share of its hidden widths, each rounded and at least 1, with
/// which all its linear and convolutional weights together are no more than that. Throws Error(usage) if even widths of
/// 1 have more, and as make_model.
struct Thinning {
  double factor = 1;
  std::int64_t weights = 0;  ///< that the network has then, biases and normalisation apart; 0 where nothing was asked
};
Thinning thinning(const ModelOptions& options, const InputShape& input, std::int64_t classes);

/// The initializer that these options come to.
std::string initializer_of(const ModelOptions& options);

/// The images that a model is meant for: MNIST's, CIFAR's or ImageNet's.
InputShape meant_for(const std::string& model);

/// Is the weight of this layer ("fc1") to be held compressed?
using Compress = std::function<bool(const std::string& layer)>;

/// The model with the weights of `seed`, in training mode. Layers for which `compressed` says so are
/// SparseLinear and SparseConv2d; without it, all of them for options.storage = "compressed", else none. torch's
/// generators are left as they are. Throws Error(usage) for options, input or classes that do not fit together; all
/// mistakes in the spelling of a list of layers at once.
std::shared_ptr<Network> make_model(const ModelOptions& options, const InputShape& input, std::int64_t classes,
                                    std::uint64_t seed, const Compress& compressed = {});

}  // namespace espalier::nn
