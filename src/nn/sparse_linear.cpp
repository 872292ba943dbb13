#include "espalier/nn/sparse_linear.h"

#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::nn {

SparseLinearImpl::SparseLinearImpl(const torch::nn::LinearOptions& options, at::ScalarType type)
    : torch::nn::Module("SparseLinear"),
      weight_(std::make_shared<CompressedWeight>(
          "weight", std::vector<std::int64_t>{options.out_features(), options.in_features()}, type)) {
  // The parameter keeps its TensorImpl while entries come and go.
  register_parameter("values", weight_->parameter());
  if (options.bias()) bias = register_parameter("bias", torch::zeros({options.out_features()}, type));
}

std::shared_ptr<SparseLinearImpl> SparseLinearImpl::from_dense(const torch::nn::LinearImpl& dense) {
  const torch::NoGradGuard no_grad;
  const auto options = torch::nn::LinearOptions(dense.weight.size(1), dense.weight.size(0)).bias(dense.bias.defined());
  auto layer = std::make_shared<SparseLinearImpl>(options, dense.weight.scalar_type());
  layer->weight_->from_dense(dense.weight);
  if (dense.bias.defined()) layer->bias.copy_(dense.bias);
  return layer;
}

Activation SparseLinearImpl::forward(const Activation& x) {
  const Activation in = x.tiled();
  // First the structure: values of a layer that nobody made sparse are only drawn now.
  const auto matrix = weight_->matrix();
  at::Tensor y = ops::sparse_linear(in.data(), in.tile_layout(), matrix, weight_->stored_values(),
                                    weight_->forward_values(), bias);
  return {std::move(y), ops::TileLayout{in.tile_layout().samples, out_features()}};
}

}  // namespace espalier::nn
