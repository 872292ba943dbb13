#include "espalier/methods/wired.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/models.h"
#include "methods/small_networks.h"

namespace espalier {
namespace {

using Layers = std::vector<torch::nn::AnyModule>;

/// The weights of a network as a method gets them.
struct Context : MethodContext {
  explicit Context(torch::nn::Module& net, const Probe* given = nullptr) {
    for (auto& item : net.named_parameters()) {
      if (item.value().dim() < 2) continue;
      owned.push_back(make_masked_weight(item.key(), item.value(), {}, static_cast<std::int64_t>(owned.size())));
      weights.push_back(owned.back().get());
    }
    probe = given;
  }
  std::vector<std::unique_ptr<SparseWeight>> owned;
};

void keep(SparseWeight& w, const std::vector<std::int64_t>& positions) {
  w.keep(torch::tensor(positions, torch::kInt64));
}

TEST(Wire, ReadsUnitsGroupsAndFlattening) {
  Chain net(Layers{conv(4, 6, 3, false, 2), conv(6, 8, 1), linear(8 * 25, 10), linear(10, 3)});
  const Context c(net);
  const WiredNetwork n = wire(c);
  ASSERT_EQ(n.line.size(), 4u);
  EXPECT_EQ(n.line[0].kernel, 9);
  EXPECT_EQ(n.line[0].groups, 1);  // nobody has said that the input has 4 channels
  EXPECT_EQ(n.line[1].inputs, 6);
  EXPECT_EQ(n.line[2].spread, 25);
  EXPECT_EQ(n.line[2].inputs, 200);
  EXPECT_EQ(n.line[3].spread, 1);
  Probe probe;
  probe.wiring = {4, {"l1", "l2", "l3", "l4"}, {}};
  const Context told(net, &probe);
  EXPECT_EQ(wire(told).line[0].groups, 2);
  EXPECT_EQ(wire(told).line[0].inputs, 4);
  probe.wiring.line = {"l1", "l3", "l2", "l4"};
  EXPECT_NE(message_of([&] { wire(told); }).find("cannot read"), std::string::npos);
  probe.wiring.line = {"l1", "l5"};
  EXPECT_NE(message_of([&] { wire(told); }).find("\"l5\""), std::string::npos);
}

TEST(Connections, WidthsOfAHandNet) {
  Chain net(Layers{linear(2, 3), linear(3, 3), linear(3, 1)});
  Context c(net);
  // unit 1 of l1 has an input and an output, unit 2 an input alone, unit 3 an output alone
  keep(*c.weights[0], {0, 3});     // (1,1) (2,2)
  keep(*c.weights[1], {0, 2, 3});  // (1,1) (1,3) (2,1)
  keep(*c.weights[2], {0});        // (1,1)
  const Connections k = connections(wire(c));
  EXPECT_EQ(k.widths, (std::vector<std::int64_t>{1, 1, 1}));
  EXPECT_TRUE(k.connected);
  keep(*c.weights[1],
       {2, 3});  // (1,3) leads on from the unit that nothing comes into, (2,1) to one that l3 does not read
  EXPECT_FALSE(connections(wire(c)).connected);
  EXPECT_EQ(*connections(wire(c)).cut_at, 2u);
  keep(*c.weights[1], {2});
  EXPECT_EQ(*connections(wire(c)).cut_at, 1u);
  EXPECT_NE(message_of([&] { refuse_if_cut(c); })
                .find("the network is cut: no path of kept weights leads from the "
                      "input through l2.weight (1 of 9 weights kept)"),
            std::string::npos);
}

TEST(Connections, OutputsThatNoPathLeadsToAreWarnedOf) {
  Chain net(Layers{linear(2, 3), linear(3, 4)});
  Context c(net);
  std::vector<std::string> said;
  set_log_sink([&](LogLevel level, const std::string& text) {
    if (level == LogLevel::warning) said.push_back(text);
  });
  keep(*c.weights[0], {0, 3});  // units 1 and 2 of l1; nothing comes into unit 3
  EXPECT_EQ(connections(wire(c)).unreached, 0);
  refuse_if_cut(c);
  keep(*c.weights[1], {0, 4, 5, 11});  // outputs 1 and 2, and 4 from unit 3; output 3 has no weight
  EXPECT_EQ(connections(wire(c)).unreached, 2);
  refuse_if_cut(c);
  set_log_sink({});
  EXPECT_EQ(said, (std::vector<std::string>{"no path of kept weights leads to 2 of the 4 outputs: the network cannot "
                                            "tell them apart"}));
}

TEST(Connections, AResidualNetworkLivesOnItsSkips) {
  nn::ModelOptions options;
  options.name = "resnet20";
  const auto net = nn::make_model(options, {3, 8, 8}, 10, 1);
  Probe probe;
  probe.wiring = net->wiring();
  EXPECT_EQ(probe.wiring.line.size(), 20u);
  EXPECT_EQ(probe.wiring.bypasses.size(), 9u);
  EXPECT_EQ(std::count_if(probe.wiring.bypasses.begin(), probe.wiring.bypasses.end(),
                          [](const auto& b) { return !b.layer.empty(); }),
            2);
  Context c(*net, &probe);
  const auto weight = [&](const std::string& name) -> SparseWeight& {
    for (SparseWeight* w : c.weights)
      if (w->name() == name) return *w;
    throw std::out_of_range(name);
  };
  EXPECT_EQ(connections(wire(c)).widths.front(), 16);
  keep(weight("layer1.0.conv1.weight"), {});  // the identity is there
  keep(weight("layer2.0.conv2.weight"), {});  // so is the projection
  EXPECT_TRUE(connections(wire(c)).connected);
  EXPECT_EQ(connections(wire(c)).widths[1], 0);
  keep(weight("layer2.0.shortcut.0.weight"), {});
  EXPECT_FALSE(connections(wire(c)).connected);
  EXPECT_EQ(*connections(wire(c)).cut_at, 8u);  // the second convolution of layer2.0
}

TEST(Sparsifier, RefusesAStaticMethodThatCutsTheNetwork) {
  auto net = std::make_shared<Chain>(Layers{linear(40, 40), linear(40, 40), linear(40, 40)});
  const auto probe = std::make_shared<Probe>(probe_of(net, {40}));
  const auto make = [&](const char* method, double sparsity) {
    auto copy = net->copy();
    Sparsifier s(*copy, make_method(method), {}, SparsifierOptions().sparsity(sparsity).probe(probe));
    return s.nnz();
  };
  EXPECT_EQ(make("random", 0.5), 2400);
  EXPECT_NE(message_of([&] { make("random", 0.9993); }).find("the network is cut"), std::string::npos);  // 3 weights
  EXPECT_EQ(make("synflow", 0.9993), 3);                                                                 // one path
}

TEST(Wiring, OfTheModels) {
  const auto line = [](const char* name, nn::InputShape input) {
    nn::ModelOptions options;
    options.name = name;
    return nn::make_model(options, input, 10, 1, [](const std::string&) { return true; })->wiring();
  };
  EXPECT_EQ(line("lenet-300-100", {1, 28, 28}).line, (std::vector<std::string>{"fc1", "fc2", "fc3"}));
  EXPECT_EQ(line("vgg16", {3, 32, 32}).line.size(), 14u);
  const auto wide = line("wrn-28-2", {3, 32, 32});
  EXPECT_EQ(wide.line.size(), 26u);
  EXPECT_EQ(wide.bypasses[0].layer, "block1.layer.0.convShortcut");
  EXPECT_EQ(wide.line[2], "block1.layer.0.conv2");
}

}  // namespace
}  // namespace espalier
