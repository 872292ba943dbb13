#include "espalier/methods/phew.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <numeric>

#include "espalier/methods/allocate.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/init.h"
#include "espalier/nn/models.h"
#include "espalier/nn/sparse_linear.h"
#include "methods/small_networks.h"

namespace espalier {
namespace {

using Layers = std::vector<torch::nn::AnyModule>;

struct Walked : MethodContext {
  explicit Walked(torch::nn::Module& net, const nn::Wiring& wiring) {
    for (auto& item : net.named_parameters()) {
      if (item.value().dim() < 2) continue;
      owned.push_back(make_masked_weight(item.key(), item.value(), {}, static_cast<std::int64_t>(owned.size())));
      weights.push_back(owned.back().get());
    }
    own_probe.wiring = wiring;
    probe = &own_probe;
  }
  std::int64_t positions() const {
    std::int64_t n = 0;
    for (const auto* w : weights) n += w->numel();
    return n;
  }
  WalkResult operator()(std::int64_t budget, WalkOptions options = {}) const {
    if (options.seed == 0) options.seed = 1;
    return walk(wire(*this), weights, budget, options);
  }
  std::vector<std::unique_ptr<SparseWeight>> owned;
  Probe own_probe;
};

std::vector<double> list(const at::Tensor& t) {
  const at::Tensor d = t.detach().to(torch::kDouble).contiguous();
  return {d.data_ptr<double>(), d.data_ptr<double>() + d.numel()};
}

/// Shares of `draws` results of f, each within five standard deviations of what is expected.
template <class F>
void expect_shares(const F& f, const std::vector<double>& expected, int draws = 40000) {
  std::vector<int> counts(expected.size(), 0);
  RandomStream random(11, Purpose::test);
  for (int d = 0; d < draws; ++d) ++counts.at(static_cast<std::size_t>(f(random)));
  for (std::size_t k = 0; k < expected.size(); ++k) {
    const double p = expected[k], share = static_cast<double>(counts[k]) / draws;
    EXPECT_NEAR(share, p, 5 * std::sqrt(p * (1 - p) / draws) + 1e-12) << k;
  }
}

TEST(LayerWalk, TransitionsOfTheHandNet) {
  const auto net = hand_net();
  Walked w(*net, {2, {"l1", "l2"}, {}});
  const WiredNetwork n = wire(w);
  const LayerWalk l1(n.line[0], WalkBias::magnitude), l2(n.line[1], WalkBias::magnitude);
  expect_shares([&](RandomStream& r) { return l1.forward(0, r); }, {0.25, 0.75});
  expect_shares([&](RandomStream& r) { return l1.forward(1, r); }, {1.0 / 3, 2.0 / 3});
  expect_shares([&](RandomStream& r) { return l2.backward(0, r); }, {5.0 / 11, 6.0 / 11});
  expect_shares([&](RandomStream& r) { return l1.backward(0, r); }, {1.0 / 3, 2.0 / 3});
  expect_shares([&](RandomStream& r) { return l1.backward(1, r); }, {3.0 / 7, 4.0 / 7});
  const LayerWalk inverse(n.line[0], WalkBias::inverse), squared(n.line[0], WalkBias::squared),
      uniform(n.line[0], WalkBias::uniform);
  expect_shares([&](RandomStream& r) { return inverse.forward(0, r); }, {0.75, 0.25});
  expect_shares([&](RandomStream& r) { return squared.forward(0, r); }, {0.1, 0.9});
  expect_shares([&](RandomStream& r) { return uniform.forward(0, r); }, {0.5, 0.5});
}

TEST(LayerWalk, KernelsGroupsAndRowsOfZeros) {
  // Two groups of 1 input and 2 outputs; kernels of 3 entries.
  auto net = std::make_shared<Chain>(
      Layers{torch::nn::AnyModule(torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 4, {1, 3}).groups(2).bias(false)))});
  {
    const torch::NoGradGuard no_grad;
    net->parameters()[0].copy_(
        torch::tensor({1.0, -1.0, 2.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}).view({4, 1, 1, 3}));
  }
  Walked w(*net, {2, {"l1"}, {}});
  const LayerWalk step(wire(w).line[0], WalkBias::magnitude);
  expect_shares([&](RandomStream& r) { return step.forward(0, r); }, {0.25, 0.75});
  expect_shares([&](RandomStream& r) { return step.forward(1, r); }, {0, 0, 0.5, 0.5});  // all zero: uniform
  expect_shares([&](RandomStream& r) { return step.backward(3, r); }, {0, 1});
  expect_shares([&](RandomStream& r) { return step.entry(0, 0, r); }, {0.25, 0.25, 0.5});
  expect_shares([&](RandomStream& r) { return step.entry(0, 1, r) - 3; }, {0, 0, 1});
  expect_shares([&](RandomStream& r) { return step.entry(1, 2, r) - 6; }, {1.0 / 3, 1.0 / 3, 1.0 / 3});
  EXPECT_EQ(step.kernel(1, 3), 9);
}

TEST(LayerWalk, AConvolutionAsLargeAsItsInputHasTheSumsOfTheLinearLayer) {
  torch::manual_seed(12);
  auto image = std::make_shared<Chain>(
      Layers{torch::nn::AnyModule(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 4, 3).bias(false)))});
  const at::Tensor w = image->parameters()[0].detach().abs().flatten(1).sum(1);  // of the flattened layer, per output
  Walked c(*image, {1, {"l1"}, {}});
  const LayerWalk step(wire(c).line[0], WalkBias::magnitude);
  expect_shares([&](RandomStream& r) { return step.forward(0, r); }, list(w / w.sum()));
  const at::Tensor row = image->parameters()[0].detach().abs()[2].flatten();
  expect_shares([&](RandomStream& r) { return step.entry(0, 2, r) - 18; }, list(row / row.sum()));
}

TEST(LayerWalk, WeightsDrawnWhenLookedAtGiveTheSameDistribution) {
  for (const char* initializer : {"kaiming-normal", "truncated-normal", "torch-default"}) {
    struct Net : torch::nn::Module {
      Net() { fc = register_module("fc", nn::SparseLinear(5, 7)); }
      nn::SparseLinear fc{nullptr};
    } net;
    nn::initialize(net, initializer, 3);
    CompressedWeight& weight = *net.fc->weight();
    ASSERT_TRUE(weight.initial_draw());
    WiredLayer layer{&weight, 5, 7, 1, 1, 1};
    const at::Tensor w = weight.weights().view({7, 5}).abs();
    EXPECT_LE(w.max().item<double>(), weight.initial_draw()->largest * (1 + 1e-6));
    for (const WalkBias bias : {WalkBias::magnitude, WalkBias::squared}) {
      const at::Tensor f = bias == WalkBias::squared ? w * w : w;
      const LayerWalk drawn(layer, bias, /*table_limit=*/0), table(layer, bias);
      for (const auto* step : {&drawn, &table}) {
        expect_shares([&](RandomStream& r) { return step->forward(3, r); },
                      list(f.select(1, 3) / f.select(1, 3).sum()));
        expect_shares([&](RandomStream& r) { return step->backward(6, r); }, list(f[6] / f[6].sum()));
      }
    }
    EXPECT_NE(message_of([&] { LayerWalk(layer, WalkBias::inverse, 0); }).find("without tables"), std::string::npos);
  }
}

TEST(Walk, StopsWithTheWalkThatReachesTheBudget) {
  torch::manual_seed(13);
  Chain net(Layers{linear(20, 30), linear(30, 25), linear(25, 10), linear(10, 6)});
  const Walked w(net, {20, {"l1", "l2", "l3", "l4"}, {}});
  WalkResult before = w(1);
  EXPECT_EQ(before.walks, 1);
  EXPECT_EQ(before.nnz, 4);
  for (const std::int64_t budget : {5, 50, 333, 800}) {
    const WalkResult r = w(budget);
    std::int64_t nnz = 0;
    for (const auto& kept : r.kept) {
      nnz += kept.numel();
      EXPECT_GT(kept.numel(), 0);  // every walk goes through every layer
    }
    EXPECT_EQ(nnz, r.nnz);
    EXPECT_GE(r.nnz, budget);
    EXPECT_LE(r.nnz, budget + 3);
    // Nested: the walks of the larger budget begin with those of the smaller.
    for (std::size_t l = 0; l < 4; ++l) {
      EXPECT_TRUE(torch::isin(before.kept[l], r.kept[l]).all().item<bool>());
    }
    before = r;
  }
  EXPECT_EQ(w(0).walks, 0);
  const auto message = message_of([&] { w(w.positions()); });
  EXPECT_TRUE(message.empty() || message.find("seldom take what is small") != std::string::npos) << message;
  EXPECT_NE(message_of([&] { w(w.positions() + 1); }).find("cannot keep"), std::string::npos);
}

TEST(Walk, SignsDoNotMatter) {
  torch::manual_seed(18);
  Chain net(Layers{conv(3, 8, 3), conv(8, 6, 3), linear(6 * 16, 5)});
  const Walked w(net, {3, {"l1", "l2", "l3"}, {}});
  for (const WalkBias bias : {WalkBias::magnitude, WalkBias::squared, WalkBias::inverse}) {
    WalkOptions options;
    options.bias = bias;
    const WalkResult plain = w(150, options);
    {
      const torch::NoGradGuard no_grad;
      for (auto& p : net.parameters()) p.mul_(torch::rand_like(p).lt(0.5).to(torch::kFloat) * 2 - 1);
    }
    const Walked flipped(net, {3, {"l1", "l2", "l3"}, {}});
    const WalkResult same = flipped(150, options);
    EXPECT_EQ(same.walks, plain.walks);
    for (std::size_t l = 0; l < 3; ++l) EXPECT_TRUE(torch::equal(same.kept[l], plain.kept[l])) << l;
  }
}

TEST(Walk, StopsInTimeWhereHalfOfTheWeightsAreZero) {
  torch::manual_seed(19);
  Chain net(Layers{linear(20, 30), linear(30, 25), linear(25, 10)});
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : net.parameters()) p.mul_(torch::arange(p.numel()).remainder(2).view(p.sizes()));
  }
  for (const char* method : {"phew", "phew-squared", "uniform-walks", "random"}) {
    for (const double sparsity : {0.7, 0.9, 0.97}) {
      auto copy = std::make_shared<Chain>(net.layers)->copy();
      Sparsifier s(*copy, make_method(method), {}, SparsifierOptions().sparsity(sparsity).distribution("global"));
      const std::int64_t asked = kept_count(600 + 750 + 250, sparsity);
      EXPECT_GE(s.nnz(), asked) << method;
      EXPECT_LE(s.nnz(), asked + (std::string(method) == "random" ? 0 : 2)) << method << " " << sparsity;
    }
  }
}

TEST(Walk, VisitsOfEachUnit) {
  torch::manual_seed(14);
  // W walks: the mean over the N_l units of a layer is W / N_l exactly, since each walk goes through one of them.
  // Start units are round-robin: of W / 2 backward walks, each output starts floor or ceil of W / (2 N_L).
  Chain net(Layers{linear(16, 40), linear(40, 24), linear(24, 8)});
  const Walked w(net, {16, {"l1", "l2", "l3"}, {}});
  const WalkResult r = w(700);
  for (std::size_t l = 0; l < 3; ++l) {
    EXPECT_EQ(std::accumulate(r.visits[l].begin(), r.visits[l].end(), std::int64_t{0}), r.walks);
  }
  const std::int64_t backward = r.walks / 2;
  for (const auto v : r.visits[2]) EXPECT_GE(v, backward / 8);
  // A unit's expected visits over the draw of the weights are W / N_l by symmetry. Given weights they differ between
  // units; averaged over D draws, the mean visits of one unit lie within 5 standard errors, estimated from the draws.
  constexpr int kDraws = 60;
  std::vector<double> share;
  for (int d = 0; d < kDraws; ++d) {
    std::uint64_t l = 0;
    const torch::NoGradGuard no_grad;
    for (auto& p : net.parameters())
      nn::initialize_weight(p, "kaiming-normal", static_cast<std::uint64_t>(100 + d), l++);
    const Walked drawn(net, {16, {"l1", "l2", "l3"}, {}});
    const WalkResult x = drawn(500);
    share.push_back(static_cast<double>(x.visits[1][5]) * 24 / static_cast<double>(x.walks));
  }
  double mean = 0, square = 0;
  for (const double s : share) mean += s / kDraws;
  for (const double s : share) square += (s - mean) * (s - mean) / (kDraws - 1);
  EXPECT_NEAR(mean, 1, 5 * std::sqrt(square / kDraws));
  EXPECT_LT(std::sqrt(square / kDraws), 0.05);  // or the bound would say nothing
}

TEST(Walk, WholeKernelsAndDenseLayers) {
  torch::manual_seed(15);
  Chain net(Layers{conv(3, 8, 3), conv(8, 8, 3), linear(8 * 16, 4)});
  Walked w(net, {3, {"l1", "l2", "l3"}, {}});
  WalkOptions whole;
  whole.whole_kernels = true;
  const WalkResult r = w(200, whole);
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(r.kept[l].numel() % 9, 0);
    EXPECT_TRUE(torch::equal(r.kept[l].view({-1, 9}).select(1, 0).remainder(9),
                             torch::zeros({r.kept[l].numel() / 9}, torch::kInt64)));
  }
  EXPECT_LE(r.nnz, 200 + 18);
  // The middle layer stays dense: walked through, not counted.
  w.dense_weights = {w.weights[1]};
  w.weights.erase(w.weights.begin() + 1);
  const WalkResult two = w(40);
  EXPECT_EQ(two.kept.size(), 2u);
  EXPECT_EQ(two.nnz, two.kept[0].numel() + two.kept[1].numel());
  EXPECT_EQ(two.visits.size(), 3u);
}

TEST(Walk, ResidualNetworksTakeAProjectionHalfOfTheTimeInBothDirections) {
  nn::ModelOptions options;
  options.name = "resnet20";
  const auto net = nn::make_model(options, {3, 8, 8}, 10, 2);
  const Walked w(*net, net->wiring());
  const WalkResult r = w(w.positions() / 20);
  std::size_t first = 0, projection = 0;
  for (std::size_t l = 0; l < w.weights.size(); ++l) {
    EXPECT_GT(r.kept[l].numel(), 0) << w.weights[l]->name();
    if (w.weights[l]->name() == "layer2.0.shortcut.0.weight") projection = l;
  }
  ASSERT_NE(projection, first);
  // layer2.0: line[7] and line[8]. The convolution inside is passed by the walks that do not take the projection.
  const auto sum = [&](std::size_t l) {
    return std::accumulate(r.visits[l].begin(), r.visits[l].end(), std::int64_t{0});
  };
  EXPECT_EQ(sum(8), r.walks);
  EXPECT_EQ(sum(5), r.walks);  // no skip is taken around the blocks of layer1
  const double n = static_cast<double>(r.walks);
  EXPECT_NEAR(static_cast<double>(sum(7)) / n, 0.5, 5 * 0.5 / std::sqrt(n));
  // Forward (even) and backward (odd) walks alike: a single walk of each is enough to see it over many seeds.
  int taken[2] = {0, 0};
  constexpr int kSeeds = 2000;
  for (int s = 1; s <= kSeeds; ++s) {
    WalkOptions o;
    o.bias = WalkBias::uniform;
    o.seed = static_cast<std::uint64_t>(s);
    const WalkResult one = w(1, o);
    ASSERT_EQ(one.walks, 1);
    taken[0] += static_cast<int>(one.kept[projection].numel());
    const WalkResult both = w(one.nnz + 1, o);  // and the backward walk
    taken[1] +=
        std::accumulate(both.visits[7].begin(), both.visits[7].end(), 0L) < 2 - (one.kept[projection].numel() > 0);
  }
  for (const int t : taken) EXPECT_NEAR(static_cast<double>(t) / kSeeds, 0.5, 5 * 0.5 / std::sqrt(kSeeds));
}

TEST(Phew, SameMaskOnAnyNumberOfThreadsAndAnotherForAnotherSeed) {
  nn::ModelOptions options;
  options.name = "lenet-300-100";
  const auto masks = [&](std::uint64_t seed, int threads) {
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    const auto net = nn::make_model(options, {1, 28, 28}, 10, 1);
    Sparsifier s(*net, make_method("phew"), {}, SparsifierOptions().sparsity(0.98).seed(seed));
    at::set_num_threads(before);
    EXPECT_GE(s.nnz(), kept_count(266200, 0.98));
    EXPECT_LE(s.nnz(), kept_count(266200, 0.98) + 2);
    return torch::cat({s.weights()[0]->active(), s.weights()[1]->active(), s.weights()[2]->active()});
  };
  EXPECT_TRUE(torch::equal(masks(1, 1), masks(1, 4)));
  EXPECT_FALSE(torch::equal(masks(1, 1), masks(2, 1)));
}

TEST(Phew, RefusesADistribution) {
  Chain net(Layers{linear(4, 3)});
  EXPECT_NE(message_of([&] {
              Sparsifier s(net, make_method("phew"), {}, SparsifierOptions().sparsity(0.5).distribution("erk"));
            }).find("walks decide"),
            std::string::npos);
}

TEST(Phew, ALayerThatIsNeverDense) {
  // 20,000 x 20,000 weights that exist nowhere: walks draw the few that they look at.
  struct Net : torch::nn::Module {
    Net() {
      a = register_module("a", nn::SparseLinear(50, 20000));
      b = register_module("b", nn::SparseLinear(20000, 20000));
      c = register_module("c", nn::SparseLinear(20000, 10));
    }
    nn::SparseLinear a{nullptr}, b{nullptr}, c{nullptr};
  } net;
  nn::initialize(net, "kaiming-normal", 1);
  Sparsifier s(net, make_method("phew"), {}, SparsifierOptions().sparsity(1 - 2e-5));
  const std::int64_t budget = kept_count(s.positions(), 1 - 2e-5);
  EXPECT_GE(s.nnz(), budget);
  EXPECT_LE(s.nnz(), budget + 2);
  // Walks prefer large weights: of |w|, whose mean is E w^2 / E|w| = 1.2533 times the plain one's.
  const double mean = s.weights()[1]->weights().abs().mean().item<double>() / std::sqrt(2.0 / 20000);
  EXPECT_NEAR(mean, 1.2533, 0.05);
}

}  // namespace
}  // namespace espalier
