/// A linear layer whose weights exist only where they are kept: y = x W^T + b, W [out, in] in compressed storage.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>

#include "espalier/nn/activation.h"
#include "espalier/nn/compressed_weight.h"

namespace espalier::nn {

/// Parameters: `values` [nnz], the kept weights in the canonical order of kernels/compressed.h, and `bias` [out].
/// Indices travel with `save` and `load` of SparseWeight (archive, restore), not with torch's archives. Starts with
/// every position active; give it to a Sparsifier, or set entries with `from_dense` or `weight().keep(…)`.
class SparseLinearImpl : public torch::nn::Module {
 public:
  explicit SparseLinearImpl(const torch::nn::LinearOptions& options, at::ScalarType type = at::kFloat);
  SparseLinearImpl(std::int64_t in, std::int64_t out) : SparseLinearImpl(torch::nn::LinearOptions(in, out)) {}
  /// The entries of `dense` that are not zero, and its bias.
  static std::shared_ptr<SparseLinearImpl> from_dense(const torch::nn::LinearImpl& dense);

  /// Tiles stay tiles; [N, in] is converted, and the result handed on in tiles.
  Activation forward(const Activation& x);
  /// For somebody's plain LibTorch model: [N, in] -> [N, out].
  at::Tensor forward(const at::Tensor& x) { return forward(Activation(x)).plain(); }

  at::Tensor to_dense() const { return weight_->to_dense(); }
  const std::shared_ptr<CompressedWeight>& weight() const { return weight_; }
  std::int64_t in_features() const { return weight_->shape()[1]; }
  std::int64_t out_features() const { return weight_->shape()[0]; }

  at::Tensor bias;  ///< [out], or undefined

 private:
  std::shared_ptr<CompressedWeight> weight_;
};
TORCH_MODULE(SparseLinear);

}  // namespace espalier::nn
