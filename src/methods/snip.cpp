#include "espalier/methods/snip.h"

#include "espalier/methods/saliency.h"

namespace espalier {

std::vector<at::Tensor> Snip::survivors(const MethodContext& context) {
  const auto scores = snip_scores(*context.probe, names_of(context.weights), draw(context));
  return select_highest(context.weights, scores, context.sparsity.sparsity, context.sparsity.distribution);
}

}  // namespace espalier
