#include "espalier/methods/prune_at_init.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/reinit.h"
#include "espalier/methods/select.h"

namespace espalier {

std::vector<at::Tensor> select_highest(const std::vector<SparseWeight*>& weights, const std::vector<at::Tensor>& scores,
                                       double sparsity, const std::string& distribution) {
  ESPALIER_ASSERT(scores.size() == weights.size());
  std::int64_t positions = 0;
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> capacity;
  for (std::size_t l = 0; l < weights.size(); ++l) {
    positions += weights[l]->numel();
    shapes.push_back(weights[l]->shape());
    capacity.push_back(scores[l].numel());
  }
  const auto budgets = distribution == "global" ? select_top_counts(scores, kept_count(positions, sparsity))
                                                : allocate(shapes, capacity, sparsity, distribution);
  std::vector<at::Tensor> chosen;
  for (std::size_t l = 0; l < weights.size(); ++l) chosen.push_back(select_top(scores[l], budgets[l]).chosen);
  return chosen;
}

std::vector<std::string> names_of(const std::vector<SparseWeight*>& weights) {
  std::vector<std::string> names;
  for (const SparseWeight* w : weights) names.push_back(w->name());
  return names;
}

void PruneAtInit::describe(Describe& d) { reinit_.describe(d); }

void PruneAtInit::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.sparsity.sparsity > 0, ErrorKind::usage,
                 "pruning at initialisation needs [sparsity].sparsity above 0 (a network without zeros is method "
                 "\"dense\")");
}

void PruneAtInit::prepare(const MethodContext& context) {
  const auto kept = survivors(context);
  for (std::size_t l = 0; l < kept.size(); ++l) {
    SparseWeight& weight = *context.weights[l];
    weight.keep(kept[l]);
    reinit_.apply(weight, context);
  }
}

std::vector<at::Tensor> MagnitudeAtInit::survivors(const MethodContext& context) {
  std::vector<at::Tensor> scores;
  for (const SparseWeight* w : context.weights) scores.push_back(w->weights().abs());
  return select_highest(context.weights, scores, context.sparsity.sparsity, context.sparsity.distribution);
}

void PruneWithData::describe(Describe& d) {
  d("batches", batches_, "batches over which the gradient is taken", at_least(1));
  d("samples_per_class", samples_per_class_, "samples of each class in a batch; 0: a batch as in training",
    between(0, 1 << 20));
  PruneAtInit::describe(d);
}

void PruneWithData::check(const MethodContext& context) const {
  PruneAtInit::check(context);
  ESPALIER_CHECK(context.probe != nullptr && context.probe->network && context.probe->batch, ErrorKind::usage,
                 "this method looks at the network and at training data before the first step, and {} here; {}",
                 context.probe == nullptr ? "neither is known" : "no data is at hand",
                 "in a program, give SparsifierOptions::probe with a network and batches; phew, synflow, "
                 "magnitude-at-init and random need no data");
}

std::vector<ProbeBatch> PruneWithData::draw(const MethodContext& context) const {
  std::vector<ProbeBatch> batches;
  for (std::int64_t b = 0; b < batches_; ++b) batches.push_back(context.probe->batch(samples_per_class_, b));
  return batches;
}

}  // namespace espalier
