#include "espalier/train/weight_record.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "espalier/methods/registry.h"

namespace espalier::train {
namespace {

struct OneLayer : torch::nn::Module {
  explicit OneLayer(const std::vector<float>& w)
      : fc(register_module("fc", torch::nn::Linear(static_cast<std::int64_t>(w.size()), 1))) {
    const torch::NoGradGuard no_grad;
    fc->weight.copy_(torch::tensor(w).view({1, -1}));
  }
  torch::nn::Linear fc;
};

Json layer_of(const std::vector<float>& w) {
  OneLayer net(w);
  const Sparsifier sparsifier(net, make_method("dense"), Reparametrisation(), SparsifierOptions());
  return weight_record(sparsifier)["layers"].at(0);
}

TEST(WeightRecord, CountsByHand) {
  // The largest root is that of 2.25, 1.5: the range of roots is [-2, 2), a bin is 1/64 wide and bin 128 begins at 0.
  const Json row = layer_of({-2.25F, 0, 1.0F / 16384, 1.0F / 4096, 0.25F, 2.25F});
  EXPECT_EQ(row["name"], "fc.weight");
  EXPECT_EQ(row["shape"], Json::array({1, 6}));
  EXPECT_EQ(row["nnz"], 6);
  EXPECT_EQ(row["near_zero"], 3);
  EXPECT_EQ(row["scale"], 1);
  EXPECT_EQ(row["first"], 128 - 96);
  const auto counts = row["counts"].get<std::vector<std::int64_t>>();
  ASSERT_EQ(counts.size(), 96U + 96 + 1);
  EXPECT_EQ(counts[0], 1);
  EXPECT_EQ(counts[96], 2);       // 0 and 2^-14, whose root is half a bin
  EXPECT_EQ(counts[96 + 1], 1);   // 2^-12: the lower edge of the next
  EXPECT_EQ(counts[96 + 32], 1);  // 0.25
  EXPECT_EQ(counts[96 + 96], 1);
  EXPECT_NEAR(row["mean"].get<double>(), (1.0 / 16384 + 1.0 / 4096 + 0.25) / 6, 1e-12);
  EXPECT_NEAR(row["mean_abs"].get<double>(), (4.5 + 1.0 / 16384 + 1.0 / 4096 + 0.25) / 6, 1e-12);
}

TEST(WeightRecord, EveryValueIsInItsBin) {
  for (const float w : {1.0F, -1.0F, 0.5F, 4.0F, -4.0F, 1e-30F, 1e-45F, -std::numeric_limits<float>::max()}) {
    const Json row = layer_of({w});
    ASSERT_EQ(row["counts"], Json::array({1}));
    const auto edge = [&](std::int64_t bin) {
      const double root = std::ldexp(static_cast<double>(bin) / 128 - 1, row["scale"].get<int>());
      return std::copysign(root * root, root);
    };
    const auto bin = row["first"].get<std::int64_t>();
    EXPECT_GE(bin, 0);
    EXPECT_LT(bin, 256);
    EXPECT_LE(edge(bin), w);
    EXPECT_GT(edge(bin + 1), w);
  }
}

TEST(WeightRecord, WhatIsNotFiniteIsCountedApart) {
  const float inf = std::numeric_limits<float>::infinity();
  const Json row = layer_of({inf, -inf, std::nanf(""), 0.25F});
  EXPECT_EQ(row["not_finite"], 3);
  EXPECT_EQ(row["mean"], 0.25);
  EXPECT_EQ(row["counts"], Json::array({1}));
  const Json nothing = layer_of({inf});
  EXPECT_TRUE(nothing["mean"].is_null());
  EXPECT_FALSE(nothing.contains("counts"));
}

TEST(WeightRecord, OnlyWhatIsKept) {
  OneLayer net({4, -3, 2, -1});
  const Sparsifier sparsifier(net, make_method("static-random"), Reparametrisation(),
                              SparsifierOptions().sparsity(0.5).structure({{"fc.weight", torch::tensor({0, 1})}}));
  const Json row = weight_record(sparsifier)["layers"].at(0);
  EXPECT_EQ(row["nnz"], 2);
  EXPECT_EQ(row["mean"], 0.5);
  EXPECT_EQ(row["mean_abs"], 3.5);
}

TEST(WeightRecord, DueAtBothEndsAndSeldomBetween) {
  const auto records = [](std::int64_t total) {
    std::int64_t n = 0;
    for (std::int64_t step = 0; step <= total; ++step) n += weight_record_due(step, total) ? 1 : 0;
    return n;
  };
  EXPECT_EQ(records(10), 2);
  EXPECT_EQ(records(450), 4);  // 0, 200, 400, 450
  EXPECT_LE(records(100000), 50);
  EXPECT_GE(records(100000), 48);
}

}  // namespace
}  // namespace espalier::train
