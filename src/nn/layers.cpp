#include "nn/layers.h"

#include <torch/torch.h>

#include "espalier/nn/sparse_conv.h"
#include "espalier/nn/sparse_linear.h"
#include "espalier/ops/batch_norm.h"
#include "espalier/ops/relu.h"

namespace espalier::nn {
namespace {

/// The arguments that a module of torch hands to torch::batch_norm, after counting the batch.
template <class Module>
ops::BatchNorm arguments_of(Module& module) {
  const bool tracks = module.options.track_running_stats();
  ops::BatchNorm norm;
  norm.weight = module.weight;
  norm.bias = module.bias;
  norm.running_mean = module.running_mean;
  norm.running_var = module.running_var;
  norm.training = module.is_training() || !tracks;
  norm.eps = module.options.eps();
  norm.momentum = module.options.momentum().value_or(0);
  if (module.is_training() && tracks && module.num_batches_tracked.defined()) {
    module.num_batches_tracked += 1;
    // Without a momentum, the mean over all batches.
    if (!module.options.momentum()) norm.momentum = 1 / module.num_batches_tracked.template item<double>();
  }
  return norm;
}

template <class Module>
Activation normalised(Module& module, const Activation& x, bool relu) {
  if (x.is_images()) {
    return {ops::batch_norm(x.data(), x.image_layout(), arguments_of(module), relu), x.image_layout()};
  }
  if (x.is_tiled()) return {ops::batch_norm(x.data(), x.tile_layout(), arguments_of(module), relu), x.tile_layout()};
  const at::Tensor y = module.forward(x.data());
  return relu ? ops::relu_over(y) : y;
}

Activation sum(const Activation& y, const Activation& x, bool relu) {
  if (!y.is_images() && !x.is_images()) {
    const at::Tensor total = y.plain().add_(x.plain());
    return relu ? ops::relu_over(total) : total;
  }
  const Activation a = y.images(0), b = x.images(0);
  ops::ImageLayout layout = a.image_layout();
  layout.halo = std::max(layout.halo, b.image_layout().halo);
  return {ops::add_over(a.data(), a.image_layout(), b.data(), b.image_layout(), relu), layout};
}

/// The module keeps itself alive where it is registered; a plain one gives and takes plain tensors.
template <class Dense, class Sparse, class Options>
WeightLayer made(const Options& options, bool compressed) {
  WeightLayer layer;
  if (compressed) {
    const auto sparse = std::make_shared<Sparse>(options);
    layer = {sparse, [impl = sparse.get()](const Activation& x) { return impl->compute(x); }, {}, {}};
    if constexpr (std::is_same_v<Sparse, SparseConv2dImpl>) {
      layer.fork = [impl = sparse.get()](const Activation& x) { return impl->fork(x); };
    } else {
      layer.beside_relu = [impl = sparse.get()](const Activation& x, const ops::BesideRelu& relu) {
        return impl->compute(x, relu);
      };
    }
  } else {
    const auto dense = std::make_shared<Dense>(options);
    layer = {dense, [impl = dense.get()](const Activation& x) { return Activation(impl->forward(x.plain())); }, {}, {}};
  }
  if (!layer.fork) layer.fork = [apply = layer.apply](const Activation& x) { return std::pair{apply(x), x}; };
  return layer;
}

}  // namespace

WeightLayer weight_layer(const torch::nn::Conv2dOptions& options, bool compressed) {
  return made<torch::nn::Conv2dImpl, SparseConv2dImpl>(options, compressed);
}
WeightLayer weight_layer(const torch::nn::LinearOptions& options, bool compressed) {
  return made<torch::nn::LinearImpl, SparseLinearImpl>(options, compressed);
}

Activation ahead_of(const WeightLayer& next, const Activation& x) {
  const auto conv = std::dynamic_pointer_cast<SparseConv2dImpl>(next.module);
  if (conv == nullptr || x.is_images() || SparseConv2dImpl::takes_alone(x)) return x;
  return x.images(std::max<std::int64_t>(1, ops::conv_halo(conv->shape())));  // 1x1: others follow
}

Activation batch_norm(torch::nn::BatchNorm1dImpl& module, const Activation& x, bool relu) {
  return normalised(module, x, relu);
}
Activation batch_norm(torch::nn::BatchNorm2dImpl& module, const Activation& x, bool relu) {
  return normalised(module, x, relu);
}

std::pair<Activation, Activation> batch_norm_fork(torch::nn::BatchNorm2dImpl& module, const Activation& x, bool relu) {
  if (!x.is_images()) return {normalised(module, x, relu), x};
  const ops::ImageLayout& layout = x.image_layout();
  auto [y, same] = ops::batch_norm_fork(x.data(), layout, arguments_of(module), relu);
  return {{std::move(y), layout}, {std::move(same), layout}};
}

Activation batch_norm_add_relu(torch::nn::BatchNorm2dImpl& module, const Activation& y, const Activation& x) {
  if (!y.is_images()) return sum(normalised(module, y, false), x, true);
  const Activation b = x.images(y.image_layout().halo);
  if (b.image_layout().halo > y.image_layout().halo) return sum(normalised(module, y, false), x, true);
  return {ops::batch_norm_add(y.data(), b.data(), y.image_layout(), arguments_of(module), true), y.image_layout()};
}

Activation relu_over(const Activation& x) {
  return x.map([](const at::Tensor& data) { return ops::relu_over(data); });
}

Activation add_over(const Activation& y, const Activation& x) { return sum(y, x, false); }
Activation add_relu_over(const Activation& y, const Activation& x) { return sum(y, x, true); }

Activation max_pool(const Activation& x, const ops::Pool& pool) {
  if (!x.is_images()) return torch::max_pool2d(x.plain(), pool.kernel, pool.stride, pool.padding);
  return {ops::max_pool(x.data(), x.image_layout(), pool), ops::pooled(x.image_layout(), pool)};
}

Activation average_pool(const Activation& x, const ops::Pool& pool) {
  if (!x.is_images()) return torch::avg_pool2d(x.plain(), pool.kernel, pool.stride, pool.padding);
  return {ops::average_pool(x.data(), x.image_layout(), pool), ops::pooled(x.image_layout(), pool)};
}

Activation global_average(const Activation& x) {
  if (!x.is_images()) return x.plain().mean({2, 3});
  const ops::ImageLayout& layout = x.image_layout();
  return {ops::global_average(x.data(), layout), ops::TileLayout{layout.samples, layout.channels}};
}

Activation global_max(const Activation& x) {
  if (!x.is_images()) return x.plain().amax({2, 3});
  const ops::ImageLayout& layout = x.image_layout();
  return {ops::global_max(x.data(), layout), ops::TileLayout{layout.samples, layout.channels}};
}

Activation flatten(const Activation& x) {
  if (x.is_images()) return {ops::flatten(x.data(), x.image_layout()), x.image_layout().flat()};
  if (x.is_tiled()) return x;
  return x.plain().flatten(1);
}

}  // namespace espalier::nn
