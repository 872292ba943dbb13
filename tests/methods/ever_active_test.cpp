#include "espalier/methods/ever_active.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "espalier/core/error.h"

namespace espalier {
namespace {

using Positions = std::vector<std::int64_t>;

Positions random_positions(std::int64_t of, std::int64_t n, std::mt19937_64& random) {
  std::set<std::int64_t> drawn;
  std::uniform_int_distribution<std::int64_t> one(0, of - 1);
  while (static_cast<std::int64_t>(drawn.size()) < n) drawn.insert(one(random));
  return {drawn.begin(), drawn.end()};
}

EverActive first(std::int64_t positions, const Positions& active) {
  return {positions, active.data(), static_cast<std::int64_t>(active.size())};
}
void add(EverActive& ever, const Positions& active) {
  ever.add(active.data(), static_cast<std::int64_t>(active.size()));
}

TEST(EverActive, CountsEveryPositionOfSmallWeights) {
  std::mt19937_64 random(3);
  for (const std::int64_t positions :
       {std::int64_t{1}, std::int64_t{70}, std::int64_t{785 * 300}, std::int64_t{1} << 20}) {
    std::set<std::int64_t> seen;
    std::optional<EverActive> ever;
    for (int change = 0; change < 5; ++change) {
      const Positions active = random_positions(positions, (positions + 9) / 10, random);
      seen.insert(active.begin(), active.end());
      if (ever)
        add(*ever, active);
      else
        ever = first(positions, active);
      EXPECT_EQ(ever->count(), static_cast<std::int64_t>(seen.size())) << positions;
    }
  }
}

// 4096 x 4096: 16 positions a bit. Of k new ones some k / 16 are in the sample; were they drawn with a coin each, their
// number times 16 would have a standard deviation of sqrt(15 k). Five of those.
void expect_estimate(const EverActive& ever, std::int64_t first, std::int64_t exact) {
  const double bound = 5 * std::sqrt(15.0 * static_cast<double>(exact - first)) + 16;
  EXPECT_NEAR(static_cast<double>(ever.count()), static_cast<double>(exact), bound);
}

TEST(EverActive, EstimatesWhatCameLaterFromASample) {
  constexpr std::int64_t kSide = 4096, kPositions = kSide * kSide;
  std::mt19937_64 random(4);
  const Positions begin = random_positions(kPositions, kPositions / 100, random);
  std::set<std::int64_t> seen(begin.begin(), begin.end());
  EverActive ever = first(kPositions, begin);
  EXPECT_EQ(ever.count(), static_cast<std::int64_t>(begin.size()));  // exact
  for (int change = 0; change < 4; ++change) {
    const std::int64_t before = ever.count();
    const Positions more = random_positions(kPositions, kPositions / 300, random);
    seen.insert(more.begin(), more.end());
    add(ever, more);
    expect_estimate(ever, static_cast<std::int64_t>(begin.size()), static_cast<std::int64_t>(seen.size()));
    EXPECT_GE(ever.count(), before);
    add(ever, begin);  // returns: nothing new
    expect_estimate(ever, static_cast<std::int64_t>(begin.size()), static_cast<std::int64_t>(seen.size()));
  }
}

// A method may prefer rows, columns or blocks.
TEST(EverActive, SamplesRowsColumnsAndBlocksAlike) {
  constexpr std::int64_t kSide = 4096, kPositions = kSide * kSide;
  const Positions none;
  for (const auto& [rows, columns] :
       {std::pair<std::int64_t, std::int64_t>{1, kSide}, {kSide, 1}, {16, kSide}, {kSide, 16}, {64, 64}, {700, 3}}) {
    for (const std::int64_t corner : {std::int64_t{0}, std::int64_t{777}}) {
      Positions block;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c)
          block.push_back((r + (rows < kSide ? corner : 0)) % kSide * kSide +
                          (c + (columns < kSide ? corner : 0)) % kSide);
      EverActive ever = first(kPositions, none);
      add(ever, block);
      expect_estimate(ever, 0, rows * columns);
    }
  }
}

TEST(EverActive, IsAllOfAWeightThatWasDense) {
  for (const std::int64_t positions : {std::int64_t{1000}, std::int64_t{3'000'001}}) {
    EverActive ever = EverActive::all(positions);
    EXPECT_EQ(ever.count(), positions);
    add(ever, {0, 5, positions - 1});
    EXPECT_EQ(ever.count(), positions);
  }
  EverActive ever = first(3'000'001, {1, 2});
  Positions every(3'000'001);
  for (std::int64_t i = 0; i < 3'000'001; ++i) every[static_cast<std::size_t>(i)] = i;
  add(ever, every);
  EXPECT_LE(ever.count(), 3'000'001);
  expect_estimate(ever, 2, 3'000'001);
}

TEST(EverActive, IsLeftOutWhereASampleWouldHoldTooFew) {
  EXPECT_TRUE(EverActive::counts(1 << 20, 1));
  EXPECT_TRUE(EverActive::counts(std::int64_t{1} << 34, std::int64_t{1} << 27));
  EXPECT_FALSE(EverActive::counts(std::int64_t{1} << 34, (std::int64_t{1} << 27) - 1));
}

TEST(EverActive, GoesOnAfterARestart) {
  std::mt19937_64 random(6);
  for (const std::int64_t positions : {std::int64_t{1000}, std::int64_t{5'000'000}}) {
    EverActive ever = first(positions, random_positions(positions, positions / 10, random));
    add(ever, random_positions(positions, positions / 10, random));
    NamedTensors saved;
    ever.archive("fc.ever_active", saved);
    std::optional<EverActive> again = EverActive::restored("fc.ever_active", positions, saved);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->count(), ever.count());
    const Positions more = random_positions(positions, positions / 10, random);
    add(ever, more);
    add(*again, more);
    EXPECT_EQ(again->count(), ever.count());
    EXPECT_FALSE(EverActive::restored("other.ever_active", positions, saved));
    EXPECT_THROW(EverActive::restored("fc.ever_active", positions == 1000 ? 2000 : 1000, saved), Error);
  }
}

// Programs before this one saved a bit for each position, of large weights too.
TEST(EverActive, TakesABitForEachPosition) {
  constexpr std::int64_t kPositions = 3'000'001;
  std::mt19937_64 random(7);
  const Positions active = random_positions(kPositions, 200'000, random);
  BitMask bits(kPositions);
  for (const std::int64_t p : active) bits.set(p, true);
  const NamedTensors saved = {{"fc.ever_active", torch::from_blob(const_cast<std::uint64_t*>(bits.words()),
                                                                  {(kPositions + 63) / 64}, torch::kInt64)}};
  std::optional<EverActive> ever = EverActive::restored("fc.ever_active", kPositions, saved);
  ASSERT_TRUE(ever);
  EXPECT_EQ(ever->count(), 200'000);
  add(*ever, active);
  EXPECT_EQ(ever->count(), 200'000);
}

}  // namespace
}  // namespace espalier
