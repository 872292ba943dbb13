#include "espalier/methods/sparse_momentum.h"

#include <cmath>

#include "espalier/core/error.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

// Mean |M| .3 and .1, 100 removed: 75 and 25, as long as 99 % of the free places hold them.
TEST(SparseMomentum, QuotasFollowTheMeanMomentum) {
  EXPECT_EQ(momentum_quotas(100, {.3, .1}, {1000, 1000}), (Numbers{75, 25}));
  EXPECT_EQ(momentum_quotas(100, {.3, .1}, {50, 1000}), (Numbers{49, 51}));  // floor(.99 * 50) = 49
  EXPECT_EQ(momentum_quotas(100, {.3, .1}, {50, 50}), (Numbers{50, 50}));    // 98 is too little: all that is free
}

/// fc0 has 3 of 6 weights, fc1 2 of 4.
struct Two {
  at::Tensor models[2];
  std::unique_ptr<SparseWeight> a, b;
  SparseMomentum snfs;
  MethodContext context;
  std::optional<test::Change> a_changes, b_changes;
  explicit Two(bool compressed = false) {
    a = weight_of(compressed, torch::tensor({0.5f, -0.1f, 0.3f, 0.0f, 0.0f, 0.0f}).view({2, 3}), {}, 0, &models[0]);
    b = weight_of(compressed, torch::tensor({0.0f, 0.2f, 0.0f, -0.4f}).view({2, 2}), {}, 1, &models[1]);
    a_changes.emplace(*a);
    b_changes.emplace(*b);
    context = {{a.get(), b.get()}, {1, 1000, 2}, 1, {0.5, "uniform", {}}};
  }
  void gradients(const std::vector<float>& first, const std::vector<float>& second) {
    test::give_gradient(*a, models[0], torch::tensor(first).view({2, 3}));
    test::give_gradient(*b, models[1], torch::tensor(second).view({2, 2}));
  }
};

class SparseMomentumIn : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Storages, SparseMomentumIn, ::testing::Bool(),
                         [](const auto& p) { return p.param ? "compressed" : "masked"; });

TEST_P(SparseMomentumIn, MovesWeightsToTheLayerAndPlacesOfTheLargestMomentum) {
  Two two(GetParam());
  two.gradients({1, 1, 1, 2, 0, -9}, {0, .1f, 5, .1f});
  two.snfs.after_step(two.context);  // step 1 of epochs of 2: only gathers M = g
  EXPECT_FALSE(two.a_changes->take().has_value());
  two.gradients({0, 0, 0, 4, 0, 1}, {0, 0, 0, 0});
  two.context.clock.step = 2;
  two.snfs.after_step(two.context);
  // M = .9 g1 + g2: fc0 (.9 .9 .9 5.8 0 -7.1), fc1 (0 .09 4.5 .09). The rate is .5 (less by 5e-6 of the cosine), so
  // ceil(1.5) = 2 of fc0 leave, -.1 and .3, and ceil(.99999) = 1 of fc1, .2. Means of |M| where active: .9 and .09: of
  // the three, 2.727 and .273, so 3 and 0: the remainders are .727 and .273.
  const auto a = two.a_changes->take(), b = two.b_changes->take();
  ASSERT_TRUE(a && b);
  EXPECT_EQ(numbers(a->dropped), (Numbers{2}));   // 1 and 2 leave; 3 places of 1 2 3 4 5: |M| .9 .9 5.8 0 7.1
  EXPECT_EQ(numbers(a->grown), (Numbers{3, 5}));  // 5, 3 and, of the tie, 1: which so keeps its value
  EXPECT_EQ(numbers(two.a->active()), (Numbers{0, 1, 3, 5}));
  EXPECT_FLOAT_EQ(two.a->weights()[1].item<float>(), -0.1f);
  EXPECT_EQ(numbers(b->dropped), (Numbers{1}));
  EXPECT_EQ(b->grown.numel(), 0);
  EXPECT_EQ(two.a->nnz() + two.b->nnz(), 5);
}

TEST_P(SparseMomentumIn, TheMomentumIsSaved) {
  Two two(GetParam()), other(GetParam());
  two.gradients({1, 1, 1, 2, 0, -9}, {0, .1f, 5, .1f});
  two.snfs.after_step(two.context);
  other.snfs.restore(two.snfs.archive());
  for (Two* t : {&two, &other}) {
    t->gradients({0, 0, 0, 4, 0, 1}, {0, 0, 0, 0});
    t->context.clock.step = 2;
    t->snfs.after_step(t->context);
  }
  EXPECT_TRUE(torch::equal(two.a->active(), other.a->active()));
  EXPECT_EQ(other.a->nnz(), 4);
}

}  // namespace
}  // namespace espalier
