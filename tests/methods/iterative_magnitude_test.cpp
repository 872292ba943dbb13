// `iterative-magnitude` with rewinding.
#include "espalier/core/error.h"
#include "espalier/methods/magnitude.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

IterativeMagnitude rewinding(const char* to) {
  IterativeMagnitude method;
  for (auto& option : describe(method)) {
    if (option.name == "rewind") **std::get_if<bool*>(&option.value) = true;
    if (option.name == "rewind_to") **std::get_if<Duration*>(&option.value) = Duration::parse(to);
    if (option.name == "rounds") **std::get_if<std::int64_t*>(&option.value) = 2;
  }
  return method;
}

// Eight weights, two rounds to two of them: 8, 4, 2. Prunings at 20 % and 80 % of 100 steps.
TEST(IterativeMagnitude, WhatIsLeftGoesBackToWhereItWas) {
  for (const bool compressed : {false, true}) {
    for (const double alpha : {1.0, 2.0}) {
      const auto w =
          weight_of(compressed, torch::tensor({1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f, 8.f}).view({2, 4}), Powerprop(alpha));
      IterativeMagnitude method = rewinding("0it");
      MethodContext context{{w.get()}, {0, 100, 10}, 1, {0.75, "uniform", {}}};
      method.check(context);
      method.prepare(context);
      const at::Tensor start = w->values().clone();
      at::Tensor state = compressed ? torch::ones({8}) : torch::ones({2, 4});
      w->follow([&](const TopologyChange& change) { w->reindex_state(state, change); });
      test::set_values(*w, torch::tensor({8.f, -7.f, 1.f, 1.f, -1.f, 1.f, 6.f, 5.f}));
      context.clock.step = 20;
      method.after_step(context);
      EXPECT_EQ(numbers(w->active()), (Numbers{0, 1, 6, 7}));
      EXPECT_TRUE(torch::equal(w->values(), start.index_select(0, w->active())));
      IterativeMagnitude again = rewinding("0it");
      again.restore(method.archive());
      test::set_values(*w, torch::tensor({1.f, 9.f, 2.f, 5.f}));
      context.clock.step = 80;
      again.after_step(context);
      EXPECT_EQ(numbers(w->active()), (Numbers{1, 7}));
      EXPECT_TRUE(torch::equal(w->values(), start.index_select(0, w->active())));
      // Moments go too.
      if (!compressed) state = state.view({-1}).index_select(0, w->active());
      EXPECT_EQ(state.numel(), 2);
      EXPECT_EQ(state.abs().sum().item<float>(), 0.0f);
      w->follow({});
    }
  }
}

TEST(IterativeMagnitude, RewindsToALaterMomentAndNotPastThePruning) {
  const auto w = weight_of(false, torch::tensor({1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f, 8.f}).view({2, 4}));
  IterativeMagnitude method = rewinding("5it");
  MethodContext context{{w.get()}, {0, 100, 10}, 1, {0.75, "uniform", {}}};
  method.prepare(context);
  test::set_values(*w, torch::full({8}, 3.f));
  context.clock.step = 5;
  method.after_step(context);
  test::set_values(*w, torch::arange(1, 9).to(torch::kFloat));
  context.clock.step = 20;
  method.after_step(context);
  EXPECT_TRUE(torch::equal(w->values(), torch::full({4}, 3.f)));
  EXPECT_THROW(rewinding("30it").check(context), Error);
}

}  // namespace
}  // namespace espalier
