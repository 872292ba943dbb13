#include "espalier/methods/top_kast.h"

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/sparsifier.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;

void set(Method& method, const std::string& name, double value) {
  for (auto& option : describe(method))
    if (option.name == name) **std::get_if<double*>(&option.value) = value;
}

/// |theta| = (.9, .5, .3, .1), D = .25, D + M = .5.
struct Four {
  at::Tensor model;
  std::unique_ptr<SparseWeight> w;
  TopKast method;
  MethodContext context;
  explicit Four(bool compressed, double alpha = 1) {
    w = test::weight_of(compressed, torch::tensor({{0.9f, -0.5f, 0.3f, 0.1f}}), Powerprop(alpha), 0, &model);
    context = {{w.get()}, {0, 1000, 100}, 1, {0.75, "uniform", {}}};
    set(method, "exploration", 0.25);
    set(method, "penalty", 1);
    method.check(context);
    method.prepare(context);
  }
  /// What the layer computes with.
  at::Tensor computes() const {
    const auto* compressed = dynamic_cast<const CompressedWeight*>(w.get());
    return compressed != nullptr ? compressed->to_dense() : model;
  }
  /// A gradient of w that is 1 wherever one is formed.
  void give_ones() {
    auto* compressed = dynamic_cast<CompressedWeight*>(w.get());
    at::Tensor v = compressed != nullptr ? compressed->stored_values() : model;
    v.mutable_grad() = torch::ones_like(v).detach();
  }
};

class TopKastIn : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Storages, TopKastIn, ::testing::Bool(),
                         [](const auto& p) { return p.param ? "compressed" : "masked"; });

TEST_P(TopKastIn, SetsAAndB) {
  for (const double alpha : {1.0, 2.0}) {
    Four f(GetParam(), alpha);
    EXPECT_EQ(numbers(f.w->active()), (Numbers{0}));
    EXPECT_EQ(numbers(f.w->trainable()), (Numbers{0, 1}));
    // The layer computes with A alone; everything is remembered.
    EXPECT_TRUE(torch::allclose(f.computes(), torch::tensor({{0.9f, 0.0f, 0.0f, 0.0f}})));
    EXPECT_TRUE(
        torch::allclose(f.w->reparametrisation().psi(f.w->all_values()), torch::tensor({{0.9f, -0.5f, 0.3f, 0.1f}})));
  }
}

// Weights of the penalty (1, 4, 0, 0): the gradient is theta times that.
TEST_P(TopKastIn, PenaltyIsStrongerOutsideA) {
  Four f(GetParam());
  f.method.before_update(f.context);
  f.w->pull(0);
  const at::Tensor gradient = f.w->parameter().grad().view({-1});
  EXPECT_TRUE(torch::allclose(gradient.slice(0, 0, 2), torch::tensor({0.9f, -2.0f})));
  EXPECT_EQ(gradient.slice(0, 2).count_nonzero().item<std::int64_t>(), 0);
}

TEST_P(TopKastIn, WhatIsInBLearnsAndTheRestStaysToTheBit) {
  for (const double alpha : {1.0, 2.0}) {
    Four f(GetParam(), alpha);
    torch::optim::SGD sgd(std::vector<at::Tensor>{f.w->parameter()},
                          torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.1));
    const at::Tensor before = f.w->all_values().clone();
    for (int i = 0; i < 3; ++i) {
      f.give_ones();
      f.w->pull(0);
      sgd.step();
      f.w->settle();
    }
    const at::Tensor after = f.w->all_values(), same = after.eq(before).view({-1});
    EXPECT_EQ(numbers(same.logical_not().nonzero().view({-1})), (Numbers{0, 1}));
    EXPECT_EQ(f.computes().view({-1}).slice(0, 1).abs().max().item<float>(), 0.0f);
    EXPECT_NEAR(f.computes()[0][0].item<double>(), std::pow(std::abs(f.w->all_values()[0][0].item<double>()), alpha),
                1e-6);
  }
}

TEST_P(TopKastIn, ExplorersOvertakeAndAtTheEndBIsA) {
  Four f(GetParam());
  NamedTensors saved = f.w->archive();
  for (auto& [name, tensor] : saved) {
    if (name != f.w->name() + ".phi") continue;
    tensor = tensor.clone();
    tensor.view({-1})[0] = 0.4f;  // as if position 0 had shrunk
  }
  f.w->restore(saved);
  f.context.clock.step = 50;
  f.method.after_step(f.context);  // not due
  EXPECT_EQ(numbers(f.w->active()), (Numbers{0}));
  f.context.clock.step = 100;
  f.method.after_step(f.context);
  EXPECT_EQ(numbers(f.w->active()), (Numbers{1}));
  EXPECT_EQ(numbers(f.w->trainable()), (Numbers{0, 1}));
  EXPECT_TRUE(torch::allclose(f.computes(), torch::tensor({{0.0f, -0.5f, 0.0f, 0.0f}})));
  f.context.clock.step = 1000;  // explore_until = 100%
  f.method.after_step(f.context);
  EXPECT_EQ(numbers(f.w->trainable()), (Numbers{1}));
}

TEST(TopKast, RefusesWhatCannotBe) {
  TopKast method;
  at::Tensor model = torch::ones({1, 4});
  const auto w = make_masked_weight("fc.weight", model, Powerprop(2, Update::target), 0);
  EXPECT_THROW(method.check({{w.get()}, {0, 1000, 100}, 1, {0.75, "uniform", {}}}), Error);
  set(method, "exploration", 0.8);
  const auto v = make_masked_weight("fc.weight", torch::ones({1, 4}), {}, 0);
  EXPECT_THROW(method.check({{v.get()}, {0, 1000, 100}, 1, {0.75, "uniform", {}}}), Error);
}

}  // namespace
}  // namespace espalier
