/// A linear layer whose weights exist only where they are kept: y = x W^T + b, W [out, in] in compressed storage.
#pragma once

#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>

#include "espalier/nn/activation.h"
#include "espalier/nn/compressed_layer.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::nn {

class SparseLinearImpl : public CompressedLayer {
 public:
  explicit SparseLinearImpl(const torch::nn::LinearOptions& options, at::ScalarType type = at::kFloat);
  SparseLinearImpl(std::int64_t in, std::int64_t out) : SparseLinearImpl(torch::nn::LinearOptions(in, out)) {}
  /// The entries of `dense` that are not zero, and its bias.
  static std::shared_ptr<SparseLinearImpl> from_dense(const torch::nn::LinearImpl& dense);

  /// [*, in] -> [*, out], for any LibTorch model, torch::nn::Sequential too.
  at::Tensor forward(const at::Tensor& x);
  /// Tiles stay tiles; [N, in] is converted, and the result handed on in tiles.
  Activation compute(const Activation& x, const ops::BesideRelu& relu = {});

  std::int64_t in_features() const { return weight()->shape()[1]; }
  std::int64_t out_features() const { return weight()->shape()[0]; }

 protected:
  std::shared_ptr<CompressedLayer> another() const override;
  std::string options_text() const override;
};
TORCH_MODULE(SparseLinear);

}  // namespace espalier::nn
