#include "espalier/bench/bench.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace espalier::bench {
namespace {

Row row(double sparsity, double sparse_us, double dense_us, const char* pass = "step") {
  Row r;
  r.sparsity = sparsity;
  r.sparse.median = sparse_us;
  r.dense_us = dense_us;
  r.pass = pass;
  return r;
}

TEST(BreakEven, LiesBetweenTheRowsThatItSeparates) {
  // speed-ups 0.5 at 40 %, 0.8 at 60 %, 1.2 at 80 %: halfway between the last two
  EXPECT_NEAR(*break_even({row(0.8, 10, 12), row(0.4, 20, 10), row(0.6, 10, 8), row(0.7, 10, 99, "forward")}, "step"),
              0.7, 1e-12);
  EXPECT_FALSE(break_even({row(0.8, 10, 12), row(0.9, 10, 20)}, "step"));  // faster everywhere
  EXPECT_FALSE(break_even({row(0.8, 12, 10), row(0.9, 20, 10)}, "step"));  // slower everywhere
  EXPECT_FALSE(break_even({row(0.8, 10, 12)}, "backward"));
}

TEST(Measure, TakesTurnsAndFindsMedians) {
  int short_runs = 0, long_runs = 0;
  const auto sleep = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  const auto t = measure({{"short",
                           [&] {
                             ++short_runs;
                             sleep(2);
                           }},
                          {"long",
                           [&] {
                             ++long_runs;
                             sleep(6);
                           }}},
                         0.05);
  ASSERT_EQ(t.size(), 2u);
  EXPECT_GE(t[0].timed, 5);
  EXPECT_EQ(t[0].timed, t[1].timed);
  EXPECT_GE(t[0].median, 2000);  // a sleep is never shorter
  EXPECT_GE(t[1].median, 6000);
  EXPECT_LE(t[1].low, t[1].median);
  EXPECT_LE(t[1].median, t[1].high);
}

TEST(Measure, TimesOnlyWhatATurnSays) {
  int runs = 0;
  // Two runs before the first turn, then turns of two runs that are long and not timed, and three short ones.
  const auto run = [&] {
    const int of_turn = runs++ - 2;
    std::this_thread::sleep_for(std::chrono::milliseconds(of_turn < 0 || of_turn % 5 < 2 ? 100 : 2));
  };
  const auto t = measure({{"", run}}, 0.01, {2, 3});
  EXPECT_EQ(runs - 2, t[0].timed / 3 * 5);
  EXPECT_GE(t[0].timed, 5);
  EXPECT_GE(t[0].low, 2000);
  EXPECT_LT(t[0].high, 100'000);
}

TEST(Measure, ATurnMayLastSomeTime) {
  int runs = 0;
  const auto run = [&] {
    ++runs;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  };
  // Both parts of a turn of 35 ms have four runs where the machine is idle, and never fewer than one. Three turns.
  const auto t = measure({{"", run}}, 0.001, {1, 1, 0.035});
  EXPECT_GE(t[0].timed, 5);
  EXPECT_LE(t[0].timed, 12);
  EXPECT_GE(runs - 2, t[0].timed + 3);
  EXPECT_GE(t[0].low, 10'000);
}

TEST(Measure, HasThreeRoundsHoweverShortTheTime) {
  const auto run = [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  EXPECT_EQ(measure({{"", run}}, 0, {1, 5})[0].timed, 15);
}

TEST(LinearKernels, RowsAreVerifiedAndCounted) {
  LinearCase c;
  c.in = 30;
  c.out = 20;
  c.batch = 70;
  c.sparsity = 0.75;
  const auto rows = bench_linear_kernels(c, 0.02, 1);
  ASSERT_EQ(rows.size(), 3u);
  for (const Row& r : rows) {
    EXPECT_LE(r.error, 1) << r.pass;
    EXPECT_GT(r.error, 0) << r.pass << ": a result without any rounding was not computed";
    // 150 of 600 entries are kept
    EXPECT_NEAR(r.dense_equivalent_gflops / r.sparse_gflops, 4, 1e-9);
  }
  EXPECT_NEAR(rows[1].sparse_gflops * rows[1].sparse.median, 2 * rows[0].sparse_gflops * rows[0].sparse.median, 1e-6);
}

TEST(ConvCase, ReadsAndWritesShapes) {
  const ConvCase plain = conv_case("64x128@32", "--shape");
  EXPECT_EQ(plain.shape.in, 64);
  EXPECT_EQ(plain.shape.out, 128);
  EXPECT_EQ(plain.height, 32);
  EXPECT_EQ(plain.width, 32);
  EXPECT_EQ(plain.shape.kernel[1], 3);
  EXPECT_EQ(plain.shape.padding[0], 1);
  const ConvCase full = conv_case("8x12@7x9:s2:k5:p1:d1:g4", "--shape");
  EXPECT_EQ(full.height, 7);
  EXPECT_EQ(full.width, 9);
  EXPECT_EQ(full.shape.kernel[0], 5);
  EXPECT_EQ(full.shape.stride[1], 2);
  EXPECT_EQ(full.shape.padding[0], 1);
  EXPECT_EQ(full.shape.groups, 4);
  EXPECT_EQ(to_text(full), "8x12@7x9:k5:s2:p1:g4");
  EXPECT_EQ(conv_case("8x8@9:d2", "").shape.padding[0], 2);
  EXPECT_EQ(conv_case("8x8@9:k1", "").shape.padding[0], 0);
  for (const char* text : {"64x128@32", "64x128@32:k1:s2", "8x8@9:k5:p0:d2", "8x8@9:g8"}) {
    EXPECT_EQ(to_text(conv_case(text, "")), text);
  }
}

void expect_verified(const std::vector<Row>& rows, double dense_over_stored) {
  for (const Row& r : rows) {
    EXPECT_LE(r.error, 1) << r.shape << " " << r.pass;
    EXPECT_GT(r.error, 0) << r.pass << ": a result without any rounding was not computed";
    EXPECT_NEAR(r.dense_equivalent_gflops / r.sparse_gflops, dense_over_stored, 1e-6) << r.pass;
    EXPECT_EQ(r.dense_us, r.peers.at(r.dense_path));
    for (const std::string& peer : r.beside) EXPECT_GT(r.peers.at(peer), 0);
  }
}

TEST(ConvKernels, RowsAreVerifiedAndCounted) {
  // strides, padding, dilation and groups as oneDNN, LibTorch and we understand them: each is held against the
  // reference
  for (const char* shape : {"4x8@6", "4x8@7x5:s2", "6x6@5:g6", "8x4@9:k5:d2:g2", "8x8@5:k1:s2", "4x4@6:p0"}) {
    ConvCase c = conv_case(shape, "");
    c.batch = 18;
    c.sparsity = 0.5;
    const auto rows = bench_conv_kernels(c, 0.01, 1);
    ASSERT_EQ(rows.size(), 3u);
    expect_verified(rows, 2);  // all these weights have an even number of entries
    EXPECT_EQ(rows[0].shape, shape);
    EXPECT_EQ(rows[0].peers.count("oneDNN direct"), 1u);
    EXPECT_EQ(rows[2].peers.count("fastest of each pass"), 1u);
  }
}

TEST(ConvLayer, RowsAreVerifiedAndCounted) {
  ConvCase c = conv_case("4x8@7:s2", "");
  c.batch = 5;
  c.sparsity = 0.75;
  const auto rows = bench_conv_layer(c, 0.01, 1);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].pass, "forward");
  EXPECT_EQ(rows[1].pass, "step");
  expect_verified(rows, 4);
}

TEST(Model, RowsAreVerifiedAndCounted) {
  ModelCase c;
  c.model = "mlp";
  c.widths = {12, 8, 6};
  c.batch = 5;
  c.sparsity = 0.5;
  auto rows = bench_model(c, 0.01, 1);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].pass, "inference");
  EXPECT_EQ(rows[1].pass, "step");
  EXPECT_EQ(rows[0].shape, "12-8-6");
  expect_verified(rows, 2);
  // 72 kept of 144 multiply-adds a sample forward; the first layer forms no input gradient: 2 x 48 + 3 x 24 kept
  EXPECT_NEAR(rows[0].sparse_gflops * rows[0].sparse.median * 1e3, 2 * 5 * 72, 1e-6);
  EXPECT_NEAR(rows[1].sparse_gflops * rows[1].sparse.median * 1e3, 2 * 5 * 168, 1e-6);

  c = ModelCase();
  c.model = "cifar10-cnn";
  c.batch = 3;
  c.sparsity = 0.5;
  c.inference = false;
  c.rewire_every = 100;
  rows = bench_model(c, 0.01, 1);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].peers.count("LibTorch dense channels_last"), 1u);
  EXPECT_NEAR(rows[2].sparse.median, rows[0].sparse.median + rows[1].sparse.median / 100, 1e-9);
}

}  // namespace
}  // namespace espalier::bench
