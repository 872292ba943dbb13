#include "espalier/kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/kernels/sparse_linear.h"
#include "kernels/runnable.h"

namespace espalier::kernels {
namespace {

/// Logits as rows, or as samples of a batch tile that is given to the kernel 16 lanes at a time.
enum class Lie { rows, tile, strips };
constexpr std::array<Lie, 3> kLie = {Lie::rows, Lie::tile, Lie::strips};

template <class T>
struct Rows {
  std::int64_t rows, classes;
  std::vector<T> logits, gradient;
  std::vector<std::int64_t> labels;
  std::vector<double> loss;
  std::vector<std::uint8_t> correct;

  Rows(std::int64_t n, std::int64_t c, double spread) : rows(n), classes(c) {
    const RandomStream random(5, Purpose::test, static_cast<std::uint64_t>(c), 0);
    logits.resize(static_cast<std::size_t>(n * c));
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<T>(spread * random.normal_at(i));
    gradient.assign(logits.size(), T(99));
    for (std::int64_t r = 0; r < n; ++r) labels.push_back((7 * r + c - 1) % c);
    loss.assign(static_cast<std::size_t>(n), 99);
    correct.assign(static_cast<std::size_t>(n), 99);
  }
  void run(const Table& table, Lie lie, double smoothing, double scale, bool want_gradient = true) {
    const auto& k = table.cross_entropy<T>();
    if (lie == Lie::rows) {
      k.cross_entropy(logits.data(), labels.data(), classes, smoothing, scale,
                      want_gradient ? gradient.data() : nullptr, loss.data(), correct.data(), 0, rows);
      return;
    }
    const int lanes = static_cast<int>((rows + kLaneStep - 1) / kLaneStep * kLaneStep);
    const auto at = [&](std::int64_t c, std::int64_t lane) { return static_cast<std::size_t>(c * lanes + lane); };
    std::vector<T> tile(at(classes, 0), T(3)), of_tile(tile.size(), T(99));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < classes; ++c) tile[at(c, r)] = logits[static_cast<std::size_t>(r * classes + c)];
    const int step = lie == Lie::strips ? kLaneStep : lanes;
    for (int begin = 0; begin < lanes; begin += step) {
      k.cross_entropy_of_tile(tile.data(), lanes, labels.data(), static_cast<int>(rows), classes, smoothing, scale,
                              want_gradient ? of_tile.data() : nullptr, loss.data(), correct.data(), begin,
                              begin + step);
    }
    for (std::int64_t c = 0; want_gradient && c < classes; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) gradient[static_cast<std::size_t>(r * classes + c)] = of_tile[at(c, r)];
      for (std::int64_t lane = rows; lane < lanes; ++lane) ASSERT_EQ(of_tile[at(c, lane)], T(0)) << "padding";
    }
  }
};

std::vector<std::pair<const Table*, Lie>> cases() {
  std::vector<std::pair<const Table*, Lie>> all;
  for (const Table* table : runnable())
    for (const Lie lie : kLie) all.emplace_back(table, lie);
  return all;
}

template <class T>
struct CrossEntropy : testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(CrossEntropy, Types);

/// softmax(0, ln 2, ln 5) = 1/8, 2/8, 5/8.
TYPED_TEST(CrossEntropy, IsWhatAHandSays) {
  using T = TypeParam;
  const double u = std::is_same_v<T, float> ? 0x1p-24 : 0x1p-53;
  for (const auto& [table, lie] : cases()) {
    Rows<T> r(1, 3, 0);
    r.logits = {T(0), static_cast<T>(std::log(2.0)), static_cast<T>(std::log(5.0))};
    r.labels = {1};
    r.run(*table, lie, 0, 1);
    EXPECT_NEAR(r.loss[0], std::log(4.0), 16 * u) << table->isa;
    EXPECT_NEAR(r.gradient[0], 0.125, 16 * u);
    EXPECT_NEAR(r.gradient[1], -0.75, 16 * u);
    EXPECT_NEAR(r.gradient[2], 0.625, 16 * u);
    r.run(*table, lie, 0.3, 2);  // targets 0.1, 0.8, 0.1
    EXPECT_NEAR(r.loss[0], std::log(8.0) - 0.8 * std::log(2.0) - 0.1 * std::log(5.0), 16 * u) << table->isa;
    EXPECT_NEAR(r.gradient[0], 2 * (0.125 - 0.1), 32 * u);
    EXPECT_NEAR(r.gradient[1], 2 * (0.25 - 0.8), 32 * u);
    EXPECT_NEAR(r.gradient[2], 2 * (0.625 - 0.1), 32 * u);
  }
}

/// Each power e^d, d = x - max, is off by |d| u for the rounding of d and by 4 u for its own; a sum in the lanes of a
/// vector by one u for each of its additions, at most classes / 4 + 16. In a tile 32 powers at most are added so; but
/// the sums, and then the gradient, are taken against another maximum after each 64 classes: 5 u for that power, 1 for
/// the product.
TYPED_TEST(CrossEntropy, IsTheDefinitionInDoubleForEveryInstructionSet) {
  using T = TypeParam;
  const double u = std::is_same_v<T, float> ? 0x1p-24 : 0x1p-53;
  for (const auto& [table, lie] : cases()) {
    for (const std::int64_t classes : {1, 2, 10, 15, 16, 17, 100, 4096}) {
      for (const double spread : {0.5, 20.0, 400.0}) {
        for (const double smoothing : {0.0, 0.1}) {
          Rows<T> r(5, classes, spread);
          const double scale = 0.2;
          r.run(*table, lie, smoothing, scale);
          for (std::int64_t row = 0; row < r.rows; ++row) {
            const auto at = [&](std::int64_t c) { return static_cast<std::size_t>(row * classes + c); };
            long double most = -std::numeric_limits<long double>::infinity(), sum = 0, target = 0, absolute = 0,
                        off = 0;
            for (std::int64_t c = 0; c < classes; ++c) most = std::max(most, static_cast<long double>(r.logits[at(c)]));
            const auto q = [&](std::int64_t c) {
              return (c == r.labels[static_cast<std::size_t>(row)] ? 1 - smoothing : 0) +
                     smoothing / static_cast<double>(classes);
            };
            for (std::int64_t c = 0; c < classes; ++c) {
              const long double d = r.logits[at(c)] - most, power = std::exp(d);
              sum += power;
              off += power * (-d + 4) * u;
              target += q(c) * r.logits[at(c)];
              absolute += std::abs(q(c) * r.logits[at(c)]);
            }
            const bool tile = lie != Lie::rows;
            const double additions =
                tile ? 32 + 5.0 * static_cast<double>(classes / 64) : static_cast<double>(classes) / 4 + 16;
            const long double of_sum = off / sum + additions * u;
            const double expected = static_cast<double>(most + std::log(sum) - target);
            // the loss itself is formed in double, from at most `classes` + 4 terms
            const double in_double = static_cast<double>(std::abs(most) + absolute + std::abs(std::log(sum))) *
                                     static_cast<double>(classes + 4) * 0x1p-53;
            ASSERT_NEAR(r.loss[static_cast<std::size_t>(row)], expected, static_cast<double>(of_sum) + in_double)
                << table->isa << ", " << classes << " classes, spread " << spread;
            for (std::int64_t c = 0; c < classes; ++c) {
              const long double d = r.logits[at(c)] - most, p = std::exp(d) / sum;
              const long double least = std::numeric_limits<T>::denorm_min() * (1 + 1 / sum);
              const long double bound =
                  scale * p * ((-d + 4) * u + of_sum + (tile ? 9 : 3) * u) + 3 * u * scale * (p + q(c)) + least;
              ASSERT_NEAR(r.gradient[at(c)], static_cast<double>(scale * (p - q(c))), static_cast<double>(bound))
                  << table->isa << ", " << classes << " classes, spread " << spread << ", logit " << c;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(CrossEntropy, KeepsWhatIsNotFinite) {
  using T = TypeParam;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const auto& [table, lie] : cases()) {
    for (const std::int64_t classes : {3, 16, 40}) {
      for (const T bad : {nan, infinity}) {
        Rows<T> r(3, classes, 1);
        r.logits[static_cast<std::size_t>(classes + 1)] = bad;
        r.run(*table, lie, 0, 1);
        EXPECT_TRUE(std::isfinite(r.loss[0])) << table->isa;
        EXPECT_TRUE(std::isnan(r.loss[1])) << table->isa << ", " << classes << " classes, " << bad;
        EXPECT_TRUE(std::isfinite(r.loss[2])) << table->isa;
      }
      // A class that is ruled out has no share and no gradient.
      Rows<T> r(1, classes, 1);
      r.labels = {0};
      r.logits[2] = -infinity;
      r.run(*table, lie, 0, 1);
      EXPECT_TRUE(std::isfinite(r.loss[0])) << table->isa;
      EXPECT_EQ(r.gradient[2], 0);
    }
  }
}

/// Logits that rise from block to block of a tile, fall, or are ruled out at first.
TYPED_TEST(CrossEntropy, TakesLogitsInAnyOrder) {
  using T = TypeParam;
  for (const auto& [table, lie] : cases()) {
    constexpr std::int64_t kRows = 20, kMany = 300;
    Rows<T> r(kRows, kMany, 1);
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t c = 0; c < kMany; ++c) {
        T& x = r.logits[static_cast<std::size_t>(row * kMany + c)];
        const auto step = static_cast<T>(c) / 8;
        x += row % 3 == 0 ? step : row % 3 == 1 ? -step : T(0);
        if (row % 3 == 2 && c < 150) x = -std::numeric_limits<T>::infinity();
      }
      r.labels[static_cast<std::size_t>(row)] = kMany - 1 - row;
    }
    r.run(*table, lie, 0, 1);
    const double u = std::is_same_v<T, float> ? 0x1p-24 : 0x1p-53;
    for (std::int64_t row = 0; row < kRows; ++row) {
      const T* const x = r.logits.data() + row * kMany;
      const T most = *std::max_element(x, x + kMany);
      long double sum = 0;
      for (std::int64_t c = 0; c < kMany; ++c) sum += std::exp(static_cast<long double>(x[c] - most));
      for (std::int64_t c = 0; c < kMany; ++c) {
        const auto label = r.labels[static_cast<std::size_t>(row)];
        const auto expected =
            static_cast<double>(std::exp(static_cast<long double>(x[c] - most)) / sum - (c == label ? 1 : 0));
        const double d = std::isinf(x[c]) ? 0 : static_cast<double>(most - x[c]);
        ASSERT_NEAR(r.gradient[static_cast<std::size_t>(row * kMany + c)], expected, (2 * d + 400) * u)
            << table->isa << ", row " << row << ", class " << c;
      }
    }
  }
}

/// As argmax has it: of equal ones the first.
TYPED_TEST(CrossEntropy, CountsALabelAsCorrectWhereItIsTheFirstLargest) {
  using T = TypeParam;
  for (const auto& [table, lie] : cases()) {
    constexpr std::int64_t kMany = 200;
    Rows<T> r(5, kMany, 0);  // all logits are 0
    r.labels = {0, 1, 70, 140, 140};
    const auto at = [](std::int64_t row, std::int64_t c) { return static_cast<std::size_t>(row * kMany + c); };
    r.logits[at(2, 70)] = 1;
    r.logits[at(2, 150)] = 1;
    r.logits[at(3, 70)] = 1;
    r.logits[at(3, 140)] = 1;
    r.logits[at(4, 140)] = 1;
    r.run(*table, lie, 0.1, 1);
    EXPECT_EQ(r.correct, (std::vector<std::uint8_t>{1, 0, 1, 0, 1})) << table->isa;
  }
}

TYPED_TEST(CrossEntropy, WritesNoGradientThatNobodyAskedFor) {
  using T = TypeParam;
  for (const auto& [table, lie] : cases()) {
    Rows<T> with(4, 33, 2), without(4, 33, 2);
    with.run(*table, lie, 0.1, 1);
    without.run(*table, lie, 0.1, 1, /*want_gradient=*/false);
    EXPECT_EQ(with.loss, without.loss) << table->isa;
  }
}

}  // namespace
}  // namespace espalier::kernels
