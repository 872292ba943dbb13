#include "espalier/core/bitmask.h"

#include <gtest/gtest.h>

#include <bitset>

#include "espalier/core/random.h"

namespace espalier {
namespace {

TEST(CountOnes, CountsEveryBitOfAWord) {
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(count_ones(std::uint64_t{1} << i), 1) << i;
    EXPECT_EQ(count_ones(~std::uint64_t{0} >> i), 64 - i) << i;
  }
  EXPECT_EQ(count_ones(0), 0);
  const RandomStream random(1, Purpose::test);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const std::uint64_t word = random.bits_at(i);
    ASSERT_EQ(count_ones(word), static_cast<int>(std::bitset<64>(word).count())) << word;
  }
}

}  // namespace
}  // namespace espalier
