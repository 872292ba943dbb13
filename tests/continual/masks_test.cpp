#include "espalier/continual/masks.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <numeric>

#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier::continual {
namespace {

std::vector<std::int64_t> ones(const BitMask& mask) { return mask.positions(); }

TEST(PackNet, HalfOfWhatIsFreeIs500Then250Then125) {
  std::int64_t free = 1000;
  for (const std::int64_t kept : {500, 250, 125}) {
    EXPECT_EQ(packnet_kept(free, 0.5), kept);
    free -= kept;
  }
  EXPECT_EQ(free, 125);
}

TEST(PackNet, HalvesRoundToEvenAsInPython3) {
  EXPECT_EQ(packnet_kept(5, 0.5), 3);   // round(2.5) = 2 go; std::round would let 3 go
  EXPECT_EQ(packnet_kept(7, 0.5), 3);   // round(3.5) = 4
  EXPECT_EQ(packnet_kept(3, 0.25), 1);  // round(2.25) = 2
  EXPECT_EQ(packnet_kept(1, 0.25), 0);
  EXPECT_EQ(packnet_kept(10, 1), 10);
  EXPECT_EQ(packnet_kept(10, 0), 0);
}

TEST(PackNet, TenEqualSharesAreATenthEach) {
  std::int64_t free = 1000;
  for (std::int64_t t = 1; t <= 10; ++t) {
    const std::int64_t kept = equal_share(1000, t, 10);
    EXPECT_EQ(kept, 100);
    // The same as pruning 9/10, 8/9, 7/8, … of what is free.
    EXPECT_EQ(packnet_kept(free, 1.0 / static_cast<double>(11 - t)), 100);
    free -= kept;
  }
  EXPECT_EQ(free, 0);
}

TEST(PackNet, EqualSharesAddUpWhateverTheSizes) {
  EXPECT_EQ(equal_share(1000, 1, 3), 333);
  EXPECT_EQ(equal_share(1000, 2, 3), 333);
  EXPECT_EQ(equal_share(1000, 3, 3), 334);
  for (const std::int64_t n : {1, 2, 9, 10, 27, 1000003}) {
    for (const std::int64_t tasks : {1, 2, 3, 7, 50}) {
      std::int64_t sum = 0, low = n, high = 0;
      for (std::int64_t t = 1; t <= tasks; ++t) {
        const std::int64_t share = equal_share(n, t, tasks);
        sum += share;
        low = std::min(low, share);
        high = std::max(high, share);
      }
      EXPECT_EQ(sum, n);
      EXPECT_LE(high - low, 1);
    }
  }
  EXPECT_THROW(equal_share(10, 4, 3), Error);
}

TEST(MaskSize, IsTheFloorOfTheProductAndNotOfItsRounding) {
  EXPECT_EQ(mask_size(0.2, 266200), 53240);
  EXPECT_EQ(mask_size(0.29, 100), 29);  // 28.999999999999996 in floating point
  EXPECT_EQ(mask_size(0.57, 100), 57);  // 56.99999999999999
  EXPECT_EQ(mask_size(0.1, 1794000), 179400);
  EXPECT_EQ(mask_size(0.35, 10), 3);
  EXPECT_EQ(mask_size(0.1, 9), 0);
  EXPECT_EQ(mask_size(0.999999, 1000), 999);
  EXPECT_EQ(mask_size(1, 7), 7);
  EXPECT_EQ(mask_size(0, 7), 0);
  EXPECT_THROW(mask_size(1.5, 7), Error);
}

TEST(Largest, TakesTheTopOfAllLayersTogetherOrOfEach) {
  const std::vector<at::Tensor> scores = {torch::tensor({5.f, 1.f, 4.f, 1.f}).view({2, 2}),
                                          torch::tensor({9.f, 8.f, 7.f, 6.f}).view({2, 2})};
  const std::vector<std::vector<std::int64_t>> shapes = {{2, 2}, {2, 2}};
  const Masks global = largest(scores, shapes, 0.5, "global");
  EXPECT_EQ(ones(global[0]), (std::vector<std::int64_t>{}));
  EXPECT_EQ(ones(global[1]), (std::vector<std::int64_t>{0, 1, 2, 3}));
  const Masks uniform = largest(scores, shapes, 0.5, "uniform");
  EXPECT_EQ(ones(uniform[0]), (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(ones(uniform[1]), (std::vector<std::int64_t>{0, 1}));
  const Masks tie = largest(scores, shapes, 0.875, "global");  // 7 of 8: of the two ones, the lower position
  EXPECT_EQ(ones(tie[0]), (std::vector<std::int64_t>{0, 1, 2}));
}

TEST(Largest, HasTheSizeOfTheFloorForEveryDistribution) {
  std::vector<at::Tensor> scores;
  std::vector<std::vector<std::int64_t>> shapes = {{7, 13}, {3, 7}, {5, 3, 3, 3}};
  std::int64_t all = 0;
  for (const auto& shape : shapes) {
    scores.push_back(torch::rand(shape));
    all += scores.back().numel();
  }
  for (const char* distribution : {"global", "uniform", "er", "erk"}) {
    for (const double share : {0.0, 0.01, 0.2, 0.33, 0.9, 1.0}) {
      std::int64_t count = 0;
      for (const BitMask& mask : largest(scores, shapes, share, distribution)) count += mask.count();
      EXPECT_EQ(count, mask_size(share, all)) << distribution << " " << share;
    }
  }
}

TEST(Search, TheLastMaskThatPassedIsUsedAndNotTheOneThatFailed) {
  std::vector<double> tried;
  const auto accuracy = [&](double rate) {
    tried.push_back(rate);
    return rate >= 0.2 ? 0.95 : 0.5;
  };
  const Found found = search_list({0.05, 0.1, 0.2, 0.5}, 0.9, accuracy);
  EXPECT_EQ(found.keep_rate, 0.2);
  EXPECT_EQ(tried, (std::vector<double>{0.5, 0.2, 0.1}));  // stops at the first failure
  EXPECT_EQ(found.trials.size(), 3u);
  EXPECT_TRUE(found.trials[1].passed);
  EXPECT_FALSE(found.trials[2].passed);
}

TEST(Search, ReachingTheTargetExactlyPasses) {
  EXPECT_EQ(search_list({0.1}, 0.9, [](double) { return 0.9; }).keep_rate, 0.1);
}

TEST(Search, NothingPasses) {
  const Found found = search_list({0.1, 0.2}, 0.9, [](double) { return 0.1; });
  EXPECT_FALSE(found.keep_rate);
  EXPECT_EQ(found.trials.size(), 1u);
  EXPECT_FALSE(search_binary(0.1, 0.2, 5, 0.9, [](double) { return 0.1; }).keep_rate);
}

TEST(Search, BisectionByHand) {
  std::vector<double> tried;
  const Found found = search_binary(0, 1, 4, 0.9, [&](double rate) {
    tried.push_back(rate);
    return rate >= 0.3 ? 1.0 : 0.0;
  });
  EXPECT_EQ(tried, (std::vector<double>{1, 0.5, 0.25, 0.375, 0.3125}));
  EXPECT_EQ(found.keep_rate, 0.3125);
}

TEST(Masks, SetsByHand) {
  BitMask a(70), b(70);
  for (const int i : {0, 3, 64, 69}) a.set(i, true);
  for (const int i : {3, 5, 69}) b.set(i, true);
  EXPECT_EQ(ones(any_of({&a, &b}, 70)), (std::vector<std::int64_t>{0, 3, 5, 64, 69}));
  EXPECT_EQ(ones(minus(a, b)), (std::vector<std::int64_t>{0, 64}));
  EXPECT_EQ(overlap(a, b), 2);
  EXPECT_EQ(inverse(a).count(), 66);
  EXPECT_FALSE(inverse(a).test(64));
  EXPECT_EQ(positions(b).sum().item<std::int64_t>(), 77);
  EXPECT_EQ(bytes(b, {7, 10}).sum().item<std::int64_t>(), 3);
}

}  // namespace
}  // namespace espalier::continual
