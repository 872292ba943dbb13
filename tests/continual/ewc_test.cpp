#include "espalier/continual/ewc.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/nn/models.h"

namespace espalier::continual {
namespace {

/// A linear classifier on images of one pixel, three classes.
std::shared_ptr<nn::Network> linear() {
  nn::ModelOptions options;
  options.widths = {};
  return nn::make_model(options, {1, 1, 1}, 3, 1);
}

data::Loader one_image(std::int64_t copies) {
  data::Images images{torch::full({copies, 1, 1, 1}, 255, torch::kUInt8), torch::zeros({copies}, torch::kInt64)};
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < copies; ++i) all.push_back(i);
  return {images, all, {{0.f}, {1.f}}, {}};
}

TEST(Ewc, FisherOfALinearSoftmaxIsItsClosedForm) {
  // x = 1: d log p(y) / d b_c = [y = c] - p_c, so F_c = sum_y p_y ([y = c] - p_c)^2 = p_c (1 - p_c).
  const auto network = linear();
  train::NamedTensors parameters;
  for (const auto& item : network->named_parameters()) parameters.emplace_back(item.key(), item.value());
  const torch::Tensor x = torch::ones({1, 1, 1, 1});
  const torch::Tensor p = network->forward(x).softmax(1).detach().flatten();
  const std::int64_t n = 4000;
  const auto fisher = fisher_information(*network, parameters, one_image(n), n, 1, 1);
  ASSERT_EQ(fisher.size(), 2u);
  for (const auto& [name, f] : fisher) {
    for (int c = 0; c < 3; ++c) {
      const double pc = p[c].item<double>();
      // The mean of n draws of a variable in [0, 1]: 5 standard deviations at most 5 / (2 sqrt n) = 0.04.
      EXPECT_NEAR(f.flatten()[c].item<double>(), pc * (1 - pc), 0.04) << name;
    }
  }
  const auto again = fisher_information(*network, parameters, one_image(n), n, 1, 1);
  EXPECT_TRUE(again[0].second.equal(fisher[0].second));
}

TEST(Ewc, SeveralAnchorsPullAsTheSumOfTheirPenalties) {
  torch::Tensor w = torch::tensor({1.0, 2.0}, torch::TensorOptions().dtype(torch::kDouble).requires_grad(true));
  const torch::Tensor f1 = torch::tensor({0.5, 0.0}, torch::kDouble), f2 = torch::tensor({0.1, 3.0}, torch::kDouble);
  train::NamedTensors anchors;
  anchor(anchors, {{"w", f1}}, {{"w", torch::tensor({1.0, 2.0}, torch::kDouble)}});
  anchor(anchors, {{"w", f2}}, {{"w", torch::tensor({-1.0, 0.5}, torch::kDouble)}});
  const double lambda = 7;
  // The penalty itself, by autograd.
  const torch::Tensor penalty = lambda / 2 *
                                ((f1 * (w - torch::tensor({1.0, 2.0}, torch::kDouble)).pow(2)).sum() +
                                 (f2 * (w - torch::tensor({-1.0, 0.5}, torch::kDouble)).pow(2)).sum());
  const torch::Tensor expected = torch::autograd::grad({penalty}, {w})[0];
  w.mutable_grad() = torch::tensor({10.0, 20.0}, torch::kDouble);
  pull_back(anchors, {{"w", w}, {"other", w}}, lambda);
  EXPECT_TRUE(torch::allclose(w.grad(), expected + torch::tensor({10.0, 20.0}, torch::kDouble), 1e-12, 1e-12))
      << w.grad();
}

TEST(Ewc, AParameterWithoutAGradientIsLeftAlone) {
  torch::Tensor w = torch::ones({2}).requires_grad_();
  train::NamedTensors anchors;
  anchor(anchors, {{"w", torch::ones({2})}}, {{"w", torch::zeros({2})}});
  pull_back(anchors, {{"w", w}}, 1);
  EXPECT_FALSE(w.grad().defined());
}

}  // namespace
}  // namespace espalier::continual
