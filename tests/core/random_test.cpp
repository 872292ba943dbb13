#include "espalier/core/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "espalier/core/error.h"

namespace espalier {
namespace {

// Known answers published with the reference implementation of Philox4x32-10 (Random123, kat_vectors).
TEST(Philox, MatchesThePublishedKnownAnswers) {
  using A4 = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (A4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (A4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (A4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, EveryPartOfItsNameMatters) {
  std::set<std::uint64_t> first;
  for (std::uint64_t seed : {0, 1})
    for (Purpose purpose : {Purpose::init, Purpose::topology})
      for (std::uint64_t a : {0, 1, 2})
        for (std::uint64_t b : {0, 1, 2}) first.insert(RandomStream(seed, purpose, a, b).bits_at(0));
  EXPECT_EQ(first.size(), 2u * 2 * 3 * 3);
}

TEST(RandomStream, SequentialNumbersAreTheIndexedOnes) {
  RandomStream s(7, Purpose::test);
  const RandomStream fixed(7, Purpose::test);
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(s.bits(), fixed.bits_at(i));
}

TEST(RandomStream, MomentsOfUniformAndNormalNumbers) {
  const RandomStream s(3, Purpose::test);
  const int n = 200000;
  double u1 = 0, u2 = 0, z1 = 0, z2 = 0, z4 = 0;
  for (int i = 0; i < n; ++i) {
    const double u = s.uniform_at(static_cast<std::uint64_t>(i));
    const double z = s.normal_at(static_cast<std::uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    u1 += u;
    u2 += u * u;
    z1 += z;
    z2 += z * z;
    z4 += z * z * z * z;
  }
  // Five standard errors: sqrt(Var / n) with Var(u) = 1/12, Var(u^2) = 4/45, Var(z) = 1, Var(z^2) = 2, Var(z^4) = 96.
  const double root = std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(u1 / n, 1.0 / 2, 5 * std::sqrt(1.0 / 12) / root);
  EXPECT_NEAR(u2 / n, 1.0 / 3, 5 * std::sqrt(4.0 / 45) / root);
  EXPECT_NEAR(z1 / n, 0, 5 / root);
  EXPECT_NEAR(z2 / n, 1, 5 * std::sqrt(2.0) / root);
  EXPECT_NEAR(z4 / n, 3, 5 * std::sqrt(96.0) / root);
}

TEST(RandomStream, BelowIsExactForSmallRanges) {
  RandomStream s(5, Purpose::test);
  std::map<std::uint64_t, int> counts;
  for (int i = 0; i < 60000; ++i) ++counts[s.below(6)];
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [value, count] : counts) EXPECT_NEAR(count, 10000, 5 * std::sqrt(60000 * (1.0 / 6) * (5.0 / 6)));
}

TEST(RandomPermutation, HoldsEveryNumberOnce) {
  auto p = random_permutation(1000, RandomStream(1, Purpose::test));
  EXPECT_NE(p[0] * 1000000 + p[1] * 1000 + p[2], 1002);  // not the identity
  std::sort(p.begin(), p.end());
  for (std::int64_t i = 0; i < 1000; ++i) EXPECT_EQ(p[static_cast<std::size_t>(i)], i);
}

TEST(RandomSubset, HasExactlyKDifferentSortedMembersAndIsUniform) {
  for (std::int64_t k : {0, 1, 3, 5, 9, 10}) {
    const auto s = random_subset(10, k, RandomStream(2, Purpose::test));
    ASSERT_EQ(static_cast<std::int64_t>(s.size()), k);
    EXPECT_EQ(std::set<std::int64_t>(s.begin(), s.end()).size(), s.size());
    EXPECT_TRUE(std::is_sorted(s.begin(), s.end()));
  }
  std::map<std::vector<std::int64_t>, int> counts;  // the 10 subsets of 3 out of 5, and the complement path of 4 of 5
  for (std::uint64_t t = 0; t < 20000; ++t) ++counts[random_subset(5, 3, RandomStream(2, Purpose::test, t))];
  ASSERT_EQ(counts.size(), 10u);
  for (const auto& [subset, count] : counts) EXPECT_NEAR(count, 2000, 5 * std::sqrt(20000 * 0.1 * 0.9));
}

TEST(RandomStream, BelowAtIsExactForSmallRangesAndAFunctionOfTheIndex) {
  const RandomStream s(5, Purpose::test);
  std::map<std::uint64_t, int> counts;
  for (std::uint64_t i = 0; i < 60000; ++i) ++counts[s.below_at(i, 6)];
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [value, count] : counts) EXPECT_NEAR(count, 10000, 5 * std::sqrt(60000 * (1.0 / 6) * (5.0 / 6)));
  // Of 2^63 + 2^62 numbers a quarter of all draws fit twice: without rejection the lower half would come too often.
  const std::uint64_t n = 3ull << 62;
  int low = 0;
  for (std::uint64_t i = 0; i < 60000; ++i) low += s.below_at(i, n) < n / 2;
  EXPECT_NEAR(low, 30000, 5 * std::sqrt(60000 * 0.25));
  EXPECT_EQ(s.below_at(7, 1), 0u);
}

// Few and many, both sides of a half, with several rounds of drawing again.
TEST(RandomSubset, AnyNumberOfThreadsGivesTheSame) {
  for (const std::int64_t k : {0, 1, 1000, 30000, 90000, 100000}) {
    const RandomStream random(3, Purpose::test, static_cast<std::uint64_t>(k));
    const auto one = random_subset(100000, k, random);
    ASSERT_EQ(static_cast<std::int64_t>(one.size()), k);
    for (std::size_t i = 0; i < one.size(); ++i) {
      ASSERT_TRUE(one[i] >= 0 && one[i] < 100000 && (i == 0 || one[i] > one[i - 1])) << i;
    }
    for (const int threads : {2, 3, 8}) EXPECT_EQ(random_subset(100000, k, random, threads), one) << k;
  }
}

TEST(RandomSubset, IsTheDifferentOnesOfAsManyDrawsAsItTakes) {
  // 1040 and 1041 of 100,000: a sorted list, and a bit for each number; from 50,001 on those left out are drawn.
  const std::int64_t n = 100000;
  for (const std::int64_t k : {1, 1000, 1040, 1041, 1562, 30000, 50000, 50001, 99990}) {
    const RandomStream random(4, Purpose::test, static_cast<std::uint64_t>(k));
    const auto wanted = static_cast<std::size_t>(std::min(k, n - k));
    std::set<std::int64_t> drawn;
    for (std::uint64_t i = 0; drawn.size() < wanted; ++i)
      drawn.insert(static_cast<std::int64_t>(random.below_at(i, n)));
    std::vector<std::int64_t> expected;
    for (std::int64_t v = 0; v < n; ++v)
      if ((drawn.count(v) == 1) == (k <= n / 2)) expected.push_back(v);
    EXPECT_EQ(random_subset(n, k, random, 3), expected) << k;
  }
}

TEST(RandomSubset, TooManyIsAnError) { EXPECT_THROW(random_subset(3, 4, RandomStream(2, Purpose::test)), Error); }

}  // namespace
}  // namespace espalier
