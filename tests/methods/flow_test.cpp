#include "espalier/methods/flow.h"

#include <gtest/gtest.h>

#include <cmath>

#include "espalier/nn/models.h"
#include "methods/small_networks.h"

namespace espalier {
namespace {

using Layers = std::vector<torch::nn::AnyModule>;

std::vector<double> list(const at::Tensor& t) {
  const at::Tensor flat = t.to(torch::kDouble).contiguous();
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

struct Weights {
  std::vector<std::unique_ptr<SparseWeight>> owned;
  std::vector<const SparseWeight*> list;
  std::vector<std::string> names;
  std::vector<at::Tensor> magnitudes(int power) const {
    std::vector<at::Tensor> m;
    for (const auto* w : list) m.push_back(magnitude(*w, power));
    return m;
  }
};

Weights weights_of(torch::nn::Module& net) {
  Weights all;
  for (auto& item : net.named_parameters()) {
    if (item.value().dim() < 2) continue;
    all.names.push_back(item.key());
    all.owned.push_back(make_masked_weight(item.key(), item.value(), {}, static_cast<std::int64_t>(all.owned.size())));
    all.list.push_back(all.owned.back().get());
  }
  return all;
}

/// Scores m . dR/dm of each weight.
std::vector<at::Tensor> scores(const std::shared_ptr<Chain>& net, std::vector<std::int64_t> input, int power,
                               double* total = nullptr) {
  const Weights w = weights_of(*net);
  const auto flow = FlowNetwork(probe_of(net, std::move(input)), w.names, false, power)(w.magnitudes(power));
  if (total != nullptr) *total = flow.total;
  std::vector<at::Tensor> s;
  for (std::size_t l = 0; l < w.list.size(); ++l) s.push_back(w.magnitudes(power)[l] * flow.gradients[l]);
  return s;
}

TEST(FlowNetwork, HandNet) {
  double r = 0;
  const auto l1 = scores(hand_net(), {2}, 1, &r);
  EXPECT_EQ(r, 57);
  EXPECT_EQ(list(l1[0]), (std::vector<double>{5, 10, 18, 24}));
  EXPECT_EQ(list(l1[1]), (std::vector<double>{15, 42}));
  const auto l2 = scores(hand_net(), {2}, 2, &r);
  EXPECT_EQ(r, 1025);
  EXPECT_EQ(list(l2[0]), (std::vector<double>{25, 100, 324, 576}));
  EXPECT_EQ(list(l2[1]), (std::vector<double>{125, 900}));
}

TEST(FlowNetwork, HandNetWithBiases) {
  const auto net = hand_net(true);
  const Weights w = weights_of(*net);
  FlowNetwork network(probe_of(net, {2}), w.names, /*biases=*/true);
  const auto flow = network(w.magnitudes(1));
  EXPECT_EQ(flow.total, 70);
  EXPECT_EQ((w.magnitudes(1)[0] * flow.gradients[0]).sum().item<double>(), 57);
  EXPECT_EQ(flow.of_biases[0].sum().item<double>(), 11);
  EXPECT_EQ((w.magnitudes(1)[1] * flow.gradients[1]).sum().item<double>(), 68);
  EXPECT_EQ(flow.of_biases[1].sum().item<double>(), 2);
  // Without them, the same network is the one without biases.
  EXPECT_EQ(FlowNetwork(probe_of(net, {2}), w.names)(w.magnitudes(1)).total, 57);
}

TEST(FlowNetwork, SignsDoNotMatter) {
  const auto net = hand_net();
  {
    const torch::NoGradGuard no_grad;
    net->named_parameters()["l1.weight"].mul_(torch::tensor({{-1.0, 1.0}, {1.0, -1.0}}));
    net->named_parameters()["l2.weight"].mul_(-1);
  }
  for (const int power : {1, 2}) {
    const auto flipped = scores(net, {2}, power), plain = scores(hand_net(), {2}, power);
    for (std::size_t l = 0; l < 2; ++l) EXPECT_TRUE(torch::equal(flipped[l], plain[l]));
  }
  const Weights w = weights_of(*net);
  EXPECT_EQ(network_flow(probe_of(net, {2}), w.list).trace, 152);
}

TEST(FlowNetwork, WhatComesIntoAHiddenUnitGoesOut) {
  const auto hand = scores(hand_net(), {2}, 1);
  EXPECT_EQ(list(hand[0].sum(1)), (std::vector<double>{15, 42}));
  EXPECT_EQ(list(hand[1].sum(0)), (std::vector<double>{15, 42}));
  torch::manual_seed(16);
  auto net = std::make_shared<Chain>(Layers{linear(6, 9), linear(9, 7), linear(7, 2)});
  net->to(torch::kDouble);
  for (const int power : {1, 2}) {
    const auto s = scores(net, {6}, power);
    for (std::size_t l = 0; l < 2; ++l) EXPECT_TRUE(torch::allclose(s[l].sum(1), s[l + 1].sum(0), 1e-12)) << l;
  }
}

TEST(PathKernel, HandNet) {
  const auto pi = path_kernel({torch::tensor({{1.0, 2.0}, {3.0, 4.0}}), torch::tensor({{5.0, 6.0}})});
  EXPECT_TRUE(torch::equal(
      pi, torch::tensor({{26.0, 2.0, 0.0, 0.0}, {2.0, 29.0, 0.0, 0.0}, {0.0, 0.0, 45.0, 12.0}, {0.0, 0.0, 12.0, 52.0}},
                        torch::kDouble)));
  const auto net = hand_net();
  const Weights w = weights_of(*net);
  const NetworkFlow flow = network_flow(probe_of(net, {2}), w.list);
  EXPECT_EQ(flow.trace, 152);
  EXPECT_EQ(flow.layers[0].trace, 122);
  EXPECT_EQ(flow.layers[1].trace, 30);
  EXPECT_EQ(flow.flow, 57);
  EXPECT_EQ(flow.layers[1].flow, 57);
}

TEST(PathKernel, OnePassGivesItsTrace) {
  torch::manual_seed(1);
  for (const double density : {1.0, 0.5, 0.2}) {
    auto net = std::make_shared<Chain>(Layers{linear(4, 5), linear(5, 3), linear(3, 4)});
    net->to(torch::kDouble);
    Weights w = weights_of(*net);
    std::vector<at::Tensor> chain;
    for (std::size_t l = 0; l < 3; ++l) {
      const at::Tensor kept = torch::rand(w.list[l]->numel()).lt(density).nonzero().flatten();
      w.owned[l]->keep(kept);
      const at::Tensor mask = torch::zeros(w.list[l]->numel(), torch::kDouble).index_fill_(0, kept, 1);
      chain.push_back(net->named_parameters()[w.names[l]].detach() * mask.view(w.list[l]->shape()));
    }
    const double expected = path_kernel(chain).trace().item<double>();
    EXPECT_NEAR(network_flow(probe_of(net, {4}), w.list).trace, expected, 1e-12 * (1 + expected)) << density;
  }
  EXPECT_NE(message_of([] { path_kernel({torch::ones({70, 70})}); }).find("more than 4096 paths"), std::string::npos);
}

/// Sums of scores of each layer and of each layer's bias.
void expect_conserved(const std::shared_ptr<Chain>& net, const std::vector<std::int64_t>& input) {
  net->to(torch::kDouble);
  const Weights w = weights_of(*net);
  const auto with = FlowNetwork(probe_of(net, input), w.names, true)(w.magnitudes(1));
  const auto without = FlowNetwork(probe_of(net, input), w.names)(w.magnitudes(1));
  double carried = without.total;  // R of the input, and what biases below have added
  for (std::size_t l = 0; l < w.list.size(); ++l) {
    const at::Tensor m = w.magnitudes(1)[l];
    EXPECT_NEAR((m * without.gradients[l]).sum().item<double>(), without.total, 1e-10 * without.total) << l;
    EXPECT_NEAR((m * with.gradients[l]).sum().item<double>(), carried, 1e-10 * carried) << l;
    carried += with.of_biases[l].sum().item<double>();
  }
  EXPECT_NEAR(carried, with.total, 1e-10 * carried);
  EXPECT_GT(with.total, 1.01 * without.total);
}

TEST(FlowNetwork, IsConservedFromLayerToLayer) {
  torch::manual_seed(2);
  expect_conserved(std::make_shared<Chain>(Layers{linear(7, 11, true), linear(11, 5, true), linear(5, 3, true)}), {7});
  expect_conserved(std::make_shared<Chain>(Layers{conv(3, 4, 3, true), conv(4, 6, 5, true), linear(6 * 25, 3, true)}),
                   {3, 5, 5});
  for (const std::vector<std::int64_t>& sizes : std::vector<std::vector<std::int64_t>>{
           {5, 2}, {3, 8, 4}, {9, 2, 7, 5}, {2, 11, 3, 6, 4, 2}, {4, 4, 4, 4, 4, 4, 4, 4}}) {
    const auto edge = 2 + static_cast<std::int64_t>(sizes.size());
    Layers mlp, convolutions;
    for (std::size_t l = 0; l + 1 < sizes.size(); ++l) {
      mlp.push_back(linear(sizes[l], sizes[l + 1], true));
      convolutions.push_back(conv(sizes[l], sizes[l + 1], l % 2 == 0 ? 3 : 1, true));
    }
    convolutions.push_back(linear(sizes.back() * edge * edge, 3, true));
    expect_conserved(std::make_shared<Chain>(mlp), {sizes[0]});
    expect_conserved(std::make_shared<Chain>(convolutions), {sizes[0], edge, edge});
  }
}

TEST(FlowNetwork, AConvolutionAsLargeAsItsInputIsALinearLayer) {
  torch::manual_seed(3);
  auto image = std::make_shared<Chain>(
      Layers{torch::nn::AnyModule(torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 6, 4).bias(false))), linear(6, 3)});
  auto flat = std::make_shared<Chain>(Layers{linear(32, 6), linear(6, 3)});
  {
    const torch::NoGradGuard no_grad;
    flat->named_parameters()["l1.weight"].copy_(image->named_parameters()["l1.weight"].flatten(1));
    flat->named_parameters()["l2.weight"].copy_(image->named_parameters()["l2.weight"]);
  }
  for (const int power : {1, 2}) {
    const auto a = scores(image, {2, 4, 4}, power), b = scores(flat, {2, 4, 4}, power);
    for (std::size_t l = 0; l < 2; ++l) EXPECT_TRUE(torch::allclose(a[l].flatten(), b[l].flatten(), 1e-12));
  }
  const Weights wa = weights_of(*image), wb = weights_of(*flat);
  EXPECT_NEAR(network_flow(probe_of(image, {2, 4, 4}), wa.list).trace,
              network_flow(probe_of(flat, {2, 4, 4}), wb.list).trace, 1e-10);
}

TEST(FlowNetwork, BatchNormIsTheIdentity) {
  // A residual network has batch norm in every branch: with all weights of a path one, R counts the paths exactly.
  nn::ModelOptions options;
  options.name = "layers";
  options.layers = {"conv(2, kernel=1)", "batchnorm(eps=0.25)", "relu", "flatten", "batchnorm", "linear(classes)"};
  auto net = std::dynamic_pointer_cast<torch::nn::Module>(nn::make_model(options, {3, 2, 2}, 2, 1));
  Probe probe;
  probe.input = {3, 2, 2};
  probe.network = [&] {
    const auto made = nn::make_model(options, {3, 2, 2}, 2, 1);
    return ProbeNetwork{made, [made](const at::Tensor& x) { return made->forward(x); }};
  };
  FlowNetwork network(probe, {"0.weight", "5.weight"});
  EXPECT_NEAR(network({torch::ones({2, 3, 1, 1}), torch::ones({2, 8})}).total, 2 * 8 * 3, 1e-13);
}

TEST(FlowNetwork, RefusesWhatIsNotLinearInPositiveInputsAndWhatOverflows) {
  nn::ModelOptions options;
  options.name = "layers";
  Probe probe;
  probe.input = {1, 2, 2};
  probe.network = [&] {
    const auto made = nn::make_model(options, {1, 2, 2}, 2, 1);
    return ProbeNetwork{made, [made](const at::Tensor& x) { return made->forward(x); }};
  };
  options.layers = {"flatten", "linear(3)", "tanh", "linear(classes)"};
  EXPECT_NE(message_of([&] {
              FlowNetwork n(probe, {"1.weight", "3.weight"});
              n({torch::ones({3, 4}), torch::ones({2, 3})});
            }).find("no linear function"),
            std::string::npos);
  options.layers = {"flatten", "linear(3)", "leakyrelu", "linear(classes)"};
  FlowNetwork n(probe, {"1.weight", "3.weight"});
  EXPECT_EQ(n({torch::ones({3, 4}), torch::ones({2, 3})}).total, 24);
  EXPECT_EQ(n({torch::full({3, 4}, 1e150, torch::kDouble), torch::full({2, 3}, 1e100, torch::kDouble)}).total,
            24e250);  // float ends at 3e38
  EXPECT_NE(message_of([&] {
              n({torch::full({3, 4}, 1e250, torch::kDouble), torch::full({2, 3}, 1e100, torch::kDouble)});
            }).find("even in double precision"),
            std::string::npos);
}

}  // namespace
}  // namespace espalier
