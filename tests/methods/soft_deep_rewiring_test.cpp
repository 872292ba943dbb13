#include "espalier/methods/soft_deep_rewiring.h"

#include <cmath>

#include "espalier/core/error.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;

void set(Method& method, const std::string& name, double value) {
  for (auto& option : describe(method))
    if (option.name == name) **std::get_if<double*>(&option.value) = value;
}

at::Tensor find(const NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return tensor;
  return {};
}

/// A weight of eight positions, of which 0 1 2 4 5 6 are awake.
struct Eight {
  at::Tensor model;
  std::unique_ptr<SparseWeight> w;
  SoftDeepRewiring method;
  MethodContext context;
  std::optional<test::Change> change;
  explicit Eight(double alpha = 1) {
    w = test::weight_of(false, torch::tensor({0.5f, -0.1f, 0.3f, 0.0f, 0.2f, -0.4f, -0.05f, 0.0f}).view({2, 4}),
                        Powerprop(alpha), 0, &model);
    context = {{w.get()}, {0, 1000, 100}, 1, {0.25, "uniform", {}}};
    context.structure = {{w->name(), w->active()}};
    context.learning_rate = 0.1;
    method.prepare(context);
    change.emplace(*w);
  }
  at::Tensor theta() const { return find(method.archive(), "method.theta." + w->name()); }
  at::Tensor sign() const { return find(method.archive(), "method.sign." + w->name()); }
  /// What sleeps at `position` from now on.
  void put(std::int64_t position, float value, std::int64_t with_sign) {
    NamedTensors saved = method.archive();
    for (auto& [name, tensor] : saved) {
      if (name.find("theta") != std::string::npos) tensor.view({-1})[position] = value;
      if (name.find("sign") != std::string::npos) tensor.view({-1})[position] = with_sign;
    }
    method.restore(saved);
  }
  void look(std::int64_t step) {
    context.clock.step = step;
    method.after_step(context);
  }
};

// p_neg / (p_pos beta) with beta = l1 / T: 9 times as much asleep as awake, 1 / beta = 1e-3.
TEST(SoftDeepRewiring, TheFloorKeepsTheShareAwake) {
  EXPECT_DOUBLE_EQ(sleeping_floor(0.1, 1e-5, 1e-8), -9e-3);
  EXPECT_DOUBLE_EQ(sleeping_floor(0.5, 2, 4), -2);
}

// theta_k = s_k w_k: where it falls below zero the connection sleeps at that place, and no lower than the floor.
TEST(SoftDeepRewiring, AChangeOfSignSleepsWhereItCameTo) {
  Eight e;
  set(e.method, "temperature", 1e-30);  // nobody walks, and the floor is as good as zero …
  set(e.method, "l1", 1e-30);           // … unless the pull is as weak: 0.25 / 0.75 * T / l1 = 1/3
  EXPECT_TRUE(
      torch::equal(e.sign().index_select(0, e.w->active()), torch::tensor({1, -1, 1, 1, -1, -1}, torch::kChar)));
  e.put(3, -0.1f, 1);
  e.put(7, -0.2f, -1);
  test::set_values(*e.w, torch::tensor({0.4f, -0.2f, -0.01f, 1e-9f, 0.9f, 0.05f}));
  e.look(10);
  const auto change = e.change->take();
  ASSERT_TRUE(change);
  EXPECT_EQ(numbers(change->dropped), (Numbers{2, 5, 6}));
  EXPECT_EQ(change->grown.numel(), 0);
  EXPECT_EQ(e.w->nnz(), 3);
  EXPECT_FLOAT_EQ(e.theta()[2].item<float>(), -0.01f);
  EXPECT_FLOAT_EQ(e.theta()[5].item<float>(), -1.f / 3);
  EXPECT_FLOAT_EQ(e.theta()[6].item<float>(), -0.05f);
  EXPECT_FLOAT_EQ(e.theta()[7].item<float>(), -0.2f);
}

TEST(SoftDeepRewiring, WhoWalksAboveZeroWakesWithItsSign) {
  Eight e;
  set(e.method, "temperature", 1e-30);
  set(e.method, "l1", 1e-30);
  e.put(3, 0.25f, -1);
  e.put(7, -0.25f, 1);
  e.look(9);  // not due
  EXPECT_FALSE(e.change->take());
  e.look(10);
  const auto change = e.change->take();
  ASSERT_TRUE(change);
  EXPECT_EQ(numbers(change->grown), (Numbers{3}));
  EXPECT_EQ(change->dropped.numel(), 0);
  EXPECT_FLOAT_EQ(e.w->weights()[3].item<float>(), -0.25f);
  EXPECT_EQ(e.theta()[3].item<float>(), 0);
}

// The walk of 40,000 sleepers in one look after 10 steps: deviation sqrt(2 lr T 10) = sqrt(2 * .1 * 2e-3 * 10), and no
// lower than the floor.
TEST(SoftDeepRewiring, SleepersWalkAndStopAtTheFloor) {
  at::Tensor model;
  at::Tensor start = torch::zeros({200, 200});
  start[0][0] = 1;
  const auto w = test::weight_of(false, start, {}, 0, &model);
  SoftDeepRewiring method;
  set(method, "temperature", 2e-3);
  set(method, "l1", 2e-3);
  MethodContext context = {{w.get()}, {0, 1000, 100}, 1, {0.9, "uniform", {}}};
  context.structure = {{w->name(), w->active()}};
  context.learning_rate = 0.1;
  method.prepare(context);
  const double floor = sleeping_floor(0.1, 2e-3, 2e-3);
  EXPECT_NEAR(floor, -9, 1e-12);
  at::Tensor before = find(method.archive(), "method.theta." + w->name()).clone();
  EXPECT_LE(before.max().item<float>(), 0);
  EXPECT_NEAR(before.slice(0, 1).mean().item<double>(), floor / 2, 0.05);  // 2.6 / sqrt(40,000) = .013 a deviation
  context.clock.step = 10;
  method.after_step(context);
  const at::Tensor after = find(method.archive(), "method.theta." + w->name());
  const double deviation = std::sqrt(2 * 0.1 * 2e-3 * 10);
  const at::Tensor inside = before.gt(floor + 6 * deviation) & before.lt(-6 * deviation);
  const at::Tensor moved = (after - before).masked_select(inside);
  EXPECT_NEAR(moved.std().item<double>(), deviation, deviation * 0.02);
  EXPECT_GE(after.min().item<float>(), static_cast<float>(floor));
  EXPECT_GT(after.eq(static_cast<float>(floor)).sum().item<std::int64_t>(), 0);
  EXPECT_GT(w->nnz(), 1);
  EXPECT_TRUE(w->weights().ne(0).all().item<bool>());
}

// Without a loss, pull and noise alone keep up the density that was asked for: 400 weights times 20,000 steps.
TEST(SoftDeepRewiring, PullAndNoiseKeepTheDensity) {
  at::Tensor model;
  torch::manual_seed(1);
  const auto w = test::weight_of(false, torch::rand({20, 20}).sub_(0.5).mul_(0.01), {}, 0, &model);
  SoftDeepRewiring method;
  set(method, "temperature", 1e-3);
  set(method, "l1", 1);  // 1 / beta = 1e-3; a step is sqrt(2 * 1e-3 * 1e-5) = 1.4e-4
  for (auto& option : describe(method))
    if (option.name == "every") *std::get<Duration*>(option.value) = Duration::steps(1);
  MethodContext context = {{w.get()}, {0, 100000, 100}, 1, {0.8, "uniform", {}}};
  context.learning_rate = 1e-5;
  method.check(context);
  method.prepare(context);
  EXPECT_EQ(w->nnz(), 80);
  std::int64_t sum = 0;
  at::Tensor parameter = w->parameter();
  constexpr int kSteps = 20000;
  for (int step = 1; step <= kSteps; ++step) {
    method.before_update(context);
    {
      const torch::NoGradGuard no_grad;
      parameter.sub_(parameter.grad().mul(context.learning_rate));
      parameter.mutable_grad() = at::Tensor();
    }
    w->settle();
    context.clock.step = step;
    method.after_step(context);
    sum += w->nnz();
  }
  EXPECT_NEAR(static_cast<double>(sum) / kSteps / 400, 0.2, 0.02);
}

TEST(SoftDeepRewiring, TheLastOneAwakeDoesNotSleep) {
  Eight e;
  e.put(3, -0.001f, 1);
  e.put(7, -0.001f, 1);
  set(e.method, "temperature", 1e-30);
  set(e.method, "l1", 1e-30);
  test::set_values(*e.w, torch::tensor({-0.4f, 0.2f, -0.3f, -0.5f, 0.9f, 0.25f}));
  e.look(10);
  EXPECT_EQ(numbers(e.w->active()), (Numbers{1}));
}

TEST(SoftDeepRewiring, WakersCanMoveWithPowerpropagation) {
  Eight e(2);
  e.put(3, 0.f, 1);
  e.put(7, 1e-4f, -1);
  set(e.method, "temperature", 1e-30);
  e.look(10);
  EXPECT_EQ(e.w->nnz(), 8);
  EXPECT_GT(e.w->reparametrisation().derivative(e.w->values()).min().item<float>(), 1e-7f);
  EXPECT_NEAR(e.w->weights()[7].item<float>(), -1e-4f, 1e-9f);
}

TEST(SoftDeepRewiring, ItsStateIsSaved) {
  Eight e, other;
  e.put(3, -0.125f, -1);
  other.method.restore(e.method.archive());
  EXPECT_TRUE(torch::equal(other.theta(), e.theta()));
  EXPECT_TRUE(torch::equal(other.sign(), e.sign()));
  EXPECT_THROW(other.method.restore({}), Error);
}

TEST(SoftDeepRewiring, RefusesWhatItCannotDo) {
  Eight e;
  e.context.sparsity.sparsity = 0;
  EXPECT_THROW(e.method.check(e.context), Error);
}

}  // namespace
}  // namespace espalier
