#include "espalier/nn/sparse_conv.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/nn/network.h"

namespace espalier::nn {
namespace {

using torch::nn::Conv2dOptions;

std::vector<Conv2dOptions> options() {
  return {Conv2dOptions(6, 8, 3).padding(1),
          Conv2dOptions(6, 8, 3).padding(1).stride(2).bias(false),
          Conv2dOptions(6, 9, {5, 3}).padding({0, 2}).dilation({1, 2}).groups(3),
          Conv2dOptions(6, 6, 3).padding(torch::kSame).dilation(2).groups(6),
          Conv2dOptions(6, 4, 3).padding(torch::kValid).stride({1, 3}),
          Conv2dOptions(6, 12, 1).stride(2)};
}

torch::nn::Conv2d thinned(const Conv2dOptions& o) {
  torch::nn::Conv2d dense(o);
  dense->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  dense->weight.mul_(torch::rand(dense->weight.sizes(), torch::kDouble).lt(0.4));
  dense->weight.select(0, 2).zero_();  // an output without weights
  return dense;
}

TEST(SparseConv2d, IsTheDenseLayerWithTheSameWeights) {
  torch::manual_seed(2);
  for (const auto& o : options()) {
    for (const std::int64_t batch : {1, 16, 19}) {
      auto dense = thinned(o);
      const auto sparse = SparseConv2dImpl::from_dense(*dense);
      EXPECT_TRUE(torch::equal(sparse->to_dense(), dense->weight));
      for (const std::int64_t size : {9, 8}) {  // the second size needs another plan
        const auto x = torch::randn({batch, 6, size, size + 1}, torch::kDouble).set_requires_grad(true);
        const auto x2 = x.detach().clone().set_requires_grad(true);
        const auto y = dense->forward(x), y2 = sparse->forward(x2);
        ASSERT_EQ(y2.sizes(), y.sizes());
        EXPECT_TRUE(torch::allclose(y2, y, 1e-12, 1e-12));
        {
          const torch::NoGradGuard no_grad;  // few images are taken one by one
          EXPECT_TRUE(torch::allclose(sparse->forward(x), y, 1e-12, 1e-12));
          EXPECT_EQ(sparse->compute(x).is_images(), batch > 8);
        }
        const auto dy = torch::randn_like(y);
        dense->zero_grad();
        sparse->zero_grad();
        y.backward(dy);
        y2.backward(dy);
        EXPECT_TRUE(torch::allclose(x2.grad(), x.grad(), 1e-12, 1e-12));
        if (dense->bias.defined()) {
          EXPECT_TRUE(torch::allclose(sparse->bias.grad(), dense->bias.grad(), 1e-12, 1e-11));
        }
        std::vector<std::int64_t> at;
        kernels::EntryIndices place;
        kernels::row_major(*sparse->weight()->matrix(), at, place, 1);
        const auto grad = sparse->weight()->stored_values().grad(), full = dense->weight.grad().contiguous().view({-1});
        for (std::size_t i = 0; i < at.size(); ++i) {
          EXPECT_NEAR(grad[place[i]].item<double>(), full[at[i]].item<double>(), 1e-11);
        }
      }
    }
  }
}

TEST(SparseConv2d, FollowsAChangeOfTopology) {
  torch::manual_seed(4);
  auto dense = thinned(Conv2dOptions(6, 8, 3).padding(1).stride(2));
  const auto sparse = SparseConv2dImpl::from_dense(*dense);
  const auto x = torch::randn({5, 6, 7, 7}, torch::kDouble);
  const auto expect_same = [&] {
    EXPECT_TRUE(torch::allclose(sparse->forward(x), dense->forward(x), 1e-12, 1e-12));
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(torch::allclose(sparse->forward(x), dense->forward(x), 1e-12, 1e-12));
  };
  expect_same();
  const auto kept = sparse->weight()->active();
  const auto free = dense->weight.detach().view({-1}).eq(0).nonzero().view({-1});
  sparse->weight()->rewire({kept.slice(0, 0, 20), free.slice(0, 3, 9), torch::ones({6}, torch::kDouble), {}});
  {
    const torch::NoGradGuard no_grad;
    dense->weight.view({-1}).index_fill_(0, kept.slice(0, 0, 20), 0);
    dense->weight.view({-1}).index_fill_(0, free.slice(0, 3, 9), 1);
  }
  EXPECT_TRUE(torch::equal(sparse->to_dense(), dense->weight));
  expect_same();
}

/// dL/dw of a layer that is used as often as there are images in `xs`, at every position, in masked storage: the
/// reference.
at::Tensor dense_gradient(torch::nn::Conv2d dense, const std::vector<at::Tensor>& xs,
                          const std::vector<at::Tensor>& dys) {
  auto weight = make_masked_weight("weight", dense->weight, {}, 0);
  weight->keep(dense->weight.detach().view({-1}).nonzero().view({-1}));
  weight->want_dense_gradient(true);
  for (std::size_t i = 0; i < xs.size(); ++i) dense->forward(xs[i]).backward(dys[i]);
  weight->pull(0);
  at::Tensor sum = torch::zeros_like(dense->weight.detach());
  weight->add_dense_gradient(sum);
  return sum;
}

// What RigL grows by: the gradient also where nothing is kept, with any stride, padding, dilation and groups.
TEST(SparseConv2d, ItsGradientEverywhereIsThatOfMaskedStorage) {
  torch::manual_seed(6);
  for (const auto& o : options()) {
    for (const std::int64_t batch : {1, 16, 19}) {
      auto dense = thinned(o);
      const auto sparse = SparseConv2dImpl::from_dense(*dense);
      CompressedWeight& weight = *sparse->weight();
      std::vector<at::Tensor> xs, dys;
      for (const std::int64_t size : {9, 8}) {  // two uses of one weight
        xs.push_back(torch::randn({batch, 6, size, size + 1}, torch::kDouble));
        dys.push_back(torch::randn_like(dense->forward(xs.back())));
      }
      dense->zero_grad();
      const at::Tensor g = dense_gradient(dense, xs, dys).reshape({dense->weight.size(0), -1});
      weight.want_dense_gradient(true);
      for (std::size_t i = 0; i < xs.size(); ++i) sparse->forward(xs[i]).backward(dys[i]);

      // Both sum the same products in double, at most 19 x 9 x 10 of them twice, of numbers below 10.
      at::Tensor sum = torch::ones(weight.shape(), torch::kDouble);
      weight.add_dense_gradient(sum);
      EXPECT_TRUE(torch::allclose(sum.view_as(g) - 1, g, 0, 1e-9));

      const at::Tensor kept = dense->weight.detach().view({-1}).ne(0);
      const at::Tensor except = kept.nonzero().view({-1});
      const std::int64_t free = weight.numel() - except.numel();
      at::Tensor order = g.abs().view({-1}).masked_fill(kept, -1).argsort(/*dim=*/-1, /*descending=*/true);
      for (const std::int64_t k : {std::int64_t{0}, std::int64_t{1}, free / 3, free}) {
        const at::Tensor expected = std::get<0>(order.slice(0, 0, k).sort());
        EXPECT_TRUE(torch::equal(weight.top_gradients(k, except), expected)) << k << " of " << free;
      }
      // Nothing left out: the kept positions have the gradient, too.
      order = g.abs().view({-1}).argsort(-1, true);
      const at::Tensor none = torch::empty({0}, torch::kInt64);
      EXPECT_TRUE(torch::equal(weight.top_gradients(weight.numel() / 2, none),
                               std::get<0>(order.slice(0, 0, weight.numel() / 2).sort())));
    }
  }
}

TEST(SparseConv2d, KeepsImagesBetweenLayers) {
  torch::manual_seed(5);
  SparseConv2d first(Conv2dOptions(3, 5, 5).padding(2)), second(Conv2dOptions(5, 4, 3).padding(1).stride(2));
  first->weight()->from_dense(torch::randn({5, 3, 5, 5}));
  second->weight()->from_dense(torch::randn({4, 5, 3, 3}));
  const auto x = torch::randn({3, 3, 8, 8});
  const Activation between = first->compute(x);
  ASSERT_TRUE(between.is_images());
  const Activation out = second->compute(between);
  ASSERT_TRUE(out.is_images());
  const auto expected =
      torch::conv2d(torch::conv2d(x, first->to_dense(), first->bias, 1, 2), second->to_dense(), second->bias, 2, 1);
  EXPECT_TRUE(torch::allclose(out.plain(), expected, 1e-3, 1e-3));
}

TEST(SparseConv2d, WithoutASparsifierEveryPositionIsActive) {
  SparseConv2d layer(Conv2dOptions(2, 3, 3));
  EXPECT_EQ(layer->weight()->nnz(), 54);
  EXPECT_EQ(layer->forward(torch::ones({1, 2, 3, 3})).sizes(), (std::vector<std::int64_t>{1, 3, 1, 1}));
  EXPECT_EQ(layer->weight()->shape(), (std::vector<std::int64_t>{3, 2, 3, 3}));
}

TEST(SparseConv2d, SaysWhatDoesNotFit) {
  SparseConv2d layer(Conv2dOptions(6, 8, 3));
  for (const bool gradients : {true, false}) {
    const torch::AutoGradMode mode(gradients);
    EXPECT_THROW(layer->forward(torch::zeros({2, 5, 8, 8})), Error);
    EXPECT_THROW(layer->forward(torch::zeros({2, 6, 2, 8})), Error);
    EXPECT_THROW(layer->forward(torch::zeros({2, 6, 8, 8}, torch::kDouble)), Error);
    EXPECT_THROW(layer->forward(torch::zeros({8, 8})), Error);
  }
  EXPECT_THROW(SparseConv2d(Conv2dOptions(6, 8, 3).padding_mode(torch::kReflect)), Error);
  EXPECT_THROW(SparseConv2d(Conv2dOptions(6, 8, 4).padding(torch::kSame)), Error);
  EXPECT_THROW(SparseConv2d(Conv2dOptions(6, 8, 3).groups(4)), Error);
}

}  // namespace
}  // namespace espalier::nn
