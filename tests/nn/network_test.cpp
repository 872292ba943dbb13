#include "espalier/nn/network.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <set>

#include "espalier/core/error.h"
#include "espalier/nn/models.h"

namespace espalier::nn {
namespace {

std::shared_ptr<Network> make(const std::string& name, InputShape input, std::int64_t classes = 10) {
  ModelOptions options;
  options.name = name;
  return make_model(options, input, classes, 1);
}

std::int64_t total_macs(Network& network) {
  std::int64_t macs = 0;
  for (const auto& c : layer_costs(network)) macs += c.macs;
  return macs;
}

TEST(Network, ChecksTheImages) {
  auto net = make("mlp", {1, 28, 28});
  EXPECT_EQ(net->forward(torch::zeros({3, 1, 28, 28})).sizes(), (std::vector<std::int64_t>{3, 10}));
  EXPECT_EQ(net->forward(torch::zeros({0, 1, 28, 28})).sizes(), (std::vector<std::int64_t>{0, 10}));
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{3, 784}, {3, 3, 28, 28}, {3, 1, 28, 27}, {28, 28}}) {
    try {
      net->forward(torch::zeros(shape));
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
      EXPECT_NE(std::string(e.what()).find("expected [N, 1, 28, 28]"), std::string::npos) << e.what();
    }
  }
}

TEST(Network, TheObserverSeesEveryModuleUnderItsName) {
  auto net = make("resnet20", {3, 32, 32});
  net->eval();
  std::vector<std::string> seen;
  torch::Tensor first, last;
  const auto images = torch::rand({2, 3, 32, 32});
  const auto logits = net->forward(images, [&](const std::string& name, const torch::Tensor& output) {
    if (seen.empty()) first = output.clone();
    seen.push_back(name);
    last = output;
  });
  ASSERT_GE(seen.size(), 9u);
  EXPECT_EQ((std::vector<std::string>(seen.begin(), seen.begin() + 7)),
            (std::vector<std::string>{"conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2",
                                      "layer1.0.bn2", "layer1.0"}));
  EXPECT_EQ(seen.back(), "linear");
  EXPECT_TRUE(last.equal(logits));
  EXPECT_TRUE(first.equal(torch::conv2d(images, net->named_parameters()["conv1.weight"], {}, 1, 1)));
  EXPECT_TRUE(logits.equal(net->forward(images)));
  // 2 + 9 blocks of 4 layers and themselves + 2 shortcuts of 2 + 1, each once.
  EXPECT_EQ(seen.size(), 2u + 9 * 5 + 2 * 2 + 1);
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), seen.size());
  for (const auto& name : seen) EXPECT_TRUE(net->named_modules().contains(name)) << name;
}

TEST(Network, TheObserverFindsTheFirstNonFiniteLayer) {
  auto net = make("wrn-28-2", {3, 32, 32});
  net->eval();
  {
    const torch::NoGradGuard no_grad;
    net->named_parameters()["block2.layer.1.conv2.weight"][3][0][0][0] = std::nanf("");
  }
  std::string at_fault;
  net->forward(torch::rand({1, 3, 32, 32}), [&](const std::string& name, const torch::Tensor& output) {
    if (at_fault.empty() && !output.isfinite().all().item<bool>()) at_fault = name;
  });
  EXPECT_EQ(at_fault, "block2.layer.1.conv2");
}

// The numbers behind these: weights [out, in], one multiply-accumulate a weight.
TEST(LayerCosts, OfLeNet300100) {
  const auto costs = layer_costs(*make("lenet-300-100", {1, 28, 28}));
  ASSERT_EQ(costs.size(), 3u);
  EXPECT_EQ(costs[0].name, "fc1");
  EXPECT_EQ(costs[0].kind, "linear");
  EXPECT_EQ(costs[0].weight_shape, (std::vector<std::int64_t>{300, 784}));
  EXPECT_EQ(costs[0].weights, 235200);
  EXPECT_EQ(costs[0].macs, 235200);
  EXPECT_EQ(costs[0].output_shape, (std::vector<std::int64_t>{300}));
  EXPECT_EQ(costs[1].macs, 30000);
  EXPECT_EQ(costs[2].macs, 1000);
}

// Conv: Cout x Cin / groups x kh x kw x Hout x Wout. Image 11x9, kernel 3x2, stride 2x1, padding 1x0, dilation 1x2:
// Hout = (11 + 2 - 3) / 2 + 1 = 6, Wout = 9 - 3 + 1 = 7.
TEST(LayerCosts, OfAGroupedStridedConvolution) {
  ModelOptions o;
  o.name = "layers";
  o.layers = {"conv(8, kernel=3x2, stride=2x1, padding=1x0, dilation=1x2, groups=2)", "flatten", "linear(classes)"};
  const auto costs = layer_costs(*make_model(o, {4, 11, 9}, 5, 0));
  ASSERT_EQ(costs.size(), 2u);
  EXPECT_EQ(costs[0].name, "0");
  EXPECT_EQ(costs[0].kind, "conv2d");
  EXPECT_EQ(costs[0].weight_shape, (std::vector<std::int64_t>{8, 2, 3, 2}));
  EXPECT_EQ(costs[0].weights, 96);
  EXPECT_EQ(costs[0].output_shape, (std::vector<std::int64_t>{8, 6, 7}));
  EXPECT_EQ(costs[0].macs, 96 * 6 * 7);
  EXPECT_EQ(costs[1].macs, 8 * 6 * 7 * 5);
}

// ResNet-20 by hand, 3x3 kernels: stem 3x16x9 x 32^2 = 442,368; stage 1: 6 x 16x16x9 x 32^2 = 14,155,776; stages 2 and
// 3: (16x32 + 5 x 32x32) x 9 x 16^2 = (32x64 + 5 x 64x64) x 9 x 8^2 = 12,976,128 each; linear 640. Together 40,551,040,
// the published 40.55 M of option A. The two 1x1 shortcuts add 16x32 x 16^2 + 32x64 x 8^2 = 262,144.
TEST(LayerCosts, OfResNet20) { EXPECT_EQ(total_macs(*make("resnet20", {3, 32, 32})), 40551040 + 262144); }

// Stem 442,368. Stage 1: (16x32 + 7 x 32x32) x 9 x 32^2 = 70,778,880; stages 2 and 3 at half the size and double the
// width: (32x64 + 7 x 64x64) x 9 x 16^2 = 70,778,880 each. Shortcuts: 16x32 x 32^2 + 32x64 x 16^2 + 64x128 x 8^2 =
// 3 x 524,288. Linear 1,280.
TEST(LayerCosts, OfWrn282) {
  EXPECT_EQ(total_macs(*make("wrn-28-2", {3, 32, 32})), 442368 + 3 * 70778880 + 3 * 524288 + 1280);
}

TEST(LayerCosts, JoinWithTheParametersOfEveryModel) {
  for (const ModelInfo& info : known_models()) {
    if (info.name == "layers") continue;
    auto net = make(info.name, {3, 32, 32});
    const auto parameters = net->named_parameters();
    std::int64_t weights = 0, matrices = 0;
    for (const auto& c : layer_costs(*net)) {
      ASSERT_TRUE(parameters.contains(c.name + ".weight")) << info.name << " " << c.name;
      EXPECT_EQ(parameters[c.name + ".weight"].sizes(), c.weight_shape);
      weights += c.weights;
    }
    for (const auto& p : parameters)
      if (p.value().dim() > 1) matrices += p.value().numel();
    EXPECT_EQ(weights, matrices) << info.name;
  }
}

TEST(LayerCosts, LeaveTheNetworkAsItWas) {
  auto net = make("resnet20", {3, 32, 32});
  net->train();
  auto frozen = net->named_modules()["layer2.0"];
  frozen->eval();
  std::vector<torch::Tensor> before;
  for (const auto& b : net->buffers()) before.push_back(b.clone());
  torch::manual_seed(5);
  layer_costs(*net);
  const auto draw = torch::rand({4});
  torch::manual_seed(5);
  EXPECT_TRUE(draw.equal(torch::rand({4})));
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(net->buffers()[i].equal(before[i]));
  for (const auto& m : net->named_modules())
    EXPECT_EQ(m.value()->is_training(), m.key().rfind("layer2.0", 0) != 0) << m.key();
}

/// A user's own network, one of whose layers may be hidden from the observer.
class TwoLayers : public Network {
 public:
  explicit TwoLayers(bool hide) : Network({1, 2, 2}, 3), hide_(hide) {
    register_module("a", a_);
    register_module("b", b_);
    to(torch::kDouble);
  }

 protected:
  Activation compute(const torch::Tensor& images, const Trace& trace) override {
    const auto x = a_->forward(images.flatten(1)).relu();
    return trace("b", b_->forward(hide_ ? x : trace("a", x)));
  }

 private:
  bool hide_;
  torch::nn::Linear a_{4, 5}, b_{5, 3};
};

TEST(LayerCosts, OfAUsersNetwork) {
  TwoLayers net(false);
  EXPECT_EQ(total_macs(net), 20 + 15);
  TwoLayers hiding(true);
  EXPECT_THROW(layer_costs(hiding), Error);
}

}  // namespace
}  // namespace espalier::nn
