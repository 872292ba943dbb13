#include "espalier/methods/synflow.h"

#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/flow.h"

namespace espalier {

double synflow_kept(double rho, std::int64_t round, std::int64_t rounds, const std::string& schedule) {
  if (round >= rounds) return rho;
  const double t = static_cast<double>(round) / static_cast<double>(rounds);
  return schedule == "linear" ? 1 - (1 - rho) * t : std::pow(rho, t);
}

void SynFlow::describe(Describe& d) {
  d("rounds", rounds_, "scorings, each followed by a pruning", at_least(1));
  d("schedule", schedule_, "shares kept after each round: rho^(e/n) or 1 - (1 - rho) e/n", {"exponential", "linear"});
  PruneAtInit::describe(d);
}

void SynFlow::check(const MethodContext& context) const {
  PruneAtInit::check(context);
  ESPALIER_CHECK(context.probe != nullptr && context.probe->network, ErrorKind::usage,
                 "synflow looks at what flows through the network before the first step, and the network is not known "
                 "as a function here; give SparsifierOptions::probe");
}

std::vector<at::Tensor> SynFlow::survivors(const MethodContext& context) {
  FlowNetwork network(*context.probe, names_of(context.weights), /*biases=*/false, power_);
  for (const SparseWeight* w : context.dense_weights) network.set(w->name(), magnitude(*w, power_));
  std::vector<at::Tensor> dense, magnitudes, kept;  // |w|^p; the same where kept; positions
  for (const SparseWeight* w : context.weights) {
    dense.push_back(magnitude(*w, power_).flatten());
    magnitudes.push_back(dense.back().view(w->shape()));
    kept.push_back(w->active());
  }
  const double rho = 1 - context.sparsity.sparsity;
  for (std::int64_t round = 1; round <= rounds_; ++round) {
    const PathFlow flow = network(magnitudes);
    std::vector<at::Tensor> scores;
    for (std::size_t l = 0; l < kept.size(); ++l) {
      scores.push_back((magnitudes[l] * flow.gradients[l]).flatten().index_select(0, kept[l]));
    }
    const double sparsity =
        round == rounds_ ? context.sparsity.sparsity : 1 - synflow_kept(rho, round, rounds_, schedule_);
    const auto chosen = select_highest(context.weights, scores, sparsity, context.sparsity.distribution);
    for (std::size_t l = 0; l < kept.size(); ++l) {
      kept[l] = kept[l].index_select(0, chosen[l]);
      at::Tensor masked = torch::zeros_like(dense[l]);
      masked.index_copy_(0, kept[l], dense[l].index_select(0, kept[l]));
      magnitudes[l] = masked.view(context.weights[l]->shape());
    }
  }
  return kept;
}

}  // namespace espalier
