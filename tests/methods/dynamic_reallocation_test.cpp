#include "espalier/methods/dynamic_reallocation.h"

#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

void set(Method& method, const std::string& name, const std::string& value) {
  for (auto& option : describe(method)) {
    if (option.name != name) continue;
    if (auto* v = std::get_if<std::int64_t*>(&option.value)) **v = std::stoll(value);
    if (auto* v = std::get_if<double*>(&option.value)) **v = std::stod(value);
    if (auto* v = std::get_if<std::string*>(&option.value)) **v = value;
    if (auto* v = std::get_if<Duration*>(&option.value)) **v = Duration::parse(value);
    if (auto* v = std::get_if<std::vector<std::string>*>(&option.value)) **v = {value};
    if (auto* v = std::get_if<std::vector<double>*>(&option.value)) **v = {std::stod(value)};
    return;
  }
  FAIL() << name;
}

// K = 20,000, delta = 0.1: between 18,000 and 22,000, both included, H stays.
TEST(DynamicReallocation, ThresholdFollowsTheNumberPruned) {
  EXPECT_EQ(adjusted_threshold(1e-3, 22001, 20000, 0.1), 5e-4);
  EXPECT_EQ(adjusted_threshold(1e-3, 17999, 20000, 0.1), 2e-3);
  for (const std::int64_t pruned : {18000, 20000, 22000})
    EXPECT_EQ(adjusted_threshold(1e-3, pruned, 20000, 0.1), 1e-3) << pruned;
}

// 100 pruned; 900, 300 and 100 survive: 69.23, 23.08, 7.69. And 4 pruned, 5 and 3 survive: 2.5 and 1.5, which rounding
// to even would make 4 and rounding away from zero 5.
TEST(DynamicReallocation, QuotasAddUp) {
  const Numbers room(3, 1000000);
  EXPECT_EQ(apportion(100, {900, 300, 100}, room), (Numbers{69, 23, 8}));
  EXPECT_EQ(apportion(4, {5, 3}, {1000, 1000}), (Numbers{3, 1}));
  EXPECT_EQ(apportion(100, {900, 300, 100}, {10, 1000, 1000}), (Numbers{10, 68, 22}));  // 90: 67.5, 22.5
}

/// fc0 4 x 5 with 8 weights, fc1 2 x 3 with 4; under H = .1 are two of fc0 (positions 2 and 7) and three of fc1.
struct Two {
  std::unique_ptr<SparseWeight> a, b;
  MethodContext context;
  std::optional<test::Change> a_changes, b_changes;
  explicit Two(bool compressed, std::uint64_t seed = 1) {
    at::Tensor first = torch::zeros({20}), second = torch::zeros({6});
    const std::vector<float> large = {0.5f, -0.7f, 0.05f, 0.3f, -0.9f, -0.02f, 0.4f, 0.2f};
    const std::vector<int> places = {0, 1, 2, 4, 6, 7, 13, 19};
    for (std::size_t i = 0; i < places.size(); ++i) first[places[i]] = large[i];
    second[0] = 0.03f;
    second[2] = -0.6f;
    second[3] = 0.01f;
    second[5] = -0.09f;
    a = weight_of(compressed, first.view({4, 5}), {}, 0);
    b = weight_of(compressed, second.view({2, 3}), {}, 1);
    a_changes.emplace(*a);
    b_changes.emplace(*b);
    context = {{a.get(), b.get()}, {100, 1000, 100}, seed, {0.5, "uniform", {}}};
  }
};

TEST(DynamicReallocation, PrunesUnderTheThresholdAndGrowsInProportionToSurvivors) {
  for (const bool compressed : {false, true}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      Two two(compressed, seed);
      DynamicReallocation dpr;
      set(dpr, "threshold", "0.1");
      set(dpr, "target", "5");
      dpr.check(two.context);
      NamedTensors start = {{"method.threshold", torch::tensor(0.1, torch::kDouble)},
                            {"method.threshold_milestones", torch::tensor(std::int64_t{0})}};
      dpr.restore(start);
      dpr.after_step(two.context);
      const auto a = two.a_changes->take(), b = two.b_changes->take();
      ASSERT_TRUE(a && b);
      EXPECT_EQ(numbers(a->dropped), (Numbers{2, 7}));
      EXPECT_EQ(numbers(b->dropped), (Numbers{0, 3, 5}));
      EXPECT_EQ(a->threshold, 0.1);
      // Survivors 6 and 1, five to grow: 4.29 and 0.71, so 4 and 1. Free before: 12 of fc0, 2 of fc1.
      EXPECT_EQ(a->grown.numel(), 4);
      EXPECT_EQ(b->grown.numel(), 1);
      for (const auto g : numbers(a->grown))
        EXPECT_TRUE(g == 3 || g == 5 || (g >= 8 && g != 13 && g != 19)) << g;  // not what was just pruned
      EXPECT_TRUE(numbers(b->grown)[0] == 1 || numbers(b->grown)[0] == 4);
      EXPECT_EQ(two.a->nnz(), 10);
      EXPECT_EQ(two.b->nnz(), 2);
      EXPECT_EQ(dpr.threshold(), 0.1);  // five pruned, five wanted
      const at::Tensor born = torch::isin(two.a->active(), a->grown);
      EXPECT_EQ(two.a->weights().masked_select(born).abs().max().item<float>(), 0.0f);
    }
  }
}

TEST(DynamicReallocation, EveryLayerKeepsOneAndAProtectedOneMore) {
  for (const bool compressed : {false, true}) {
    Two two(compressed);
    DynamicReallocation dpr;
    set(dpr, "threshold", "100");  // everything is under it
    set(dpr, "target", "5");
    set(dpr, "protected_layers", "fc1");
    set(dpr, "protected_weights", "3");
    dpr.check(two.context);
    dpr.restore({{"method.threshold", torch::tensor(100.0, torch::kDouble)},
                 {"method.threshold_milestones", torch::tensor(std::int64_t{0})}});
    dpr.after_step(two.context);
    // fc0 loses all but position 6 (.9), fc1 all but its three largest: 7 + 1; there is room for 12 and 2.
    EXPECT_EQ(numbers(two.a_changes->take()->dropped), (Numbers{0, 1, 2, 4, 7, 13, 19}));
    EXPECT_EQ(numbers(two.b_changes->take()->dropped), (Numbers{3}));
    EXPECT_EQ(two.a->nnz() + two.b->nnz(), 12);
    EXPECT_EQ(dpr.threshold(), 50.0);
  }
}

TEST(DynamicReallocation, WithoutRoomTheLargestStay) {
  for (const bool compressed : {false, true}) {
    // Six of seven places are taken: one can be grown, so one of the six may go, the smallest.
    const auto w = weight_of(compressed, torch::tensor({0.3f, 0.1f, 0.2f, 0.0f, 0.6f, 0.5f, 0.4f}).view({1, 7}));
    test::Change changed(*w);
    DynamicReallocation dpr;
    const MethodContext context{{w.get()}, {100, 1000, 100}, 1, {1.0 / 7, "uniform", {}}};
    dpr.restore({{"method.threshold", torch::tensor(1.0, torch::kDouble)},
                 {"method.threshold_milestones", torch::tensor(std::int64_t{0})}});
    dpr.after_step(context);
    const auto change = changed.take();
    ASSERT_TRUE(change);
    EXPECT_EQ(numbers(change->dropped), (Numbers{1}));
    EXPECT_EQ(numbers(change->grown), (Numbers{3}));
  }
}

TEST(DynamicReallocation, IntervalsGrowAtMilestonesAndItStops) {
  Two two(false);
  DynamicReallocation dpr;
  set(dpr, "every", "100it");
  set(dpr, "every_milestones", "3ep");
  set(dpr, "stop_after", "7ep");
  dpr.prepare({{}, {}, 1, {}});
  const auto changed = [&](std::int64_t step) {
    dpr.restore({{"method.threshold", torch::tensor(0.1, torch::kDouble)},
                 {"method.threshold_milestones", torch::tensor(std::int64_t{0})}});
    two.context.clock.step = step;
    dpr.after_step(two.context);
    const bool a = two.a_changes->take().has_value(), b = two.b_changes->take().has_value();
    return a || b;
  };
  for (const std::int64_t step : {100, 200, 400, 600}) EXPECT_TRUE(changed(step)) << step;
  for (const std::int64_t step : {50, 300, 500, 700, 800}) EXPECT_FALSE(changed(step)) << step;
}

TEST(DynamicReallocation, ThresholdsCanBeSetAtMilestonesAndAreRemembered) {
  Two two(false);
  DynamicReallocation dpr;
  set(dpr, "threshold_milestones", "2ep");
  set(dpr, "thresholds", "0.25");
  set(dpr, "target", "1");
  dpr.check(two.context);
  dpr.restore({{"method.threshold", torch::tensor(1e-9, torch::kDouble)},
               {"method.threshold_milestones", torch::tensor(std::int64_t{0})}});
  dpr.after_step(two.context);  // step 100: nothing is under 1e-9, so H doubles
  EXPECT_FALSE(two.a_changes->take().has_value());
  EXPECT_EQ(dpr.threshold(), 2e-9);
  two.context.clock.step = 200;
  dpr.after_step(two.context);
  EXPECT_EQ(two.a_changes->take()->threshold, 0.25);
  EXPECT_EQ(dpr.threshold(), 0.125);
  DynamicReallocation other;
  set(other, "threshold_milestones", "2ep");
  set(other, "thresholds", "0.25");
  other.restore(dpr.archive());
  EXPECT_EQ(other.threshold(), 0.125);
  two.context.clock.step = 300;
  other.after_step(two.context);
  EXPECT_NE(two.a_changes->take()->threshold, 0.25);  // a milestone that has passed does not come again
}

TEST(DynamicReallocation, RefusesWhatCannotBe) {
  Two two(false);
  const auto refuses = [&](const std::string& name, const std::string& value) {
    DynamicReallocation dpr;
    set(dpr, name, value);
    EXPECT_THROW(dpr.check(two.context), Error) << name;
  };
  refuses("target", "12");
  refuses("protected_layers", "fc7");
  refuses("thresholds", "0.1");
  refuses("every", "0it");
  DynamicReallocation dpr;
  EXPECT_THROW(dpr.restore({}), Error);
}

}  // namespace
}  // namespace espalier
