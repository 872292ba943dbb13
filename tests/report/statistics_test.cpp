#include "espalier/report/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace espalier::report {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Printed tables of Student's distribution, and its closed forms: tan for one degree, t / sqrt(2 + t^2) for two.
TEST(Statistics, StudentsTAsInTables) {
  EXPECT_NEAR(student_t(0.95, 1), 12.7062, 5e-5);
  EXPECT_NEAR(student_t(0.95, 2), 4.30265, 5e-6);
  EXPECT_NEAR(student_t(0.95, 3), 3.18245, 5e-6);
  EXPECT_NEAR(student_t(0.95, 4), 2.77645, 5e-6);
  EXPECT_NEAR(student_t(0.95, 10), 2.22814, 5e-6);
  EXPECT_NEAR(student_t(0.99, 7), 3.49948, 5e-6);
  EXPECT_NEAR(student_t(0.95, 1000000), 1.95997, 5e-5);
  EXPECT_NEAR(student_t(0.9, 1), std::tan(0.45 * 3.14159265358979323846), 1e-9);
  EXPECT_NEAR(student_t(0.6, 2), std::sqrt(2 * 0.36 / (1 - 0.36)), 1e-9);
}

TEST(Statistics, MeanAndItsInterval) {
  const Interval i = mean_interval({1, 2, 3, kNan, kInf});
  EXPECT_EQ(i.count, 3U);
  EXPECT_DOUBLE_EQ(i.mean, 2);
  EXPECT_DOUBLE_EQ(i.deviation, 1);
  EXPECT_NEAR(i.high - i.mean, 4.30265 / std::sqrt(3.0), 1e-4);
  EXPECT_NEAR(i.mean - i.low, i.high - i.mean, 1e-12);
}

TEST(Statistics, OneSeedHasNoSpread) {
  EXPECT_TRUE(std::isnan(mean_interval({4}).low));
  EXPECT_DOUBLE_EQ(mean_interval({4}).mean, 4);
  const double epochs = 50000.0 / 917;  // three of them, summed and divided by 3, are another number
  EXPECT_EQ(mean_interval({epochs, epochs, epochs}).mean, epochs);
  EXPECT_EQ(mean_interval({epochs, epochs, epochs}).deviation, 0);
  EXPECT_TRUE(std::isnan(mean_interval({}).mean));
  EXPECT_TRUE(std::isnan(mean_interval({kNan}).mean));
}

TEST(KeepExtremes, ShortCurvesAreLeftAlone) {
  EXPECT_EQ(keep_extremes({3, 1, 2}, 4), (std::vector<std::size_t>{0, 1, 2}));
  EXPECT_TRUE(keep_extremes({}, 4).empty());
}

TEST(KeepExtremes, EveryStretchKeepsItsPeakAndItsTrough) {
  // Ends, and two stretches of four: 1..4 and 5..8.
  const std::vector<double> values = {0, 5, 9, 5, 4, 1, 2, 0, 8, 3};
  EXPECT_EQ(keep_extremes(values, 6), (std::vector<std::size_t>{0, 2, 4, 7, 8, 9}));
}

TEST(KeepExtremes, OneSpikeInAHundredThousandSurvives) {
  std::vector<double> values(100000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<double>(i) / 5000);
  values[54321] = 40;
  values[77777] = -30;
  values[88888] = kNan;
  for (const std::size_t most : {4U, 7U, 50U, 1500U}) {
    const auto kept = keep_extremes(values, most);
    EXPECT_LE(kept.size(), most);
    EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
    EXPECT_EQ(kept.front(), 0U);
    EXPECT_EQ(kept.back(), values.size() - 1);
    const auto has = [&](std::size_t i) { return std::binary_search(kept.begin(), kept.end(), i); };
    EXPECT_TRUE(has(54321)) << most;
    EXPECT_TRUE(has(77777)) << most;
    EXPECT_EQ(has(88888), most >= 5) << most;
  }
}

TEST(KeepExtremes, WhereNothingIsFiniteAGapIsKept) {
  const std::vector<double> values(50, kNan);
  const auto kept = keep_extremes(values, 8);
  EXPECT_LE(kept.size(), 8U);
  EXPECT_GE(kept.size(), 3U);
}

}  // namespace
}  // namespace espalier::report
