#include "espalier/methods/grasp.h"

#include "espalier/methods/saliency.h"

namespace espalier {

void Grasp::describe(Describe& d) {
  d("temperature", temperature_, "logits are divided by this before the loss", above(0));
  d("parts", parts_, "each batch is scored in so many parts, one after the other, for memory", at_least(1));
  PruneWithData::describe(d);
}

std::vector<at::Tensor> Grasp::survivors(const MethodContext& context) {
  std::vector<ProbeBatch> batches;
  for (const ProbeBatch& whole : draw(context))
    for (const ProbeBatch& part : split(whole, parts_)) batches.push_back(part);
  const auto scores = grasp_scores(*context.probe, names_of(context.weights), batches, temperature_);
  return select_highest(context.weights, scores, context.sparsity.sparsity, context.sparsity.distribution);
}

}  // namespace espalier
