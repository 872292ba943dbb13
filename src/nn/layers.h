// Layers on whatever comes: plain tensors go through torch, batch tiles stay batch tiles where the layer knows them.
// Private to nn/.
#pragma once

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <functional>
#include <memory>
#include <utility>

#include "espalier/nn/activation.h"
#include "espalier/ops/pool.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::nn {

/// A layer with a weight in either storage: the module to register, and what it computes.
struct WeightLayer {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Activation(const Activation&)> apply;
  /// The same, and x for its other use, as SparseConv2d::fork.
  std::function<std::pair<Activation, Activation>(const Activation&)> fork;
  /// The same and ReLUs beside it in one pass, where it is a sparse linear layer.
  std::function<Activation(const Activation&, const ops::BesideRelu&)> beside_relu;

  Activation operator()(const Activation& x) const { return apply(x); }
  explicit operator bool() const { return module != nullptr; }
};

WeightLayer weight_layer(const torch::nn::Conv2dOptions& options, bool compressed);
WeightLayer weight_layer(const torch::nn::LinearOptions& options, bool compressed);

/// What comes out of a dense convolution, converted at once if the next convolution is compressed: batch norm and sums
/// on the way then work in batch tiles.
Activation ahead_of(const WeightLayer& next, const Activation& x);

/// What `module` computes, its statistics updated as it does; in tiles max(0, .) of it in the same pass, where asked.
Activation batch_norm(torch::nn::BatchNorm1dImpl& module, const Activation& x, bool relu = false);
Activation batch_norm(torch::nn::BatchNorm2dImpl& module, const Activation& x, bool relu = false);

/// The same, and x for its other use in a residual block, whose gradient is summed up with this one on the way.
std::pair<Activation, Activation> batch_norm_fork(torch::nn::BatchNorm2dImpl& module, const Activation& x, bool relu);

/// max(0, batch_norm(module, y) + x), in images in one pass. Elsewhere the sum is written over the output of batch
/// norm.
Activation batch_norm_add_relu(torch::nn::BatchNorm2dImpl& module, const Activation& y, const Activation& x);

/// max(0, x), written over x: for a tensor that nobody else holds and that no backward pass needs.
Activation relu_over(const Activation& x);

/// y + x, and max(0, y + x), written over y, as above.
Activation add_over(const Activation& y, const Activation& x);
Activation add_relu_over(const Activation& y, const Activation& x);

Activation max_pool(const Activation& x, const ops::Pool& pool);
Activation average_pool(const Activation& x, const ops::Pool& pool);

/// The mean, and the largest, of each channel: vectors.
Activation global_average(const Activation& x);
Activation global_max(const Activation& x);

Activation flatten(const Activation& x);

}  // namespace espalier::nn
