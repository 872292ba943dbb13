#include "espalier/methods/sparse_evolutionary.h"

#include <torch/torch.h>

#include <cmath>
#include <utility>

#include "espalier/core/random.h"

namespace espalier {
namespace {

std::int64_t share_of(std::int64_t n, double fraction) {
  return static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(n)));
}

}  // namespace

Selection drop_smallest(const SparseWeight& weight, double fraction) {
  const auto [active, weights] = weight.entries();
  return select_top(weights.abs_(), weights.numel() - share_of(weights.numel(), fraction), active);
}

Selection drop_by_sign(const SparseWeight& weight, double fraction) {
  const auto [active, w] = weight.entries();
  const at::Tensor positive = w.gt(0).nonzero().view({-1}), negative = w.lt(0).nonzero().view({-1});
  const auto kept_of = [&, w = w](const at::Tensor& side) {
    const std::int64_t n = side.numel();
    return side.index_select(0, select_top(w.index_select(0, side).abs(), n - share_of(n, fraction)).chosen);
  };
  at::Tensor stays = torch::zeros({w.numel()}, torch::kBool);
  stays.index_fill_(0, kept_of(positive), true);
  stays.index_fill_(0, kept_of(negative), true);
  const at::Tensor goes = stays.logical_not();
  const double threshold = goes.any().item<bool>() ? w.masked_select(goes).abs().max().item<double>() : 0;
  return {active.masked_select(stays), active.masked_select(goes), threshold};
}

Rewiring random_exchange(const SparseWeight& weight, Selection&& connections, const RandomStream& random) {
  const Selection s = std::move(connections);  // ends here: its lists are as long as the weight
  return {s.rest, random_outside(weight.numel(), s.chosen, s.rest.numel(), random), {}, s.threshold};
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
    const RandomStream random(context.seed, Purpose::topology, static_cast<std::uint64_t>(w->layer()),
                              static_cast<std::uint64_t>(context.clock.step));
    Rewiring exchange =
        random_exchange(*w, criterion_ == "sign" ? drop_by_sign(*w, fraction) : drop_smallest(*w, fraction), random);
    if (exchange.grow.numel() == 0) continue;
    exchange.birth_values = birth_.draw(*w, exchange.grow.numel(), context);
    w->rewire(exchange);
  }
}

}  // namespace espalier
