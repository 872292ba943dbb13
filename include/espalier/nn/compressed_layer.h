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

  /// A layer of its own with the same entries and bias. What a Sparsifier does for this one it does not do for that.
  std::shared_ptr<torch::nn::Module> clone(const c10::optional<at::Device>& device = c10::nullopt) const override;
  /// As torch's layers, and how many weights are kept.
  void pretty_print(std::ostream& stream) const override;

 protected:
  virtual std::shared_ptr<CompressedLayer> another() const = 0;  ///< of the same shape, with entries of its own
  virtual std::string options_text() const = 0;                  ///< "in_features=8, out_features=3"
  CompressedLayer(const char* kind, std::shared_ptr<CompressedWeight> weight, bool with_bias);

 private:
  std::shared_ptr<CompressedWeight> weight_;
};

}  // namespace espalier::nn
