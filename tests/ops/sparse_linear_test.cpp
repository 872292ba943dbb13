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
    kernels::EntryIndices place;
    matrix = std::make_shared<Compressed>(kernels::compress(2, 3, positions.data(), 3, place, 1));
    refresh_forward(*matrix, values, forward);
  }
  Tensor operator()(const Tensor& x, const Tensor& bias = {}, bool relu = false) const {
    const Tensor y = sparse_linear(to_tiles(x), {x.size(0), 3}, matrix, values, forward, bias, {relu});
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

TEST(SparseLinear, ReluWorkedByHand) {
  const Layer layer;
  const Tensor x = torch::tensor({{1.0F, 2.0F, 3.0F}, {-1.0F, 2.0F, 3.0F}}).set_requires_grad(true),
               bias = torch::tensor({-5.0F, -20.0F}).set_requires_grad(true);
  const Tensor y = layer(x, bias, /*relu=*/true);  // of [[-1, 6], [-1, -4]]
  EXPECT_TRUE(y.equal(torch::tensor({{0.0F, 6.0F}, {0.0F, 0.0F}})));
  const Tensor dy = torch::tensor({{1.0F, 10.0F}, {1.0F, 10.0F}});
  y.backward(dy);
  EXPECT_TRUE(x.grad().equal(torch::tensor({{50.0F, 0.0F, 70.0F}, {0.0F, 0.0F, 0.0F}})));
  EXPECT_TRUE(layer.values.grad().equal(torch::tensor({10.0F, 0.0F, 30.0F})));
  EXPECT_TRUE(bias.grad().equal(torch::tensor({0.0F, 10.0F})));
}

TEST(SparseLinear, ReluLeavesTheCallersGradientAlone) {
  const Layer layer;
  const Tensor x = torch::tensor({{1.0F, 2.0F, 3.0F}, {1.0F, -2.0F, 3.0F}}).set_requires_grad(true);
  const Tensor y = sparse_linear(to_tiles(x), {2, 3}, layer.matrix, layer.values, layer.forward, {}, {/*behind=*/true});
  const Tensor dy = to_tiles(torch::tensor({{1.0F, 10.0F}, {1.0F, 10.0F}})), before = dy.clone();
  y.backward(dy);  // of [[4, 26], [-4, 26]]
  EXPECT_TRUE(dy.equal(before));
  EXPECT_TRUE(x.grad().equal(torch::tensor({{50.0F, 2.0F, 70.0F}, {50.0F, 0.0F, 70.0F}})));
  EXPECT_TRUE(layer.values.grad().equal(torch::tensor({20.0F, 2.0F, 60.0F})));
}

TEST(SparseLinear, TheGradientBetweenTwoLayersIsFormedInTheOneBehind) {
  const Layer first, second;
  const Tensor x = torch::tensor({{1.0F, 2.0F, 3.0F}, {1.0F, -2.0F, 3.0F}}).set_requires_grad(true);
  const Tensor bias = torch::zeros({2}).set_requires_grad(true);
  const Tensor y = sparse_linear(to_tiles(x), {2, 3}, first.matrix, first.values, first.forward, bias,
                                 {/*behind=*/true, /*masked_behind=*/true});  // of [[4, 26], [-4, 26]]
  const Tensor z = torch::cat({from_tiles(y, {2, 2}), torch::ones({2, 1})}, 1).detach().set_requires_grad(true);
  BesideRelu before;
  before.before = true;
  const Tensor out = sparse_linear(to_tiles(z), {2, 3}, second.matrix, second.values, second.forward, {}, before);
  EXPECT_TRUE(from_tiles(out, {2, 2}).equal(torch::tensor({{52.0F, 27.0F}, {52.0F, 7.0F}})));
  out.backward(to_tiles(torch::tensor({{1.0F, 10.0F}, {1.0F, 10.0F}})));
  EXPECT_TRUE(z.grad().equal(torch::tensor({{50.0F, 2.0F, 70.0F}, {0.0F, 2.0F, 70.0F}})));  // z[1, 0] is 0
  y.backward(to_tiles(torch::tensor({{50.0F, 2.0F}, {7.0F, 2.0F}})));  // taken as it comes, though y[1, 0] is 0
  EXPECT_TRUE(bias.grad().equal(torch::tensor({57.0F, 4.0F})));
  EXPECT_TRUE(first.values.grad().equal(torch::tensor({4.0F, 86.0F, 12.0F})));
}

// Shares of threads end at tiles within chunks (of which 40 rows have two), columns make several blocks or one.
TEST(SparseLinear, ValuesTakenAsTheProductGoesGiveTheSameBits) {
  const int threads = at::get_num_threads();
  struct Case {
    std::int64_t rows, columns;
    double density;
  };
  for (const Case& c : {Case{300, 700, 0.1}, Case{40, 1500, 0.3}, Case{1000, 90, 0.5}, Case{900, 2100, 0.02},
                        Case{2100, 900, 0.005}, Case{1, 33, 1}, Case{50, 60, 0}}) {
    for (const auto type : {torch::kFloat, torch::kDouble}) {
      torch::manual_seed(1);
      const Tensor positions = (torch::rand({c.rows * c.columns}) < c.density).nonzero().view({-1});
      kernels::EntryIndices place;
      const auto matrix =
          kernels::compress(c.rows, c.columns, positions.data_ptr<std::int64_t>(), positions.numel(), place, 2);
      const Tensor values = torch::randn({positions.numel()}, type), bias = torch::randn({c.rows}, type);
      Tensor forward = torch::empty_like(values);
      refresh_forward(matrix, values, forward);
      for (const std::int64_t samples : {1, 64, 100, 250, 400}) {
        const TileLayout layout{samples, c.columns}, out{samples, c.rows};
        const Tensor x = to_tiles(torch::randn({samples, c.columns}, type));
        for (const bool relu : {false, true}) {
          const Tensor b = relu ? Tensor() : bias;
          Tensor y = torch::empty({out.numel()}, type);
          linear_forward(matrix, layout, values, forward, b, x, y, relu);
          for (const int n : {1, 2, 3, 7}) {
            at::set_num_threads(n);
            Tensor taken = torch::full({out.numel()}, 99, type);
            linear_forward(matrix, layout, values, {}, b, x, taken, relu);
            EXPECT_TRUE(taken.equal(y)) << c.rows << "x" << c.columns << ", " << samples << " samples, " << n
                                        << " threads";
          }
          at::set_num_threads(threads);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(SparseLinear, ReluOfNoSamplesHasNoGradient) {
  const Layer layer;
  const Tensor bias = torch::ones({2}).set_requires_grad(true);
  layer(torch::ones({0, 3}), bias, /*relu=*/true).sum().backward();
  EXPECT_TRUE(bias.grad().equal(torch::zeros({2})));
  EXPECT_TRUE(layer.values.grad().equal(torch::zeros({3})));
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
