#include "espalier/nn/loss.h"

#include "espalier/ops/cross_entropy.h"

namespace espalier::nn {

at::Tensor cross_entropy(const Activation& logits, const at::Tensor& labels, double smoothing, std::int64_t* correct) {
  if (!logits.is_tiled()) return ops::cross_entropy(logits.plain(), labels, smoothing, correct);
  return ops::cross_entropy(logits.data(), logits.tile_layout(), labels, smoothing, correct);
}

}  // namespace espalier::nn
