#include "espalier/methods/top_kast.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/select.h"

namespace espalier {
namespace {

/// How many each layer gets when `sparsity` is left of all, by the distribution or, globally, by rank.
std::vector<std::int64_t> budgets(const MethodContext& context, const std::vector<at::Tensor>& score, double sparsity) {
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> sizes;
  std::int64_t positions = 0;
  for (const SparseWeight* w : context.weights) {
    shapes.push_back(w->shape());
    sizes.push_back(w->numel());
    positions += w->numel();
  }
  if (context.sparsity.distribution == "global") return select_top_counts(score, kept_count(positions, sparsity));
  return allocate(shapes, sizes, sparsity, context.sparsity.distribution);
}

}  // namespace

void TopKast::describe(Describe& d) {
  d("exploration", exploration_,
    "M: the density D + M of the weights that learn, less the density D of those that compute", from_up_to(0, 1));
  d("penalty", penalty_, "lambda: lambda/2 |theta|^2 on A and lambda/(2 D) |theta|^2 on B without A", at_least(0));
  d("every", every_, "distance between choices of A and B");
  d("explore_until", explore_until_, "from here on B = A, and neither changes");
}

void TopKast::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.sparsity.sparsity > 0, ErrorKind::usage,
                 "method top-kast needs [sparsity].sparsity above 0 (a network without zeros is method \"dense\")");
  ESPALIER_CHECK(exploration_ <= context.sparsity.sparsity, ErrorKind::usage,
                 "[method].exploration = {} on top of a density of {} is more than the whole network; lower it",
                 exploration_, 1 - context.sparsity.sparsity);
  ESPALIER_CHECK(every_.in_steps(context.clock) >= 1, ErrorKind::usage, "[method].every = \"{}\" is less than one step",
                 every_.text());
  for (const SparseWeight* w : context.weights) {
    const Reparametrisation& psi = w->reparametrisation();
    ESPALIER_CHECK(psi.is_identity() || psi.update() == Update::gradient, ErrorKind::usage,
                   "method top-kast updates values that the layers do not see; [reparam].update = \"target\" steps in "
                   "what they see. Use \"gradient\"");
  }
  explores(context.clock);  // throws where the clock lacks what the duration needs
}

bool TopKast::explores(const Clock& clock) const {
  if (clock.total_steps == 0 && explore_until_ == Duration::percent(100)) return true;
  return clock.step < explore_until_.in_steps(clock);
}

void TopKast::choose(const MethodContext& context) const {
  std::vector<at::Tensor> score;
  const auto alpha = [](const SparseWeight* w) { return w->reparametrisation().alpha(); };
  const bool one_alpha = std::all_of(context.weights.begin(), context.weights.end(),
                                     [&](const SparseWeight* w) { return alpha(w) == alpha(context.weights.front()); });
  for (const SparseWeight* w : context.weights) {
    const at::Tensor phi = w->all_values().reshape({-1});
    // |phi| ranks as |w| does, over the network too as long as all layers have one alpha.
    score.push_back(one_alpha ? phi.abs() : w->reparametrisation().psi(phi.to(torch::kDouble)).abs());
  }
  const double forward = context.sparsity.sparsity,
               backward = explores(context.clock) ? forward - exploration_ : forward;
  const auto a = budgets(context, score, forward), b = budgets(context, score, backward);
  for (std::size_t l = 0; l < score.size(); ++l) {
    context.weights[l]->set_masks(select_top(score[l], a[l]).chosen, select_top(score[l], std::max(a[l], b[l])).chosen);
  }
}

void TopKast::before_update(const MethodContext& context) {
  if (penalty_ == 0) return;
  for (SparseWeight* w : context.weights) w->add_penalty(penalty_, penalty_ / (1 - context.sparsity.sparsity));
}

void TopKast::after_step(const MethodContext& context) {
  const std::int64_t step = context.clock.step, every = every_.in_steps(context.clock);
  Clock before = context.clock;
  --before.step;
  const bool ends = explores(before) && !explores(context.clock);
  if (ends || (explores(context.clock) && step % every == 0)) choose(context);
}

}  // namespace espalier
