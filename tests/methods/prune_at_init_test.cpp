#include "espalier/methods/prune_at_init.h"

#include <gtest/gtest.h>

#include <cmath>

#include "espalier/methods/allocate.h"
#include "espalier/methods/flow.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/reinit.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/methods/synflow.h"
#include "espalier/nn/init.h"
#include "espalier/nn/sparse_linear.h"
#include "methods/small_networks.h"

namespace espalier {
namespace {

using Layers = std::vector<torch::nn::AnyModule>;
using Indices = std::vector<std::int64_t>;

Indices list(const at::Tensor& t) { return {t.data_ptr<std::int64_t>(), t.data_ptr<std::int64_t>() + t.numel()}; }

std::shared_ptr<Probe> probe_with_data(const std::shared_ptr<Chain>& net, std::vector<std::int64_t> input) {
  auto probe = std::make_shared<Probe>(probe_of(net, input));
  probe->initializer = "kaiming-normal";
  probe->batch = [input](std::int64_t per_class, std::int64_t index) {
    const auto n = per_class > 0 ? per_class * 3 : 12;
    auto shape = input;
    shape.insert(shape.begin(), n);
    const auto count = n * c10::multiply_integers(input);
    return ProbeBatch{(torch::arange(count) * (7 + index)).remainder(23).sub(11).div(8.0).view(shape),
                      torch::arange(n) % 3};
  };
  return probe;
}

struct Pruned {
  std::shared_ptr<Chain> net;
  std::unique_ptr<Sparsifier> sparsifier;
  Indices active(std::size_t l) const { return list(sparsifier->weights()[l]->active()); }
};

Pruned prune(const std::shared_ptr<Chain>& net, const std::string& method, double sparsity,
             const std::string& distribution, const std::vector<std::int64_t>& input,
             const std::vector<std::pair<std::string, std::string>>& options = {}) {
  Pruned p{net->copy(), nullptr};
  auto made = make_method(method);
  for (const auto& [key, value] : options) {
    Describe d;
    made->describe(d);
    for (auto& option : d.list) {
      if (option.name != key) continue;
      if (auto** text = std::get_if<std::string*>(&option.value)) **text = value;
      if (auto** number = std::get_if<std::int64_t*>(&option.value)) **number = std::stoll(value);
    }
  }
  p.sparsifier = std::make_unique<Sparsifier>(*p.net, std::move(made), Reparametrisation(),
                                              SparsifierOptions()
                                                  .sparsity(sparsity)
                                                  .distribution(distribution)
                                                  .total_steps(100)
                                                  .steps_per_epoch(10)
                                                  .probe(probe_with_data(net, input)));
  return p;
}

const char* const kScored[] = {"magnitude-at-init", "snip", "grasp", "synflow", "synflow-l2"};

TEST(PruneAtInit, KeepsExactlyWhatWasAskedAlsoWhereHalfOfTheScoresAreZero) {
  torch::manual_seed(6);
  auto net = std::make_shared<Chain>(Layers{conv(2, 6, 3, true), linear(6 * 16, 9, true), linear(9, 3)});
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : net->parameters()) {  // every other weight is zero, and equal ones tie
      p.copy_(torch::arange(p.numel())
                  .remainder(2)
                  .mul(torch::arange(p.numel()).remainder(5).sub(2))
                  .view(p.sizes())
                  .div(9.0));
    }
  }
  for (const char* method : kScored) {
    for (const char* distribution : {"global", "uniform", "erk"}) {
      for (const double sparsity : {0.1, 0.4, 0.8}) {
        const Pruned p = prune(net, method, sparsity, distribution, {2, 4, 4}, {{"rounds", "10"}});
        EXPECT_EQ(p.sparsifier->nnz(), kept_count(108 + 864 + 27, sparsity)) << method << " " << distribution;
        for (std::size_t l = 0; l < 3; ++l) {
          const at::Tensor w = p.net->named_parameters()["l" + std::to_string(l + 1) + ".weight"].flatten();
          EXPECT_TRUE(
              torch::equal(w.index_select(0, p.sparsifier->weights()[l]->active()),
                           net->named_parameters()["l" + std::to_string(l + 1) + ".weight"].flatten().index_select(
                               0, p.sparsifier->weights()[l]->active())));
        }
      }
    }
  }
}

TEST(PruneAtInit, TiesGoToTheLowerIndex) {
  auto net = std::make_shared<Chain>(Layers{linear(4, 2)});
  const torch::NoGradGuard no_grad;
  net->parameters()[0].copy_(torch::tensor({{1.0, 3.0, -3.0, 1.0}, {0.0, 1.0, 1.0, 0.0}}));
  const Pruned p = prune(net, "magnitude-at-init", 0.5, "global", {4});
  EXPECT_EQ(p.active(0), (Indices{0, 1, 2, 3}));
  EXPECT_EQ(prune(net, "magnitude-at-init", 0.25, "global", {4}).active(0), (Indices{0, 1, 2, 3, 5, 6}));
  EXPECT_EQ(prune(net, "magnitude-at-init", 0.125, "global", {4}).active(0), (Indices{0, 1, 2, 3, 4, 5, 6}));
}

TEST(Grasp, RemovesFirstWhatRaisesTheGradientNorm) {
  // y = w . x, w = (1, -2), x = (3, 1), L = y^2 / 2: |g|^2 is 10, 90 without weight 2 and 40 without weight 1.
  auto net = std::make_shared<Chain>(Layers{linear(2, 1)});
  net->to(torch::kDouble);
  at::Tensor w = net->parameters()[0];
  const at::Tensor x = torch::tensor({{3.0, 1.0}}, torch::kDouble);
  const auto squared = [&](double w1, double w2) {
    w.set_data(torch::tensor({{w1, w2}}, torch::kDouble));
    return torch::autograd::grad({net->forward(x).square().sum() / 2}, {w})[0].square().sum().item<double>();
  };
  EXPECT_EQ(squared(1, 0), 90);
  EXPECT_EQ(squared(0, -2), 40);
  EXPECT_EQ(squared(1, -2), 10);
  auto probe = std::make_shared<Probe>(probe_of(net, {2}));
  probe->loss = [](const at::Tensor& y, const at::Tensor&) { return (y * y).mean() / 2; };
  probe->batch = [&](std::int64_t, std::int64_t) { return ProbeBatch{x, torch::zeros({1}, torch::kLong)}; };
  auto copy = net->copy();
  const Sparsifier s(*copy, make_method("grasp"), {},
                     SparsifierOptions().sparsity(0.5).distribution("global").probe(probe));
  EXPECT_EQ(list(s.weights()[0]->active()), (Indices{0}));
}

TEST(SynFlow, ScheduleOfHandNumbers) {
  EXPECT_NEAR(synflow_kept(0.1, 1, 100, "exponential"), 0.977237, 5e-7);
  EXPECT_NEAR(synflow_kept(0.1, 10, 100, "exponential"), 0.794328, 5e-7);
  EXPECT_NEAR(synflow_kept(0.1, 25, 100, "exponential"), 0.562341, 5e-7);
  EXPECT_NEAR(synflow_kept(0.1, 50, 100, "exponential"), 0.316228, 5e-7);
  EXPECT_NEAR(synflow_kept(0.1, 75, 100, "exponential"), 0.177828, 5e-7);
  EXPECT_EQ(synflow_kept(0.1, 100, 100, "exponential"), 0.1);
  EXPECT_NEAR(synflow_kept(0.01, 25, 100, "exponential"), 0.316228, 5e-7);
  EXPECT_NEAR(synflow_kept(0.01, 50, 100, "exponential"), 0.1, 1e-12);
  EXPECT_NEAR(synflow_kept(0.1, 50, 100, "linear"), 0.55, 1e-12);
}

TEST(SynFlow, RoundsOfTheHandNet) {
  // Scores 5 10 18 24 | 15 42. One round to two weights: 24 and 42, and of the path (1 of h2) there is all.
  const auto net = hand_net();
  EXPECT_EQ(prune(net, "synflow", 4.0 / 6, "global", {2}, {{"rounds", "1"}}).active(0), (Indices{3}));
  // To three: 42 24 18. Squared: 900 576 324.
  EXPECT_EQ(prune(net, "synflow-l2", 0.5, "global", {2}, {{"rounds", "1"}}).active(0), (Indices{2, 3}));
  // One round to four by 42 24 18 15 keeps W2's first weight, of which no input is left; in rounds, once W1's 5 and 10
  // are gone (kept 5, then 4) the flow through it is 0 and it goes instead of nothing.
  const Pruned once = prune(net, "synflow", 2.0 / 6, "global", {2}, {{"rounds", "1"}});
  EXPECT_EQ(once.active(0), (Indices{2, 3}));
  EXPECT_EQ(once.active(1), (Indices{0, 1}));
  const Pruned three = prune(net, "synflow", 0.5, "global", {2}, {{"rounds", "100"}});
  EXPECT_EQ(three.active(0), (Indices{2, 3}));
  EXPECT_EQ(three.active(1), (Indices{1}));
}

TEST(SynFlow, ReachesTheLargestCompressionWhereOthersCollapse) {
  torch::manual_seed(7);
  // Narrowing layers of very different sizes: one score for all empties one of them.
  auto net = std::make_shared<Chain>(Layers{linear(64, 128), linear(128, 128), linear(128, 8), linear(8, 3)});
  {
    const torch::NoGradGuard no_grad;
    std::uint64_t l = 0;
    for (auto& p : net->parameters()) nn::initialize_weight(p, "kaiming-normal", 1, l++);
  }
  const double n = 64 * 128 + 128 * 128 + 128 * 8 + 8 * 3;
  for (const double kept : {4.0, 20.0, 100.0}) {
    const Pruned p = prune(net, "synflow", 1 - kept / n, "global", {64});
    for (const auto& w : p.sparsifier->weights()) EXPECT_GT(w->nnz(), 0) << w->name() << " " << kept;
  }
  for (const char* method : {"magnitude-at-init", "snip"}) {
    EXPECT_NE(message_of([&] { prune(net, method, 1 - 20 / n, "global", {64}); }).find("the network is cut"),
              std::string::npos)
        << method;
  }
}

TEST(PruneAtInit, SaysWhatItNeeds) {
  Chain net(Layers{linear(4, 3)});
  for (const char* method : kScored) {
    const std::string message =
        message_of([&] { Sparsifier s(net, make_method(method), {}, SparsifierOptions().sparsity(0.5)); });
    EXPECT_EQ(message.empty(), std::string(method) == "magnitude-at-init") << method << message;
    EXPECT_NE(message_of([&] {
                Sparsifier s(net, make_method(method), {}, SparsifierOptions());
              }).find("[sparsity].sparsity above 0"),
              std::string::npos);
  }
}

TEST(PruneAtInit, ARestoredNetworkIsNotScoredAgain) {
  auto net = std::make_shared<Chain>(Layers{linear(4, 3)});
  auto probe = std::make_shared<Probe>(probe_of(net, {4}));
  int asked = 0;
  const auto network = probe->network;
  probe->network = [&] {
    ++asked;
    return network();
  };
  probe->batch = [](std::int64_t, std::int64_t) { return ProbeBatch{torch::ones({2, 4}), torch::arange(2)}; };
  auto first = net->copy(), second = net->copy();
  Sparsifier a(*first, make_method("snip"), {}, SparsifierOptions().sparsity(0.5).probe(probe));
  EXPECT_EQ(asked, 1);
  Sparsifier b(*second, make_method("snip"), {}, SparsifierOptions().sparsity(0.5).probe(probe).restored(true));
  b.restore(a.archive());
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(list(a.weights()[0]->active()), list(b.weights()[0]->active()));
}

TEST(PruneAtInit, BothStoragesKeepTheSame) {
  torch::manual_seed(8);
  auto net = std::make_shared<Chain>(Layers{linear(12, 9, true), linear(9, 3)});
  for (const char* method : {"random", "magnitude-at-init", "snip", "grasp", "synflow", "synflow-l2", "phew",
                             "phew-inverse", "phew-squared", "uniform-walks"}) {
    for (const char* reinit : {"same", "unit"}) {
      const Pruned masked = prune(net, method, 0.6, "global", {12}, {{"reinit", reinit}});
      struct Sparse : torch::nn::Module {
        explicit Sparse(const Chain& c) {
          for (std::size_t l = 0; l < 2; ++l) {
            const auto& dense = *c.layers[l].ptr()->as<torch::nn::LinearImpl>();
            auto layer = std::make_shared<nn::SparseLinearImpl>(
                torch::nn::LinearOptions(dense.weight.size(1), dense.weight.size(0)));
            const at::Tensor w = dense.weight.detach().flatten();
            layer->weight()->set_draw([w](const at::Tensor& positions) { return w.index_select(0, positions); });
            register_module("l" + std::to_string(l + 1), layer);
          }
        }
      } sparse(*net);
      auto made = make_method(method);
      Describe d;
      made->describe(d);
      const auto option = std::find_if(d.list.begin(), d.list.end(), [](const auto& o) { return o.name == "reinit"; });
      ASSERT_NE(option, d.list.end()) << method;
      **std::get_if<std::string*>(&option->value) = reinit;
      Sparsifier s(sparse, std::move(made), {},
                   SparsifierOptions().sparsity(0.6).distribution("global").probe(probe_with_data(net, {12})));
      for (std::size_t l = 0; l < 2; ++l) {
        EXPECT_EQ(s.weights()[l]->storage(), std::string("compressed"));
        EXPECT_EQ(list(s.weights()[l]->active()), masked.active(l)) << method;
        EXPECT_TRUE(torch::equal(s.weights()[l]->weights(), masked.sparsifier->weights()[l]->weights())) << method;
      }
    }
  }
}

TEST(Reinit, DrawsWithTheVarianceThatItsNameSays) {
  const std::int64_t out = 50, in = 400;
  const auto weight = [&](const std::string& how, const Reparametrisation& psi) {
    at::Tensor w = torch::zeros({out, in}).set_requires_grad(true);
    {
      const torch::NoGradGuard no_grad;
      nn::initialize_weight(w, "kaiming-normal", 5, 0);
    }
    auto sparse = make_masked_weight("w", w, psi, 0);
    // unit u keeps the first 40 + 6 u of its inputs
    std::vector<std::int64_t> kept;
    for (std::int64_t u = 0; u < out; ++u)
      for (std::int64_t i = 0; i < 40 + 6 * u; ++i) kept.push_back(u * in + i);
    sparse->keep(torch::tensor(kept, torch::kInt64));
    reinitialise(*sparse, how, "kaiming-normal", 5);
    return sparse;
  };
  const auto same = weight("same", {}), fresh = weight("fresh", {}), xavier = weight("xavier", {}),
             layer = weight("layer", {}), unit = weight("unit", {});
  const double nnz = static_cast<double>(same->nnz());
  ASSERT_EQ(nnz, 50 * 40 + 6 * 49 * 50 / 2);
  const auto variance = [](const at::Tensor& w) { return w.to(torch::kDouble).square().mean().item<double>(); };
  const double bound = 5 * std::sqrt(2 / nnz);  // five standard deviations of a normal variance, relative
  EXPECT_NEAR(variance(fresh->weights()) / (2.0 / in), 1, bound);
  EXPECT_NEAR(variance(xavier->weights()) / (2.0 / (in + out)), 1, bound);
  EXPECT_NEAR(variance(layer->weights()) / (2.0 * out * in / (in * nnz)), 1, bound);
  const at::Tensor kept = (40 + 6 * (unit->active() / in).floor()).to(torch::kDouble);
  EXPECT_NEAR(variance(unit->weights() * (kept / 2).sqrt()), 1, bound);
  // Another draw, with nothing of the first in it.
  const double correlation = (same->weights() * fresh->weights()).mean().item<double>() / (2.0 / in);
  EXPECT_LT(std::abs(correlation), 5 / std::sqrt(nnz));
  // With psi it is w that is drawn.
  EXPECT_TRUE(torch::allclose(weight("unit", Powerprop(2))->weights(), unit->weights(), 1e-5));
  EXPECT_TRUE(torch::equal(unit->active(), same->active()));
  EXPECT_NE(message_of([&] { reinitialise(*same, "fresh", "", 1); }).find("Probe::initializer"), std::string::npos);
  EXPECT_NE(message_of([&] { reinitialise(*same, "liu", "", 1); }).find("unknown"), std::string::npos);
}

// Whatever draws its first masks at random.
TEST(Reinit, HoldsForRandomMasksToo) {
  torch::manual_seed(9);
  auto net = std::make_shared<Chain>(Layers{linear(40, 30, true), linear(30, 5)});
  for (const char* method : {"static-random", "random", "set", "dpr", "rigl", "snfs", "deep-r", "soft-deep-r"}) {
    const Pruned same = prune(net, method, 0.8, "uniform", {40}),
                 unit = prune(net, method, 0.8, "uniform", {40}, {{"reinit", "unit"}});
    for (std::size_t l = 0; l < 2; ++l) {
      SparseWeight& w = *same.sparsifier->weights()[l];
      EXPECT_EQ(same.active(l), unit.active(l)) << method;
      EXPECT_FALSE(torch::equal(w.weights(), unit.sparsifier->weights()[l]->weights())) << method;
      reinitialise(w, "unit", "", SparsifierOptions().seed());
      EXPECT_TRUE(torch::equal(w.weights(), unit.sparsifier->weights()[l]->weights())) << method;
    }
  }
}

}  // namespace
}  // namespace espalier
