#include "espalier/ops/relu.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

namespace espalier::ops {
namespace {

using torch::Tensor;

TEST(Relu, IsTorchs) {
  torch::manual_seed(1);
  for (const bool over : {false, true}) {
    const Tensor given = torch::randn({64, 9}, torch::kDouble);
    given[0][0] = 0;
    Tensor a = given.clone().requires_grad_(), b = given.clone().requires_grad_();
    const Tensor ours = over ? relu_over(a * 2) : ops::relu(a * 2), theirs = torch::relu(b * 2);
    EXPECT_TRUE(ours.equal(theirs));
    ours.square().sum().backward();
    theirs.square().sum().backward();
    EXPECT_TRUE(a.grad().equal(b.grad()));
    EXPECT_EQ(a.grad()[0][0].item<double>(), 0);
  }
}

TEST(Relu, KeepsNaN) {
  const Tensor x = torch::full({40}, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(ops::relu(x).isnan().all().item<bool>());
  EXPECT_TRUE(relu_over(x.clone()).isnan().all().item<bool>());
}

TEST(Relu, WritesOverXOnlyWhereItMay) {
  const Tensor x = torch::tensor({-1.0, 2.0});
  EXPECT_NE(ops::relu(x).data_ptr(), x.data_ptr());
  EXPECT_TRUE(x.equal(torch::tensor({-1.0, 2.0})));
  const Tensor y = x.clone();
  EXPECT_EQ(relu_over(y).data_ptr(), y.data_ptr());
}

/// The gradient that arrives is written over where autograd alone holds it, and nowhere else.
TEST(Relu, WritesOverNoGradientThatSomebodyHolds) {
  torch::manual_seed(2);
  Tensor x = torch::randn({50}).requires_grad_();
  const Tensor dy = torch::randn({50}), before = dy.clone();
  ops::relu(x).backward(dy);
  EXPECT_TRUE(dy.equal(before));

  // a gradient that a hook has seen, behind another function
  Tensor seen, kept;
  const Tensor y = ops::relu(x * 3);
  y.register_hook([&](const Tensor& g) {
    seen = g;
    kept = g.clone();
  });
  (y * torch::randn({50})).sum().backward();
  EXPECT_TRUE(seen.equal(kept));
  EXPECT_GT(((y == 0) & (seen != 0)).sum().item<std::int64_t>(), 0) << "nothing would have been seen";

  // a retained graph goes the same way twice
  const Tensor z = ops::relu(x * 3).square().sum();
  const Tensor once = torch::autograd::grad({z}, {x}, {}, true)[0];
  EXPECT_TRUE(torch::autograd::grad({z}, {x}, {}, true)[0].equal(once));
}

TEST(Relu, HasSecondDerivatives) {
  torch::manual_seed(3);
  const Tensor given = torch::randn({30}, torch::kDouble);
  const auto second = [&](const auto& f) {
    Tensor x = given.clone().requires_grad_();
    const Tensor first = torch::autograd::grad({f(x).pow(3).sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({first.sum()}, {x})[0];
  };
  const Tensor ours = second([](const Tensor& x) { return ops::relu(x); });
  EXPECT_TRUE(ours.equal(second([](const Tensor& x) { return torch::relu(x); })));
  EXPECT_GT(ours.abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace espalier::ops
