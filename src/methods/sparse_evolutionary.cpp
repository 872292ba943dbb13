#include "espalier/methods/sparse_evolutionary.h"

#include <torch/torch.h>

#include <cmath>

#include "espalier/core/random.h"

namespace espalier {
namespace {

std::int64_t share_of(std::int64_t n, double fraction) {
  return static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(n)));
}

}  // namespace

Selection drop_smallest(const SparseWeight& weight, double fraction) {
  return select_top(weight.weights().abs(), weight.nnz() - share_of(weight.nnz(), fraction));
}

Selection drop_by_sign(const SparseWeight& weight, double fraction) {
  const at::Tensor w = weight.weights();
  const at::Tensor positive = w.gt(0).nonzero().view({-1}), negative = w.lt(0).nonzero().view({-1});
  const auto kept_of = [&](const at::Tensor& side) {
    const std::int64_t n = side.numel();
    return side.index_select(0, select_top(w.index_select(0, side).abs(), n - share_of(n, fraction)).chosen);
  };
  at::Tensor stays = torch::zeros({w.numel()}, torch::kBool);
  stays.index_fill_(0, kept_of(positive), true);
  stays.index_fill_(0, kept_of(negative), true);
  Selection s{stays.nonzero().view({-1}), stays.logical_not().nonzero().view({-1}), 0};
  if (s.rest.numel() > 0) s.threshold = w.index_select(0, s.rest).abs().max().item<double>();
  return s;
}

void SparseEvolutionary::describe(Describe& d) {
  d("fraction", fraction_, "share of its connections that each layer drops and grows again at a change",
    Range{0, 1, true, true});
  d("schedule", schedule_, "constant: the fraction stays; cosine: it falls to zero at `end`", {"constant", "cosine"});
  d("criterion", criterion_,
    "magnitude: the smallest |w| go; sign: the smallest positive and the largest negative w, as in the first paper",
    {"magnitude", "sign"});
  DropAndGrow::describe(d);
}

void SparseEvolutionary::change(const MethodContext& context) {
  const double fraction =
      schedule_ == "cosine" ? cosine_fraction(fraction_, context.clock.step, end_step(context.clock)) : fraction_;
  for (SparseWeight* w : context.weights) {
    const Selection s = criterion_ == "sign" ? drop_by_sign(*w, fraction) : drop_smallest(*w, fraction);
    const std::int64_t count = s.rest.numel();
    if (count == 0) continue;
    const at::Tensor active = w->active();
    const RandomStream random(context.seed, Purpose::topology, static_cast<std::uint64_t>(w->layer()),
                              static_cast<std::uint64_t>(context.clock.step));
    // A position that was dropped a moment ago may be drawn again.
    const at::Tensor grow = random_outside(w->numel(), active.index_select(0, s.chosen), count, random);
    w->rewire({active.index_select(0, s.rest), grow, birth_.draw(*w, count, context), s.threshold});
  }
}

}  // namespace espalier
