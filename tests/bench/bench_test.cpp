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
  EXPECT_GE(t[0].rounds, 5);
  EXPECT_EQ(t[0].rounds, t[1].rounds);
  EXPECT_GE(t[0].median, 2000);  // a sleep is never shorter
  EXPECT_GE(t[1].median, 6000);
  EXPECT_LE(t[1].low, t[1].median);
  EXPECT_LE(t[1].median, t[1].high);
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

}  // namespace
}  // namespace espalier::bench
