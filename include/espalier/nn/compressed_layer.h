/// What layers with a weight in compressed storage have in common.
#pragma once

#include <torch/nn/module.h>

#include <memory>

#include "espalier/nn/compressed_weight.h"

namespace espalier::nn {

/// Parameters: `values` [nnz], the kept weights in the canonical order of kernels/compressed.h, and `bias` [out].
/// Indices travel with `save` and `load` of SparseWeight (archive, restore), not with torch's archives. Starts with
/// every position active; give it to a Sparsifier, or set entries with `from_dense` or `weight().keep(…)`.
class CompressedLayer : public torch::nn::Module {
 public:
  at::Tensor to_dense() const { return weight_->to_dense(); }
  const std::shared_ptr<CompressedWeight>& weight() const { return weight_; }

  at::Tensor bias;  ///< [out], or undefined

 protected:
  CompressedLayer(const char* kind, std::shared_ptr<CompressedWeight> weight, bool with_bias);

 private:
  std::shared_ptr<CompressedWeight> weight_;
};

}  // namespace espalier::nn
