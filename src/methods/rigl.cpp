#include "espalier/methods/rigl.h"

#include <torch/torch.h>

#include <algorithm>

namespace espalier {

void RigL::describe(Describe& d) {
  d("fraction", fraction_, "alpha: share of its connections that each layer drops at a change, at the start",
    Range{0, 1, true, true});
  d("schedule", schedule_, "cosine: the fraction falls to zero at `end`; constant: it stays", {"cosine", "constant"});
  d("instead_of_update", instead_of_update_,
    "a change takes the place of the optimiser's update of that step, as in the paper; false: it comes after it");
  DropAndGrow::describe(d);
}

void RigL::change(const MethodContext& context) {
  const double fraction =
      schedule_ == "cosine" ? cosine_fraction(fraction_, context.clock.step, end_step(context.clock)) : fraction_;
  for (SparseWeight* w : context.weights) {
    const auto k = static_cast<std::int64_t>(fraction * static_cast<double>(w->nnz()));
    if (k == 0) continue;
    const auto [active, weights] = w->entries();
    const auto [kept, dropped, threshold] = select_top(weights.abs_(), w->nnz() - k, active);
    // What was dropped a moment ago may be taken again; it then keeps value and momentum, as if nothing had happened.
    const at::Tensor grown = w->top_gradients(k, kept);
    const at::Tensor leave = without(dropped, grown), enter = without(grown, dropped);
    if (leave.numel() == 0) continue;
    w->rewire({leave, enter, birth_.draw(*w, enter.numel(), context), threshold});
  }
}

}  // namespace espalier
