/// What layers with a weight in compressed storage have in common.
#pragma once

#include <torch/nn/module.h>

#include <memory>

#include "espalier/nn/compressed_weight.h"

namespace espalier::nn {

/// Parameters: `values` [nnz], the kept weights in the canonical order of kernels/compressed.h, and `bias` [out].
/// Starts as torch's dense layer does, uniform within sqrt(1 / fan_in) by torch's default generator, with every
/// position active and none stored: give it to a Sparsifier, or set entries with `from_dense` or `weight().keep(…)`.
class CompressedLayer : public torch::nn::Module {
 public:
  at::Tensor to_dense() const { return weight_->to_dense(); }
  const std::shared_ptr<CompressedWeight>& weight() const { return weight_; }

  /// torch::save and torch::load, of the layer or of a network that has it: "crow_indices", "col_indices" and "values",
  /// w row by row (CSR), and "bias". The canonical order is this machine's own: an optimiser's state, which stands in
  /// it, goes by `save_optimizer` (methods/optimizer_state.h).
  void save(torch::serialize::OutputArchive& archive) const override;
  /// The entries become those of the archive. Also takes a dense "weight", of which it keeps what is not zero. Throws
  /// Error(data), and changes nothing, for an archive of something else.
  void load(torch::serialize::InputArchive& archive) override;

  at::Tensor bias;  ///< [out], or undefined

 protected:
  CompressedLayer(const char* kind, std::shared_ptr<CompressedWeight> weight, bool with_bias);

 private:
  std::shared_ptr<CompressedWeight> weight_;
};

}  // namespace espalier::nn
