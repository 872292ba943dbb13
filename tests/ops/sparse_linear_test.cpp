// The product itself is compared with the dense one in tests/kernels, tests/nn and tests/python.
#include "espalier/ops/sparse_linear.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

/// [[0, 2, 0], [5, 0, 7]], whose entries stand by columns.
struct Layer {
  Layer() {
    const std::vector<std::int64_t> positions = {1, 3, 5};
    std::vector<std::uint32_t> place;
    matrix = std::make_shared<Compressed>(kernels::compress(2, 3, positions.data(), 3, place, 1));
    refresh_forward(*matrix, values, forward);
  }
  Tensor operator()(const Tensor& x, const Tensor& bias = {}) const {
    const Tensor y = sparse_linear(to_tiles(x), {x.size(0), 3}, matrix, values, forward, bias);
    return from_tiles(y, {x.size(0), 2});
  }
  std::shared_ptr<Compressed> matrix;
  Tensor values = torch::tensor({5.0F, 2.0F, 7.0F}).set_requires_grad(true);
  Tensor forward = torch::empty({3});
};

TEST(SparseLinear, WorkedByHand) {
  const Layer layer;
  const Tensor x = torch::tensor({{1.0F, 2.0F, 3.0F}}).set_requires_grad(true);
  const Tensor y = layer(x, torch::tensor({10.0F, 20.0F}));
  EXPECT_TRUE(y.equal(torch::tensor({{14.0F, 46.0F}})));
  y.backward(torch::tensor({{1.0F, 10.0F}}));
  EXPECT_TRUE(x.grad().equal(torch::tensor({{50.0F, 2.0F, 70.0F}})));
  EXPECT_TRUE(layer.values.grad().equal(torch::tensor({10.0F, 2.0F, 30.0F})));
}

TEST(SparseLinear, ABiasHasOneNumberForEachOutput) {
  const Layer layer;
  EXPECT_THROW(layer(torch::ones({4, 3}), torch::ones({1})), Error);
  EXPECT_THROW(layer(torch::ones({4, 3}), torch::ones({2}, torch::kDouble)), Error);
}

TEST(SparseLinear, SecondDerivativesAreErrors) {
  const Layer layer;
  const Tensor x = torch::ones({4, 3}).set_requires_grad(true);
  const Tensor loss = layer(x).square().sum();
  const auto gradients = torch::autograd::grad({loss}, {x, layer.values}, {}, true, /*create_graph=*/true);
  EXPECT_THROW(gradients[0].sum().backward({}, true), std::runtime_error);
  EXPECT_THROW(gradients[1].sum().backward(), std::runtime_error);
}

}  // namespace
}  // namespace espalier::ops
