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

}  // namespace
}  // namespace espalier
