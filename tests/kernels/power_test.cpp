#include "espalier/kernels/power.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "kernels/runnable.h"

namespace espalier::kernels {
namespace {

// Powers of numbers worked out by hand: sign, value and derivative (alpha |phi|^(alpha-1)).
struct Known {
  double phi, alpha, psi, derivative;
};
const Known kKnown[] = {
    {0.5, 1, 0.5, 1},
    {0.5, 1.25, 0.42044821, 1.05112052},
    {0.5, 1.5, 0.35355339, 1.06066017},
    {0.5, 2, 0.25, 1},
    {0.5, 3, 0.125, 0.75},
    {0.5, 4, 0.0625, 0.5},
    {0.5, 5, 0.03125, 0.3125},
    {-2, 1.25, -2.37841423, 1.48650889},
    {-2, 1.5, -2.82842712, 2.12132034},
    {-2, 2, -4, 4},
    {-2, 3, -8, 12},
    {-2, 4, -16, 32},
    {-2, 5, -32, 80},
    {0.1, 1.25, 0.05623413, 0.70292666},
    {0.1, 1.5, 0.03162278, 0.47434165},
    {0.1, 2, 0.01, 0.2},
    {0.1, 3, 0.001, 0.03},
    {0.1, 4, 0.0001, 0.004},
};

template <class T>
T push_one(const Table& table, T phi, double alpha) {
  T w = -1;
  table.power<T>().push(&phi, nullptr, alpha, &w, 0, 1);
  return w;
}

template <class T>
T slope_one(const Table& table, T phi, double alpha) {
  T g = 1;
  table.power<T>().pull(&phi, nullptr, alpha, 0, &g, 0, 1);
  return g;
}

TEST(Power, ReproducesTheHandWorkedNumbers) {
  for (const Table* t : runnable()) {
    for (const Known& k : kKnown) {
      EXPECT_NEAR(push_one<double>(*t, k.phi, k.alpha), k.psi, 5e-9) << t->isa << " alpha " << k.alpha;
      EXPECT_NEAR(slope_one<double>(*t, k.phi, k.alpha), k.derivative, 5e-9) << t->isa << " alpha " << k.alpha;
      EXPECT_NEAR(push_one<float>(*t, static_cast<float>(k.phi), k.alpha), k.psi, 3e-7 * std::fabs(k.psi) + 5e-9);
    }
  }
}

// |x|^p in single precision against the library's in double. Quarter powers take at most five rounded products and two
// roots (each half an ulp, 6e-8): 4e-7 is a bound. The general power has an error of about 1e-7 in p log2(m) per unit
// of p, |log2 m| <= 1/2, beside the fixed 3e-7: below 4e-7 + 4e-8 p.
TEST(Power, StaysWithinItsErrorBoundOverTheWholeRange) {
  for (const Table* t : runnable()) {
    for (const double alpha :
         {1.25, 1.5, 1.75, 2.0, 2.25, 3.5, 4.0, 5.0, 1.01, 1.3, 1.7, 2.1, 2.718281828, 3.3333, 6.5, 16.0}) {
      double worst = 0;
      int compared = 0;
      for (double exponent = -37; exponent < 37; exponent += 0.0173) {
        const auto x = static_cast<float>(std::pow(10.0, exponent));
        const double exact = alpha * std::pow(static_cast<double>(x), alpha - 1);
        if (exact < 1.2e-38 || exact > 3e38) continue;  // results that single precision holds with all their bits
        worst = std::max(worst, std::fabs(slope_one<float>(*t, x, alpha) / exact - 1));
        ++compared;
      }
      EXPECT_GT(compared, 200);
      EXPECT_LT(worst, 4.6e-7 + 4e-8 * alpha)
          << t->isa << " alpha " << alpha;  // the bound, and one rounding of the factor alpha
    }
  }
}

TEST(Power, ZeroStaysZeroAndNothingIsNotANumber) {
  for (const Table* t : runnable()) {
    for (const double alpha : {1.0, 1.25, 1.3, 1.5, 2.0, 3.0, 3.7}) {
      for (const float zero : {0.0f, -0.0f}) {
        EXPECT_EQ(push_one<float>(*t, zero, alpha), 0.0f) << t->isa << " " << alpha;
        EXPECT_EQ(slope_one<float>(*t, zero, alpha), alpha == 1 ? 1.0f : 0.0f) << t->isa << " " << alpha;
        EXPECT_EQ(slope_one<double>(*t, zero, alpha), alpha == 1 ? 1.0 : 0.0) << t->isa << " " << alpha;
      }
    }
  }
}

TEST(Power, DivergedWeightsStayVisible) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const Table* t : runnable()) {
    for (const double alpha : {1.5, 2.0, 2.3}) {
      EXPECT_TRUE(std::isnan(push_one<float>(*t, nan, alpha))) << t->isa << " " << alpha;
      EXPECT_EQ(push_one<float>(*t, -inf, alpha), -inf) << t->isa << " " << alpha;
      EXPECT_EQ(push_one<float>(*t, 1e30f, 16), inf);
    }
    EXPECT_EQ(push_one<float>(*t, 1e-30f, 7.3), 0.0f);                           // underflow, not garbage
    EXPECT_NEAR(push_one<float>(*t, 1e-40f, 1.3) / std::pow(1e-40, 1.3), 1, 1);  // subnormal in, subnormal or zero out
  }
}

TEST(Power, AlphaOneIsTheIdentityToTheBit) {
  const RandomStream random(1, Purpose::test);
  for (const Table* t : runnable()) {
    for (std::uint64_t i = 0; i < 200; ++i) {
      const auto x = static_cast<float>(random.normal_at(i));
      EXPECT_EQ(push_one<float>(*t, x, 1), x);
      EXPECT_EQ(slope_one<float>(*t, x, 1), 1.0f);
    }
  }
}

/// Sizes around the block (32) and word (64) borders.
const std::int64_t kSizes[] = {1, 31, 32, 33, 63, 64, 65, 130, 1000};

BitMask random_mask(std::int64_t n, std::uint64_t seed) {
  BitMask mask(n);
  const RandomStream random(seed, Purpose::test, 7);
  for (std::int64_t i = 0; i < n; ++i) mask.set(i, random.uniform_at(static_cast<std::uint64_t>(i)) < 0.4);
  return mask;
}

std::vector<float> random_values(std::int64_t n, std::uint64_t seed) {
  std::vector<float> v(static_cast<std::size_t>(n));
  const RandomStream random(seed, Purpose::test, 8);
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(random.normal_at(i));
  return v;
}

// Small integers and alpha = 2 or 3: every result is exact, so the formulas are compared with ==.
TEST(Power, MaskedPushPullAndTargetFollowTheirFormulas) {
  for (const Table* t : runnable()) {
    for (const std::int64_t n : kSizes) {
      const BitMask f = random_mask(n, 1), b = random_mask(n, 2);
      std::vector<float> phi(static_cast<std::size_t>(n)), g(phi), w(phi);
      for (std::size_t i = 0; i < phi.size(); ++i) {
        phi[i] = static_cast<float>(static_cast<int>(i % 7) - 3);
        g[i] = static_cast<float>(static_cast<int>(i % 5) - 2);
      }
      t->power<float>().push(phi.data(), f.words(), 2, w.data(), 0, n);
      const std::vector<float> before = w;
      std::vector<float> pulled = g;
      t->power<float>().pull(phi.data(), b.words(), 3, 0.5, pulled.data(), 0, n);
      std::vector<float> moved = phi, target = w;
      for (std::size_t i = 0; i < w.size(); ++i) target[i] += g[i];
      t->power<float>().target(moved.data(), f.words(), b.words(), 2, target.data(), 0, n);
      for (std::size_t i = 0; i < phi.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        const float p = phi[i], a = std::fabs(p);
        EXPECT_EQ(before[i], f.test(at) ? p * a : 0) << t->isa << " n " << n << " i " << i;
        EXPECT_EQ(pulled[i], b.test(at) ? (g[i] + 0.5f * p * a * a) * 3 * a * a : 0)
            << t->isa << " n " << n << " i " << i;
        const float want = b.test(at) ? p + g[i] * 2 * a : p;
        EXPECT_EQ(moved[i], want) << t->isa << " n " << n << " i " << i;
        EXPECT_EQ(target[i], f.test(at) ? want * std::fabs(want) : 0) << t->isa << " n " << n << " i " << i;
      }
    }
  }
}

TEST(Power, KeepTakesTheOtherValueWhereTheBitIsOff) {
  for (const Table* t : runnable()) {
    for (const std::int64_t n : kSizes) {
      const BitMask mask = random_mask(n, 3);
      const auto x = random_values(n, 4), y = random_values(n, 5);
      auto zeroed = x, blended = x;
      t->power<float>().keep(zeroed.data(), mask.words(), nullptr, 0, n);
      t->power<float>().keep(blended.data(), mask.words(), y.data(), 0, n);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const bool on = mask.test(static_cast<std::int64_t>(i));
        EXPECT_EQ(zeroed[i], on ? x[i] : 0.0f);
        EXPECT_EQ(blended[i], on ? x[i] : y[i]);
      }
    }
  }
}

TEST(Power, AnySplitOfTheRangeGivesTheSameBits) {
  const std::int64_t n = 1000;
  const auto phi = random_values(n, 6);
  const BitMask mask = random_mask(n, 7);
  for (const Table* t : runnable()) {
    std::vector<float> whole(phi.size()), parts(phi.size());
    t->power<float>().push(phi.data(), mask.words(), 2.3, whole.data(), 0, n);
    for (const auto& [begin, end] : {std::pair{0, 64}, {64, 640}, {640, 1000}})
      t->power<float>().push(phi.data(), mask.words(), 2.3, parts.data(), begin, end);
    EXPECT_EQ(whole, parts) << t->isa;
  }
}

TEST(Power, ThePowerLeftByThePushServesThePull) {
  for (const Table* t : runnable()) {
    for (const std::int64_t n : kSizes) {
      const auto phi = random_values(n, 9), g = random_values(n, 10);
      const BitMask mask = random_mask(n, 11);
      for (const double decay : {0.0, 0.3}) {
        std::vector<float> w(phi), kept_w(phi), power(phi), direct = g, with = g;
        t->power<float>().push(phi.data(), mask.words(), 2.3, w.data(), 0, n);
        t->power<float>().push_keeping_power(phi.data(), mask.words(), 2.3, kept_w.data(), power.data(), 0, n);
        EXPECT_EQ(w, kept_w) << t->isa << " " << n;
        t->power<float>().pull(phi.data(), mask.words(), 2.3, decay, direct.data(), 0, n);
        t->power<float>().pull_with_power(phi.data(), power.data(), mask.words(), 2.3, decay, with.data(), 0, n);
        // The same formula, perhaps contracted differently: a few roundings of the terms of the sum.
        for (std::size_t i = 0; i < g.size(); ++i) {
          const double scale =
              (std::fabs(g[i]) + decay * std::pow(std::fabs(phi[i]), 2.3)) * 2.3 * std::pow(std::fabs(phi[i]), 1.3);
          EXPECT_NEAR(direct[i], with[i], 4e-7 * scale) << t->isa << " " << n;
        }
      }
    }
  }
  EXPECT_FALSE(PowerKernels<float>::costly(1.25));
  EXPECT_FALSE(PowerKernels<float>::costly(5));
  EXPECT_TRUE(PowerKernels<float>::costly(1.3));
  EXPECT_TRUE(PowerKernels<float>::costly(6));
}

TEST(Dispatch, ForcedInstructionSetIsTheOneInUse) {
  const char* forced = std::getenv("ESPALIER_ISA");
  if (forced != nullptr && *forced != '\0')
    EXPECT_STREQ(active().isa, forced);
  else
    EXPECT_TRUE(active().runs_here());
  EXPECT_STREQ(compiled().back()->isa, "scalar");
}

TEST(Dispatch, UnknownInstructionSetIsAnError) {
  try {
    table("avx521");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("unknown instruction set"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("Did you mean"), std::string::npos) << e.what();
  }
}

TEST(BitMask, CountsSetsAndLists) {
  BitMask m(70);
  EXPECT_EQ(m.count(), 0);
  m.set(0, true);
  m.set(69, true);
  m.set(69, true);
  m.set(64, true);
  m.set(64, false);
  EXPECT_EQ(m.count(), 2);
  EXPECT_EQ(m.positions(), (std::vector<std::int64_t>{0, 69}));
  EXPECT_TRUE(BitMask(70, true).all());
  EXPECT_EQ(BitMask(70, true).positions().size(), 70u);
  EXPECT_TRUE(BitMask(70, true).contains(m));
  EXPECT_FALSE(m.contains(BitMask(70, true)));
  EXPECT_EQ(BitMask(70, true).words()[1], 63u);
}

}  // namespace
}  // namespace espalier::kernels
