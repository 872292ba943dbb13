#include "espalier/methods/select.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/methods/schedule.h"
#include "espalier/nn/compressed_weight.h"

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

// Enough values that every number of threads cuts them differently.
TEST(SelectTop, AnyNumberOfThreadsGivesTheSame) {
  torch::manual_seed(4);
  const int before = at::get_num_threads();
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    const auto score = (torch::randn({150000}, type) * 1000).round() / 8;  // some thirty of a value
    const auto order = std::get<1>(score.sort(/*stable=*/true, 0, /*descending=*/true));
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      for (const std::int64_t k : {1, 40000, 75000, 149999}) {
        const Selection s = select_top(score, k);
        EXPECT_TRUE(torch::equal(s.chosen, std::get<0>(order.slice(0, 0, k).sort()))) << threads << ' ' << k;
        EXPECT_TRUE(torch::equal(s.rest, std::get<0>(order.slice(0, k).sort()))) << threads << ' ' << k;
        EXPECT_EQ(s.threshold, score[order[k - 1]].item<double>());
        EXPECT_EQ(select_top_counts({score.slice(0, 0, 50000), score.slice(0, 50000)}, k)[0],
                  order.slice(0, 0, k).lt(50000).sum().item<std::int64_t>());
      }
    }
  }
  at::set_num_threads(before);
}

// Values that differ only in their last bit, and the ends of the range.
TEST(SelectTop, RanksEveryBit) {
  const double one = 1, above = std::nextafter(1.0, 2.0), inf = std::numeric_limits<double>::infinity();
  const auto score = torch::tensor({one, above, -one, -above, inf, -inf, 5e-324, -5e-324, 0.0}, torch::kDouble);
  const Indices falling = {4, 1, 0, 6, 8, 7, 2, 3, 5};
  for (std::size_t k = 1; k <= falling.size(); ++k) {
    const Selection s = select_top(score, static_cast<std::int64_t>(k));
    Indices expected(falling.begin(), falling.begin() + static_cast<std::ptrdiff_t>(k));
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(list(s.chosen), expected) << k;
    EXPECT_EQ(s.threshold, score[falling[k - 1]].item<double>());
  }
}

TEST(SelectTopCounts, RanksFloatsBesideDoubles) {
  const double above = std::nextafter(1.0, 2.0);  // one as a float
  EXPECT_EQ(select_top_counts({torch::ones({2}), torch::tensor({above, 0.5}, torch::kDouble)}, 1), (Indices{0, 1}));
}

TEST(SmallestWeights, AreWhatSelectTopLeaves) {
  auto w = torch::tensor({{-3.0, 1.0, 0.0, 2.0}, {-1.0, 0.5, 4.0, -0.5}});
  const auto weight = make_masked_weight("w", w, {}, 0);
  weight->keep(torch::tensor({0, 1, 3, 4, 5, 6, 7}, torch::kInt64));
  const Smallest s = smallest_weights(*weight, 3);  // 1 at position 4: of two equal ones the higher position goes
  EXPECT_EQ(list(s.positions), (Indices{4, 5, 7}));
  EXPECT_EQ(s.threshold, 1.0);
  EXPECT_EQ(smallest_weights(*weight, 0).positions.numel(), 0);
  EXPECT_EQ(smallest_weights(*weight, 7).positions.numel(), 7);
  EXPECT_TRUE(std::isinf(smallest_weights(*weight, 7).threshold));
  EXPECT_THROW(smallest_weights(*weight, 8), Error);
  EXPECT_EQ(weight->values()[0].item<float>(), -3);  // and nothing was touched
}

/// Every third position of [rows, columns] is active, in compressed storage.
std::unique_ptr<SparseWeight> striped(std::int64_t rows, std::int64_t columns) {
  auto weight = std::make_unique<CompressedWeight>("w", std::vector<std::int64_t>{rows, columns});
  weight->keep(torch::arange(0, rows * columns, 3, torch::kInt64));
  return weight;
}

// How often each of k free positions comes in N draws of c, p = c / k: mean N p, covariance N p (1-p) k/(k-1) (I - J/k)
// (hypergeometric), so the squares over that factor sum to a chi-square of k - 1 degrees of freedom. Its tails
// (Laurent, Massart 2000): above d + 2 sqrt(d x) + 2 x, and below d - 2 sqrt(d x), with probability exp(-x) at most.
TEST(SelectTop, ListsWhatStandsForTheIndices) {
  const RandomStream random(3, Purpose::test);
  for (const std::int64_t n : {1, 5, 64, 100, 70000}) {  // several threads' worth
    at::Tensor score = torch::empty({n}), of = torch::arange(n, torch::kInt64) * 3 + 1;
    for (std::int64_t i = 0; i < n; ++i) score[i] = random.uniform_at(static_cast<std::uint64_t>(i)) > 0.5 ? 1.0 : 0.5;
    const Selection indices = select_top(score, n / 2), named = select_top(score, n / 2, of);
    EXPECT_TRUE(torch::equal(named.chosen, of.index_select(0, indices.chosen))) << n;
    EXPECT_TRUE(torch::equal(named.rest, of.index_select(0, indices.rest))) << n;
    EXPECT_EQ(named.threshold, indices.threshold) << n;
  }
}

TEST(RandomInactive, IsUniformByChiSquare) {
  const auto weight = striped(15, 20);
  const std::int64_t free = 200, drawn = 60, draws = 3000;
  std::vector<double> counts(300, 0);
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(draws); ++i) {
    for (const auto p :
         list(random_outside(weight->numel(), weight->active(), drawn, RandomStream(11, Purpose::test, i)))) {
      ++counts[static_cast<std::size_t>(p)];
    }
  }
  const double p = static_cast<double>(drawn) / static_cast<double>(free), mean = draws * p;
  const double factor = mean * (1 - p) * free / (free - 1);
  double chi_square = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (i % 3 == 0)
      EXPECT_EQ(counts[i], 0) << i;
    else
      chi_square += (counts[i] - mean) * (counts[i] - mean) / factor;
  }
  const double d = free - 1, x = 20;  // one seed in 2e8
  EXPECT_LT(chi_square, d + 2 * std::sqrt(d * x) + 2 * x);
  EXPECT_GT(chi_square, d - 2 * std::sqrt(d * x));
}

// A draw large enough to be shared out: how many fall into each of B equal ranges of the free positions. The same law,
// with mean c / B and factor c/B (k - c)/(k - 1); draws are independent, so their sums add up.
TEST(RandomInactive, LargeDrawsAreUniformAndTheSameForAnyThreads) {
  const int before = at::get_num_threads();
  const auto weight = striped(600, 1000);
  const std::int64_t free = 400000, drawn = 120000, ranges = 100, draws = 5;
  double chi_square = 0;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(draws); ++i) {
    at::set_num_threads(1);
    const RandomStream random(12, Purpose::test, i);
    const at::Tensor one = random_outside(weight->numel(), weight->active(), drawn, random);
    for (const int threads : {2, 3}) {
      at::set_num_threads(threads);
      EXPECT_TRUE(torch::equal(random_outside(weight->numel(), weight->active(), drawn, random), one)) << threads;
    }
    std::vector<double> counts(ranges, 0);
    std::int64_t last = -1;
    for (const auto p : list(one)) {
      ASSERT_TRUE(p > last && p % 3 != 0 && p < 600000) << p;
      last = p;
      ++counts[static_cast<std::size_t>((p - p / 3 - 1) * ranges / free)];  // free positions before p
    }
    const double mean = static_cast<double>(drawn) / ranges;
    const double factor = mean * static_cast<double>(free - drawn) / (free - 1);
    for (const double n : counts) chi_square += (n - mean) * (n - mean) / factor;
  }
  at::set_num_threads(before);
  const double d = static_cast<double>((ranges - 1) * draws), x = 20;
  EXPECT_LT(chi_square, d + 2 * std::sqrt(d * x) + 2 * x);
  EXPECT_GT(chi_square, d - 2 * std::sqrt(d * x));
}

TEST(RandomInactive, DrawsFreePositionsEquallyOften) {
  auto w = torch::ones({3, 4});
  const auto weight = make_masked_weight("w", w, {}, 0);
  weight->keep(torch::tensor({0, 1, 5, 11}, torch::kInt64));
  std::vector<int> counts(12, 0);
  constexpr int kDraws = 4000;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const auto drawn = random_outside(weight->numel(), weight->active(), 3, RandomStream(1, Purpose::test, i));
    ASSERT_EQ(drawn.numel(), 3);
    for (std::int64_t k = 0; k < 3; ++k) {
      ++counts[static_cast<std::size_t>(drawn[k].item<std::int64_t>())];
      if (k == 0) continue;
      ASSERT_GT(drawn[k].item<std::int64_t>(), drawn[k - 1].item<std::int64_t>());
    }
  }
  for (std::size_t i = 0; i < 12; ++i) {
    // Free ones: binomial, mean 4000 x 3/8 = 1500, standard deviation 30.6; five of them.
    if (i == 0 || i == 1 || i == 5 || i == 11)
      EXPECT_EQ(counts[i], 0) << i;
    else
      EXPECT_NEAR(counts[i], 1500, 153) << i;
  }
  EXPECT_TRUE(torch::equal(random_outside(weight->numel(), weight->active(), 8, RandomStream(1, Purpose::test)),
                           torch::tensor({2, 3, 4, 6, 7, 8, 9, 10}, torch::kInt64)));
  EXPECT_THROW(random_outside(weight->numel(), weight->active(), 9, RandomStream(1, Purpose::test)), Error);
}

}  // namespace
}  // namespace espalier
