#include "espalier/methods/sparse_evolutionary.h"

#include <cmath>

#include "espalier/core/error.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

const at::Tensor kEight = torch::tensor({0.5, -0.1, 0.3, 0.0, 0.2, -0.4, -0.05, 0.0}, torch::kFloat).view({2, 4});

// Active: 0 (.5), 1 (-.1), 2 (.3), 4 (.2), 5 (-.4), 6 (-.05).
TEST(SparseEvolutionary, DropsTheSmallestMagnitudes) {
  for (const bool compressed : {false, true}) {
    const auto w = weight_of(compressed, kEight);
    const Selection s = drop_smallest(*w, 0.5);  // floor(.5 * 6) = 3: .05, .1, .2
    EXPECT_EQ(numbers(s.rest), (Numbers{1, 4, 6}));
    EXPECT_EQ(numbers(s.chosen), (Numbers{0, 2, 5}));
    EXPECT_FLOAT_EQ(static_cast<float>(s.threshold), 0.3f);
    EXPECT_EQ(drop_smallest(*w, 0.16).rest.numel(), 0);  // floor(.96)
  }
}

TEST(SparseEvolutionary, DropsBySignAsInTheFirstPaper) {
  for (const bool compressed : {false, true}) {
    const auto w = weight_of(compressed, kEight);
    // Positive .5 .3 .2 and negative -.1 -.4 -.05, one third of each: .2 and -.05.
    const Selection s = drop_by_sign(*w, 0.34);
    EXPECT_EQ(numbers(s.rest), (Numbers{4, 6}));
    EXPECT_EQ(numbers(s.chosen), (Numbers{0, 1, 2, 5}));
    EXPECT_FLOAT_EQ(static_cast<float>(s.threshold), 0.2f);
    // By magnitude, with a fraction of the same count, it would be .05 and .1.
    EXPECT_EQ(numbers(drop_smallest(*w, 0.34).rest), (Numbers{1, 6}));
  }
}

TEST(SparseEvolutionary, AnActiveZeroHasNoSignAndGoes) {
  const auto w = weight_of(false, kEight);
  w->rewire({{}, torch::tensor({3}), {}, {}});  // born at zero
  const Selection s = drop_by_sign(*w, 0.34);
  EXPECT_EQ(numbers(s.rest), (Numbers{3, 4, 6}));
}

TEST(SparseEvolutionary, GrowsAsManyAsItDropsAndMayTakeADroppedOneAgain) {
  SparseEvolutionary set;
  for (const bool compressed : {false, true}) {
    bool again = false;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      const auto w = weight_of(compressed, kEight);
      test::Change changed(*w);
      const MethodContext context{{w.get()}, {10, 100, 10}, seed, {0.25, "uniform", {}}};
      set.after_step(context);  // one epoch of ten steps; floor(.3 * 6) = 1: position 6
      const auto change = changed.take();
      ASSERT_TRUE(change);
      EXPECT_EQ(numbers(change->dropped), (Numbers{6}));
      ASSERT_EQ(change->grown.numel(), 1);
      const auto grown = numbers(change->grown)[0];
      EXPECT_TRUE(grown == 3 || grown == 6 || grown == 7) << grown;
      again = again || grown == 6;
      EXPECT_EQ(w->nnz(), 6);
      const at::Tensor at = w->active().eq(grown).nonzero().view({-1});
      EXPECT_EQ(w->weights().index_select(0, at).item<float>(), 0.0f);
    }
    EXPECT_TRUE(again);  // one of three places: never in 20 draws has probability 3e-4, and the draws are fixed
  }
}

TEST(SparseEvolutionary, ChangesOnceAnEpochAndNotAfterTheLast) {
  SparseEvolutionary set;
  const auto w = weight_of(false, kEight);
  test::Change changed(*w);
  for (const auto& [step, expected] : {std::pair{9, false}, {10, true}, {11, false}, {90, true}, {100, false}}) {
    set.after_step({{w.get()}, {step, 100, 10}, 1, {0.25, "uniform", {}}});
    EXPECT_EQ(changed.take().has_value(), expected) << step;
  }
}

TEST(Birth, AtZeroOnlyWhereItCanMove) {
  SparseEvolutionary set;
  for (const double alpha : {1.0, 1.5, 2.0}) {
    const auto w = weight_of(true, kEight, Powerprop(alpha));
    test::Change changed(*w);
    const MethodContext context{{w.get()}, {10, 100, 10}, 1, {0.25, "uniform", {}}};
    set.check(context);
    for (int i = 0; i < 20; ++i) {
      set.after_step(context);
      const at::Tensor grown = changed.take()->grown;
      const at::Tensor at = torch::isin(w->active(), grown).nonzero().view({-1});
      const float born = w->values().index_select(0, at).abs().item<float>();
      EXPECT_EQ(born == 0.0f, alpha == 1.0) << alpha;
    }
    BirthOptions zero;
    zero.birth = "zero";
    if (alpha > 1)
      EXPECT_THROW(zero.check(context), Error);
    else
      zero.check(context);
  }
}

TEST(Birth, RandomOnesHaveTheScaleThatIsAskedForAndNoneIsZero) {
  BirthOptions random;
  random.birth = "random";
  random.birth_scale = 0.1;
  const auto w = weight_of(false, kEight, Powerprop(2));
  const MethodContext context{{w.get()}, {10, 100, 10}, 1, {0.25, "uniform", {}}};
  const at::Tensor phi = random.draw(*w, 100000, context), born = phi.sign() * phi.square();
  EXPECT_NEAR(born.std().item<double>(), 0.1, 0.001);  // 100,000 draws: deviation 0.1 / sqrt(200000) = 0.0002
  EXPECT_NEAR(born.mean().item<double>(), 0.0, 0.0015);
  EXPECT_GE(born.abs().min().item<double>(), 0.1 * 0.01 * (1 - 1e-12));
}

}  // namespace
}  // namespace espalier
