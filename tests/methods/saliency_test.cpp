#include "espalier/methods/saliency.h"

#include <gtest/gtest.h>

#include "methods/small_networks.h"

namespace espalier {
namespace {

std::vector<double> list(const at::Tensor& t) { return {t.data_ptr<double>(), t.data_ptr<double>() + t.numel()}; }

/// y = w . x, w = (1, -2), L = y^2 / 2.
struct Line {
  Line() : net(std::make_shared<Chain>(std::vector<torch::nn::AnyModule>{linear(2, 1)})) {
    net->to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    net->named_parameters()["l1.weight"].copy_(torch::tensor({{1.0, -2.0}}));
    probe = probe_of(net, {2});
    probe.loss = [](const at::Tensor& y, const at::Tensor&) { return (y * y).mean() / 2; };
  }
  std::shared_ptr<Chain> net;
  Probe probe;
  ProbeBatch batch{torch::tensor({{3.0, 1.0}}, torch::kDouble), torch::zeros({1}, torch::kLong)};
};

TEST(Snip, HandNet) {
  Line line;
  const auto s = snip_scores(line.probe, {"l1.weight"}, {line.batch});
  EXPECT_EQ(list(s[0]), (std::vector<double>{3, 2}));  // y = 1, g = (3, 1), |w g| = (3, 2)
  // The gradient is that of all batches together, and then its size is taken: twice the same changes nothing.
  EXPECT_EQ(list(snip_scores(line.probe, {"l1.weight"}, {line.batch, line.batch})[0]), (std::vector<double>{3, 2}));
  const ProbeBatch opposite{torch::tensor({{-3.0, -1.0}}, torch::kDouble), line.batch.labels};  // y = -1, the same g
  EXPECT_EQ(list(snip_scores(line.probe, {"l1.weight"}, {line.batch, opposite})[0]), (std::vector<double>{3, 2}));
}

TEST(Snip, IsTheSlopeOfTheGates) {
  // c gates the weights, y = (c . w) . x: dL/dc = (3, -2), by central differences of a quadratic, and |dL/dc| = |w g|.
  const double w[] = {1, -2}, x[] = {3, 1};
  const auto loss = [&](double c0, double c1) {
    const double y = c0 * w[0] * x[0] + c1 * w[1] * x[1];
    return y * y / 2;
  };
  const double h = 0.5;
  const double slopes[] = {(loss(1 + h, 1) - loss(1 - h, 1)) / (2 * h), (loss(1, 1 + h) - loss(1, 1 - h)) / (2 * h)};
  EXPECT_EQ(slopes[0], 3);
  EXPECT_EQ(slopes[1], -2);
  Line line;
  const auto s = list(snip_scores(line.probe, {"l1.weight"}, {line.batch})[0]);
  for (std::size_t k = 0; k < 2; ++k) EXPECT_EQ(s[k], std::abs(slopes[k]));
  // Normalised, (0.6, 0.4), whatever the loss is multiplied with.
  for (const double c : {0.125, 1.0, 1024.0}) {
    line.probe.loss = [c](const at::Tensor& y, const at::Tensor&) { return c * (y * y).mean() / 2; };
    const auto scaled = list(snip_scores(line.probe, {"l1.weight"}, {line.batch})[0]);
    EXPECT_EQ(scaled[0] / (scaled[0] + scaled[1]), 0.6) << c;
    EXPECT_EQ(scaled[1] / (scaled[0] + scaled[1]), 0.4) << c;
  }
}

TEST(Grasp, HandNet) {
  Line line;
  const auto s = grasp_scores(line.probe, {"l1.weight"}, {line.batch}, 1);
  EXPECT_EQ(list(s[0]),
            (std::vector<double>{30, -20}));  // w . Hg; the paper's score is minus that: weight 2 goes first
}

TEST(Grasp, ScoreIsTheSlopeOfTheSquaredGradient) {
  // d |g|^2 / d w = 2 H g, by central differences through the loss of a small classifier.
  torch::manual_seed(4);
  auto net = std::make_shared<Chain>(std::vector<torch::nn::AnyModule>{linear(4, 5, true), linear(5, 3)});
  net->to(torch::kDouble);
  const Probe probe = probe_of(net, {4});
  const ProbeBatch batch{torch::randn({7, 4}, torch::kDouble), torch::arange(7) % 3};
  const std::vector<std::string> names = {"l1.weight", "l2.weight"};
  const double temperature = 3;
  const auto s = grasp_scores(probe, names, {batch}, temperature);
  const auto squared = [&] {
    std::vector<at::Tensor> w;
    for (const auto& n : names) w.push_back(net->named_parameters()[n]);
    const auto g =
        torch::autograd::grad({torch::cross_entropy_loss(net->forward(batch.inputs) / temperature, batch.labels)}, w);
    return g[0].square().sum().item<double>() + g[1].square().sum().item<double>();
  };
  double largest = 0;
  for (std::size_t l = 0; l < 2; ++l) {
    at::Tensor w = net->named_parameters()[names[l]].detach().flatten();  // shares memory
    for (std::int64_t k = 0; k < w.numel(); ++k) {
      const double value = w[k].item<double>(), h = 1e-5;
      w[k] = value + h;
      const double above = squared();
      w[k] = value - h;
      const double below = squared();
      w[k] = value;
      const double expected = value * (above - below) / (2 * h) / 2;
      EXPECT_NEAR(s[l][k].item<double>(), expected, 1e-9) << l << " " << k;
      largest = std::max(largest, std::abs(expected));
    }
  }
  EXPECT_GT(largest, 1e-3);
  // Parts of the batch, of different sizes, give the same.
  const auto parts = split(batch, 3);
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].inputs.size(0), 3);
  const auto by_parts = grasp_scores(probe, names, parts, temperature);
  for (std::size_t l = 0; l < 2; ++l) EXPECT_TRUE(torch::allclose(by_parts[l], s[l], 1e-10, 1e-14));
  EXPECT_EQ(split(batch, 50).size(), 7u);
}

TEST(Snip, AConvolutionAsLargeAsItsInputIsALinearLayer) {
  torch::manual_seed(5);
  auto image = std::make_shared<Chain>(std::vector<torch::nn::AnyModule>{
      torch::nn::AnyModule(torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 6, 4).bias(false))), linear(6, 3)});
  auto flat = std::make_shared<Chain>(std::vector<torch::nn::AnyModule>{linear(32, 6), linear(6, 3)});
  image->to(torch::kDouble);
  flat->to(torch::kDouble);
  {
    const torch::NoGradGuard no_grad;
    flat->named_parameters()["l1.weight"].copy_(image->named_parameters()["l1.weight"].flatten(1));
    flat->named_parameters()["l2.weight"].copy_(image->named_parameters()["l2.weight"]);
  }
  const ProbeBatch batch{torch::randn({5, 2, 4, 4}, torch::kDouble), torch::arange(5) % 3};
  const std::vector<std::string> names = {"l1.weight", "l2.weight"};
  const Probe a = probe_of(image, {2, 4, 4}), b = probe_of(flat, {2, 4, 4});
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_TRUE(torch::allclose(snip_scores(a, names, {batch})[l], snip_scores(b, names, {batch})[l], 1e-10));
    EXPECT_TRUE(
        torch::allclose(grasp_scores(a, names, {batch}, 2)[l], grasp_scores(b, names, {batch}, 2)[l], 1e-10, 1e-14));
  }
}

TEST(Snip, LeavesTheModelAlone) {
  auto net = std::make_shared<torch::nn::SequentialImpl>(torch::nn::Linear(4, 3), torch::nn::BatchNorm1d(3),
                                                         torch::nn::Dropout(0.5), torch::nn::Linear(3, 2));
  std::vector<at::Tensor> before;
  for (const auto& t : net->parameters()) before.push_back(t.detach().clone());
  for (const auto& t : net->buffers()) before.push_back(t.clone());
  Probe probe;
  probe.network = [net] {
    auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(net->clone());
    return ProbeNetwork{copy, [copy](const at::Tensor& x) { return copy->forward(x); }};
  };
  const ProbeBatch batch{torch::randn({6, 4}), torch::arange(6) % 2};
  const auto once = snip_scores(probe, {"0.weight", "3.weight"}, {batch});
  const auto again = snip_scores(probe, {"0.weight", "3.weight"}, {batch});  // dropout would make another
  EXPECT_TRUE(torch::equal(once[0], again[0]));
  std::size_t i = 0;
  for (const auto& t : net->parameters()) EXPECT_TRUE(torch::equal(t, before[i++]));
  for (const auto& t : net->buffers()) EXPECT_TRUE(torch::equal(t, before[i++]));
}

}  // namespace
}  // namespace espalier
