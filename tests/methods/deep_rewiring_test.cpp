#include "espalier/methods/deep_rewiring.h"

#include <cmath>

#include "espalier/core/error.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

void set(Method& method, const std::string& name, double value) {
  for (auto& option : describe(method))
    if (option.name == name) **std::get_if<double*>(&option.value) = value;
}

struct Eight {
  at::Tensor model;
  std::unique_ptr<SparseWeight> w;
  DeepRewiring method;
  MethodContext context;
  std::optional<test::Change> change;
  explicit Eight(bool compressed, double alpha = 1, std::uint64_t seed = 1) {
    w = weight_of(compressed, torch::tensor({0.5f, -0.1f, 0.3f, 0.0f, 0.2f, -0.4f, -0.05f, 0.0f}).view({2, 4}),
                  Powerprop(alpha), 0, &model);
    context = {{w.get()}, {0, 1000, 100}, seed, {0.25, "uniform", {}}};
    context.structure = {{w->name(), w->active()}};  // the first masks: what is there
    method.prepare(context);
    change.emplace(*w);
  }
};

TEST(DeepRewiring, OnlyAChangeOfSignRewires) {
  for (const bool compressed : {false, true}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      Eight e(compressed, 1, seed);
      e.context.clock.step = 10;
      e.method.after_step(e.context);
      EXPECT_FALSE(e.change->take().has_value());
      // Active are 0 1 2 4 5 6; 2 and 6 pass through zero, 4 only comes near it.
      test::set_values(*e.w, torch::tensor({0.4f, -0.2f, -0.01f, 1e-9f, -0.4f, 0.05f}));
      e.context.clock.step = 20;
      e.method.after_step(e.context);
      const auto change = e.change->take();
      ASSERT_TRUE(change);
      EXPECT_EQ(numbers(change->dropped), (Numbers{2, 6}));
      EXPECT_EQ(change->grown.numel(), 2);
      for (const auto g : numbers(change->grown)) EXPECT_TRUE(g == 2 || g == 3 || g == 6 || g == 7) << g;
      EXPECT_EQ(e.w->nnz(), 6);
      const at::Tensor born = e.w->weights().masked_select(torch::isin(e.w->active(), change->grown));
      EXPECT_TRUE(torch::allclose(born.abs(), torch::full({2}, 1e-12f)));
      // A newborn has a sign, too.
      test::set_values(*e.w, -e.w->weights());
      e.context.clock.step = 30;
      e.method.after_step(e.context);
      EXPECT_EQ(e.change->take()->dropped.numel(), 6);
    }
  }
}

// T = 0: the gradient gets lambda_1 sign(w) and nothing else. T > 0: besides, noise of deviation sqrt(2 T / lr), which
// plain SGD turns into steps of sqrt(2 lr T).
TEST(DeepRewiring, PullsTowardsZeroAndShakes) {
  for (const bool compressed : {false, true}) {
    Eight e(compressed);
    set(e.method, "l1", 0.5);
    set(e.method, "temperature", 0);
    e.context.learning_rate = 0.1;
    at::Tensor parameter = e.w->parameter();
    e.method.before_update(e.context);
    const auto gradient = [&] {
      at::Tensor g = parameter.grad();
      if (!compressed) return g.view({-1}).index_select(0, e.w->active());
      // canonical order is that of state: read it back through values
      const torch::NoGradGuard no_grad;
      parameter.copy_(g);
      return e.w->values();
    };
    const at::Tensor sign = e.w->weights().sign();
    EXPECT_TRUE(torch::allclose(gradient(), 0.5 * sign));
  }
  at::Tensor model;
  const auto w = weight_of(false, torch::ones({200, 200}), {}, 0, &model);
  DeepRewiring method;
  set(method, "l1", 0);
  set(method, "temperature", 2e-3);
  MethodContext context = {{w.get()}, {0, 1000, 100}, 1, {0.25, "uniform", {}}};
  context.learning_rate = 0.1;
  method.before_update(context);
  // 40,000 draws: the deviation of a deviation is .2 / sqrt(80000) = 7e-4.
  EXPECT_NEAR(w->parameter().grad().std().item<double>(), std::sqrt(2 * 2e-3 / 0.1), 3e-3);
  EXPECT_NEAR(w->parameter().grad().mean().item<double>(), 0, 4e-3);
}

TEST(DeepRewiring, NewbornsCanMoveWithPowerpropagation) {
  for (const double alpha : {1.5, 2.0}) {
    Eight e(true, alpha);
    test::set_values(*e.w, -e.w->values());
    e.context.clock.step = 10;
    e.method.after_step(e.context);
    const at::Tensor grown = e.change->take()->grown;
    EXPECT_EQ(grown.numel(), 6);
    EXPECT_GT(e.w->reparametrisation().derivative(e.w->values()).min().item<float>(), 1e-3f);
  }
}

TEST(DeepRewiring, SignsAreSaved) {
  Eight e(false), other(false);
  test::set_values(*other.w, -other.w->weights());
  e.context.clock.step = 10;
  e.method.after_step(e.context);
  other.method.restore(e.method.archive());
  other.context.clock.step = 20;
  other.method.after_step(other.context);
  EXPECT_EQ(other.change->take()->dropped.numel(), 6);
  EXPECT_THROW(other.method.restore({}), Error);
}

}  // namespace
}  // namespace espalier
