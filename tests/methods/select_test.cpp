#include "espalier/methods/select.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/methods/schedule.h"

namespace espalier {
namespace {

std::vector<std::int64_t> list(const at::Tensor& t) {
  return {t.data_ptr<std::int64_t>(), t.data_ptr<std::int64_t>() + t.numel()};
}
using Indices = std::vector<std::int64_t>;

TEST(SelectTop, TakesTheLargestAndTheLowerIndexOfATie) {
  const auto score = torch::tensor({3.0, 1.0, 2.0, 3.0, 2.0, 2.0, 0.0, 5.0});
  const auto s = select_top(score, 5);
  EXPECT_EQ(list(s.chosen), (Indices{0, 2, 3, 4, 7}));
  EXPECT_EQ(list(s.rest), (Indices{1, 5, 6}));
  EXPECT_EQ(s.threshold, 2.0);
}

TEST(SelectTop, AllNoneAndEqual) {
  const auto zeros = torch::zeros({4});
  EXPECT_EQ(list(select_top(zeros, 2).chosen), (Indices{0, 1}));
  EXPECT_EQ(list(select_top(zeros, 4).chosen), (Indices{0, 1, 2, 3}));
  EXPECT_EQ(select_top(zeros, 0).chosen.numel(), 0);
  EXPECT_TRUE(std::isinf(select_top(zeros, 0).threshold));
  EXPECT_THROW(select_top(zeros, 5), Error);
  EXPECT_THROW(select_top(torch::full({2}, std::numeric_limits<float>::quiet_NaN()), 1), Error);
}

TEST(SelectTopCounts, RanksAllTogether) {
  EXPECT_EQ(select_top_counts({torch::tensor({5.0, 1.0}), torch::tensor({4.0, 3.0, 2.0})}, 3), (Indices{1, 2}));
  EXPECT_EQ(select_top_counts({torch::ones({2}), torch::ones({3})}, 3), (Indices{2, 1}));
  EXPECT_EQ(select_top_counts({torch::ones({2}), torch::ones({3})}, 0), (Indices{0, 0}));
}

// Hand-worked values of s_f + (s_i - s_f)(1 - t)^3.
TEST(Schedule, Cubic) {
  for (const auto& [t, s] :
       {std::pair{.1, .2439}, {.25, .5203125}, {.5, .7875}, {.75, .8859375}, {.9, .8991}, {1.0, .9}})
    EXPECT_NEAR(cubic_schedule(0, 0.9, t), s, 1e-12) << t;
  EXPECT_NEAR(cubic_schedule(0, 0.8, .25), .4625, 1e-12);
  EXPECT_EQ(cubic_schedule(0, 0.9, 2), 0.9);
  EXPECT_DOUBLE_EQ(cubic_schedule(0.2, 0.9, -1), 0.2);
  EXPECT_NEAR(linear_schedule(0.1, 0.9, 0.25), 0.3, 1e-12);
}

TEST(Schedule, GeometricRoundsRemoveEqualShares) {
  // 20 % a round: .8, .64, .512, ... what is left after 5 of 10 rounds toward .1073742
  const double final = 1 - std::pow(0.8, 10);
  EXPECT_NEAR(geometric_schedule(final, 1, 10), 0.2, 1e-12);
  EXPECT_NEAR(geometric_schedule(final, 5, 10), 1 - 0.32768, 1e-12);
  EXPECT_EQ(geometric_schedule(final, 10, 10), final);
}

TEST(SelectTop, ZeroIsZeroWhateverItsSign) {
  const auto score = torch::tensor({-0.0, 0.0, -0.0, 1.0, 0.0, -1.0}, torch::kDouble);
  for (std::int64_t k = 0; k <= 6; ++k) {
    const Selection s = select_top(score, k);
    EXPECT_EQ(s.chosen.numel(), k);
    EXPECT_EQ(s.rest.numel(), 6 - k);
  }
  EXPECT_TRUE(torch::equal(select_top(score, 3).chosen, torch::tensor({0, 1, 3}, torch::kInt64)));
}

TEST(SelectTop, AgreesWithSortingOnManyValues) {
  torch::manual_seed(2);
  const auto score = (torch::randn({5000}) * 40).round() / 8;  // many ties, both signs
  const auto order = std::get<1>(score.sort(/*stable=*/true, 0, /*descending=*/true));
  for (const std::int64_t k : {1, 17, 2500, 4999, 5000}) {
    EXPECT_TRUE(torch::equal(select_top(score, k).chosen, std::get<0>(order.slice(0, 0, k).sort()))) << k;
  }
}

TEST(RandomInactive, DrawsFreePositionsEquallyOften) {
  auto w = torch::ones({3, 4});
  const auto weight = make_masked_weight("w", w, {}, 0);
  weight->keep(torch::tensor({0, 1, 5, 11}, torch::kInt64));
  std::vector<int> counts(12, 0);
  constexpr int kDraws = 4000;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const auto drawn = random_inactive(*weight, 3, RandomStream(1, Purpose::test, i));
    ASSERT_EQ(drawn.numel(), 3);
    for (std::int64_t k = 0; k < 3; ++k) {
      ++counts[static_cast<std::size_t>(drawn[k].item<std::int64_t>())];
      if (k > 0) ASSERT_GT(drawn[k].item<std::int64_t>(), drawn[k - 1].item<std::int64_t>());
    }
  }
  for (std::size_t i = 0; i < 12; ++i) {
    // Free ones: binomial, mean 4000 x 3/8 = 1500, standard deviation 30.6; five of them.
    if (i == 0 || i == 1 || i == 5 || i == 11)
      EXPECT_EQ(counts[i], 0) << i;
    else
      EXPECT_NEAR(counts[i], 1500, 153) << i;
  }
  EXPECT_TRUE(torch::equal(random_inactive(*weight, 8, RandomStream(1, Purpose::test)),
                           torch::tensor({2, 3, 4, 6, 7, 8, 9, 10}, torch::kInt64)));
  EXPECT_THROW(random_inactive(*weight, 9, RandomStream(1, Purpose::test)), Error);
}

}  // namespace
}  // namespace espalier
