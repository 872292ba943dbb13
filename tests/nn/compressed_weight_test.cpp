// Compressed storage against masked storage: the same operations on both must leave the same values.
#include "espalier/nn/compressed_weight.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/nn/sparse_conv.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

at::Tensor positions(std::vector<std::int64_t> list) { return torch::tensor(list, torch::kInt64); }

at::Tensor dense_values(std::int64_t rows, std::int64_t columns) {
  torch::manual_seed(9);
  return torch::randn({rows, columns}, torch::kDouble);
}

/// One weight in both storages, driven alike.
struct Twins {
  Twins(std::int64_t rows, std::int64_t columns, const Reparametrisation& psi) {
    const at::Tensor start = dense_values(rows, columns);
    w = start.clone().set_requires_grad(true);
    masked = make_masked_weight("fc.weight", w, psi, 0);
    compressed = std::make_unique<CompressedWeight>("x", std::vector<std::int64_t>{rows, columns}, torch::kDouble);
    compressed->set_draw([start](const at::Tensor& at) { return start.view({-1}).index_select(0, at); });
    compressed->adopt("fc.weight", 0, psi);
    follow(*masked, masked_momentum);
    follow(*compressed, compressed_momentum);
  }

  static void follow(SparseWeight& s, at::Tensor& momentum) {
    s.follow([&](const TopologyChange& change) {
      if (momentum.defined()) s.reindex_state(momentum, change);
    });
  }

  void both(const std::function<void(SparseWeight&)>& f) {
    f(*masked);
    f(*compressed);
  }

  /// A step of SGD with momentum and decay whose gradient is a given function of the position.
  void step(std::uint64_t seed) {
    const RandomStream random(seed, Purpose::test);
    at::Tensor g = torch::empty_like(w).detach();
    for (std::int64_t i = 0; i < g.numel(); ++i) g.view({-1})[i] = random.normal_at(static_cast<std::uint64_t>(i));
    w.mutable_grad() = g.clone();
    const at::Tensor& values = compressed->stored_values();
    // canonical order, through the row-major one
    const at::Tensor here = g.view({-1}).index_select(0, stored());
    at::Tensor canonical = torch::empty_like(values).detach();
    canonical.index_copy_(0, canonical_places(), here);
    const_cast<at::Tensor&>(values).mutable_grad() = canonical;
    both([](SparseWeight& s) { s.pull(0.01); });
    const auto update = [](SparseWeight& s, at::Tensor& momentum) {
      const torch::NoGradGuard no_grad;
      at::Tensor p = s.parameter();
      if (!momentum.defined()) momentum = torch::zeros_like(p).detach();
      momentum.mul_(0.9).add_(p.grad());
      p.sub_(momentum.mul(0.005));  // two roundings, wherever an entry stands in its vector
    };
    update(*masked, masked_momentum);
    update(*compressed, compressed_momentum);
    both([](SparseWeight& s) { s.settle(); });
  }

  /// Positions of all entries, and where they stand.
  std::pair<at::Tensor, at::Tensor> entries() {
    std::vector<std::int64_t> at;
    kernels::EntryIndices place;
    kernels::row_major(*compressed->matrix(), at, place, 1);
    return {positions(at), positions({place.begin(), place.end()})};
  }
  at::Tensor stored() { return entries().first; }
  at::Tensor canonical_places() { return entries().second; }

  /// Bit for bit; but for Update::target, whose kernel may fuse a multiplication and a subtraction where it has no mask
  /// and cannot where it has one: one rounding of half an ulp in phi's step, 18 times, through slopes below 10.
  bool same(const at::Tensor& a, const at::Tensor& b) const {
    return masked->reparametrisation().update() == Update::target ? torch::allclose(a, b, 1e-13, 1e-14)
                                                                  : torch::equal(a, b);
  }

  void expect_equal(const std::string& where) {
    ASSERT_TRUE(torch::equal(masked->active(), compressed->active())) << where;
    ASSERT_EQ(masked->nnz(), compressed->nnz()) << where;
    EXPECT_TRUE(same(masked->values(), compressed->values())) << where;
    EXPECT_TRUE(same(masked->weights(), compressed->weights())) << where;
    for (const SparseWeight* s : {masked.get(), static_cast<SparseWeight*>(compressed.get())}) {
      const auto [at, weights] = s->entries();
      EXPECT_TRUE(torch::equal(at, s->active()) && torch::equal(weights, s->weights())) << where;
    }
    EXPECT_TRUE(torch::equal(masked->trainable(), compressed->trainable())) << where;
    EXPECT_TRUE(same(masked->all_values(), compressed->all_values())) << where;
    if (!masked_momentum.defined()) return;
    const at::Tensor of_masked = masked_momentum.view({-1}).index_select(0, stored());
    EXPECT_TRUE(same(of_masked, compressed_momentum.index_select(0, canonical_places()))) << where;
  }

  at::Tensor w, masked_momentum, compressed_momentum;
  std::unique_ptr<SparseWeight> masked;
  std::unique_ptr<CompressedWeight> compressed;
};

/// `n` of the positions, drawn.
at::Tensor some(const at::Tensor& of, std::int64_t n, std::uint64_t seed) {
  const auto chosen = random_subset(of.numel(), n, RandomStream(seed, Purpose::test));
  return of.index_select(0, torch::tensor(chosen, torch::kInt64));
}

at::Tensor inactive(const SparseWeight& s) {
  at::Tensor mask = torch::ones({s.numel()}, torch::kBool);
  mask.index_fill_(0, s.active(), false);
  return mask.nonzero().view({-1});
}

TEST(CompressedWeight, IsTheMaskedWeightThroughEveryOperation) {
  for (const auto& psi : {Reparametrisation(), Reparametrisation(Powerprop(1.7)), Reparametrisation(Powerprop(3)),
                          Reparametrisation(Powerprop(2, Update::target))}) {
    Twins t(23, 37, psi);
    t.expect_equal("start");
    t.both([](SparseWeight& s) { s.keep(positions(random_subset(23 * 37, 200, RandomStream(1, Purpose::test)))); });
    t.expect_equal("keep");
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::string where = "alpha " + std::to_string(psi.alpha()) + " round " + std::to_string(round);
      for (std::uint64_t s = 0; s < 3; ++s) t.step(10 * round + s);
      t.expect_equal(where + " steps");
      const at::Tensor drop = some(t.masked->active(), 40, round);
      const at::Tensor grow = some(inactive(*t.masked), 30 + static_cast<std::int64_t>(round), round + 50);
      const at::Tensor births = torch::linspace(0.1, 1, grow.numel(), torch::kDouble);
      t.both([&](SparseWeight& s) { s.rewire({drop, grow, births, 0.5}); });
      t.expect_equal(where + " rewire");
      if (round == 2) {
        const at::Tensor learn = some(t.masked->active(), 100, 77);
        t.both([&](SparseWeight& s) { s.set_trainable(learn); });
        t.expect_equal(where + " trainable");
      }
      if (round == 4) {
        t.both([](SparseWeight& s) { s.shrink(0.5); });
        t.expect_equal(where + " shrink");
      }
    }
  }
}

// Masks apart from each other: every position has a value, the layer computes with M_f, M_b learns.
TEST(CompressedWeight, IsTheMaskedWeightUnderMasksOfTheirOwn) {
  for (const auto& psi : {Reparametrisation(), Reparametrisation(Powerprop(1.7)), Reparametrisation(Powerprop(3))}) {
    const std::int64_t n = 23 * 37;
    Twins t(23, 37, psi);
    for (std::uint64_t round = 0; round < 8; ++round) {
      const std::string where = "alpha " + std::to_string(psi.alpha()) + " round " + std::to_string(round);
      const at::Tensor all = torch::arange(n, torch::kInt64);
      at::Tensor forward = some(all, round == 6 ? 0 : 150, 900 + round), backward = some(all, 250, 950 + round);
      if (round == 3) backward = some(forward, 60, 5);  // M_f has more
      if (round == 4) backward = forward;               // as when exploration ends
      if (round == 5) {                                 // M_b has more
        at::Tensor more = torch::zeros({n}, torch::kBool).index_fill_(0, forward, true);
        backward = more.index_fill_(0, torch::arange(100, 140, torch::kInt64), true).nonzero().view({-1});
      }
      t.both([&](SparseWeight& s) { s.set_masks(forward, backward); });
      t.expect_equal(where + " masks");
      EXPECT_TRUE(torch::equal(t.compressed->trainable(), backward)) << where;
      EXPECT_TRUE(torch::equal(t.compressed->to_dense(), t.w.detach())) << where;
      for (std::uint64_t s = 0; s < 3; ++s) t.step(10 * round + s);
      t.expect_equal(where + " steps");
      EXPECT_TRUE(torch::equal(t.compressed->to_dense(), t.w.detach())) << where;
      if (round == 2) {
        t.both([](SparseWeight& s) { s.shrink(0.5); });
        t.expect_equal(where + " shrink");
      }
    }
    EXPECT_THROW(t.compressed->rewire({t.compressed->active(), {}, {}, {}}), Error);
  }
}

// A weight whose masks are apart goes on where it was; one that knows of no masks apart takes what computes alone.
TEST(CompressedWeight, MasksOfTheirOwnComeBackInEitherStorage) {
  for (const auto& psi : {Reparametrisation(), Reparametrisation(Powerprop(1.7))}) {
    Twins t(7, 9, psi), same(7, 9, psi), other(7, 9, psi);
    const at::Tensor forward = positions({1, 8, 20, 33, 60}), backward = positions({1, 2, 20, 40, 61, 62}),
                     both = positions({1, 20});
    t.both([&](SparseWeight& s) { s.set_masks(forward, backward); });
    t.step(1);
    for (const bool compressed : {false, true}) {
      const auto of = [&](Twins& twins) -> SparseWeight& {
        return compressed ? static_cast<SparseWeight&>(*twins.compressed) : *twins.masked;
      };
      const SparseWeight& was = of(t);
      of(same).set_masks(positions({0}), positions({0, 3}));
      of(same).restore(was.archive());
      EXPECT_TRUE(torch::equal(of(same).all_values(), was.all_values())) << compressed;
      EXPECT_TRUE(torch::equal(of(same).active(), forward)) << compressed;
      EXPECT_TRUE(torch::equal(of(same).trainable(), backward)) << compressed;
      EXPECT_TRUE(torch::equal(of(same).weights(), was.weights())) << compressed;
      of(other).restore(was.archive());
      EXPECT_TRUE(torch::equal(of(other).active(), forward)) << compressed;
      EXPECT_TRUE(torch::equal(of(other).trainable(), both)) << compressed;
      EXPECT_TRUE(torch::equal(of(other).weights(), was.weights())) << compressed;
      EXPECT_EQ(of(other).all_values().count_nonzero().item<std::int64_t>(), 5) << compressed;
    }
    EXPECT_TRUE(torch::equal(other.w.detach(), t.w.detach()));  // what a layer would compute with
    EXPECT_TRUE(torch::equal(other.compressed->to_dense(), t.w.detach()));
    // A file of weights holds what computes.
    CompressedWeight loaded("fc.weight", {7, 9}, torch::kDouble);
    ASSERT_TRUE(loaded.load_state(t.compressed->state()));
    EXPECT_TRUE(torch::equal(loaded.to_dense(), t.w.detach()));
  }
}

TEST(CompressedWeight, OptimiserStateFollowsEachRewiring) {
  Twins t(5, 8, {});
  t.both([](SparseWeight& s) { s.keep(positions({0, 3, 9, 14, 20, 33, 39})); });
  t.step(1);
  t.both([](SparseWeight& s) { s.rewire({positions({3}), positions({4}), {}, {}}); });
  t.both([](SparseWeight& s) { s.rewire({positions({9, 14}), positions({3, 15}), {}, {}}); });
  t.expect_equal("after");
}

// SET's kind of change, large enough that threads share it out: many of them, beside masked storage and for any
// threads.
TEST(CompressedWeight, ManyLargeRewiringsAreTheMaskedOnesForAnyThreads) {
  const int threads_before = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> results;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    Twins t(301, 701, Reparametrisation(Powerprop(2)));
    const at::Tensor first = positions(random_subset(301 * 701, 80000, RandomStream(8, Purpose::test)));
    t.both([&](SparseWeight& s) { s.keep(first); });
    // Any gradient will do here: phi and momentum only have to travel.
    t.masked_momentum = t.w.detach().sin();
    t.compressed_momentum = torch::empty_like(t.compressed->stored_values()).detach();
    t.compressed_momentum.index_copy_(0, t.canonical_places(),
                                      t.masked_momentum.view({-1}).index_select(0, t.masked->active()));
    for (std::uint64_t round = 0; round < 8; ++round) {
      const at::Tensor drop = some(t.masked->active(), 24000, 100 + round);
      const at::Tensor free = inactive(*t.masked);
      // Some of what leaves comes back at once.
      const at::Tensor again = some(drop, round % 2 == 0 ? 0 : 500, 200 + round);
      const at::Tensor grow = std::get<0>(torch::cat({some(free, 24000 - again.numel(), 300 + round), again}).sort());
      const at::Tensor births = round % 3 == 0 ? at::Tensor() : torch::linspace(-1, 1, 24000, torch::kDouble);
      t.both([&](SparseWeight& s) { s.rewire({drop, grow, births, {}}); });
      t.expect_equal("threads " + std::to_string(threads) + " round " + std::to_string(round));
      ASSERT_EQ(t.compressed->nnz(), 80000);
    }
    results.push_back({t.compressed->active(), t.compressed->stored_values().detach(),
                       t.compressed->forward_values().clone(), t.compressed_momentum});
  }
  at::set_num_threads(threads_before);
  for (std::size_t i = 1; i < results.size(); ++i)
    for (std::size_t k = 0; k < results[0].size(); ++k) EXPECT_TRUE(torch::equal(results[0][k], results[i][k])) << k;
}

TEST(CompressedWeight, WrongPositionsInLargeListsChangeNothingForAnyThreads) {
  const int threads_before = at::get_num_threads();
  CompressedWeight s("w", {400, 500});
  s.keep(torch::arange(0, 200000, 2, torch::kInt64));
  const at::Tensor before = s.active();
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const auto message = [&](const Rewiring& change) -> std::string {
      try {
        s.rewire(change);
      } catch (const Error& e) {
        return e.what();
      }
      return "no error";
    };
    // Row after row of them, so that no row is as long as the lists promise.
    EXPECT_EQ(message({torch::arange(70001, 200000, 1, torch::kInt64), {}, {}, {}}),
              "w: position 70001 to drop is not active");
    EXPECT_EQ(message({{}, torch::arange(1001, 200000, 3, torch::kInt64), {}, {}}),
              "w: position 1004 to grow is active already");
    EXPECT_TRUE(torch::equal(s.active(), before));
    EXPECT_EQ(s.stored_values().numel(), 100000);
  }
  at::set_num_threads(threads_before);
}

// Small rows and lists drawn at random, so that every way of being wrong comes up, beside sets.
TEST(CompressedWeight, AnyListsGiveTheNewSetOrNameTheFirstWrongPosition) {
  const std::int64_t n = 3 * 7;
  const at::Tensor all = torch::arange(n, torch::kInt64);
  int right = 0, absent = 0, present = 0;
  for (std::uint64_t round = 0; round < 3000; ++round) {
    RandomStream random(21, Purpose::test, round);
    const auto drawn = [&](std::uint64_t most) {
      return some(all, static_cast<std::int64_t>(random.below(most)), round + most);
    };
    const at::Tensor before = drawn(n + 1),
                     drop =
                         some(before,
                              static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(before.numel()) + 1)),
                              round);
    const auto set = [](const at::Tensor& t) {
      return std::set<std::int64_t>(t.data_ptr<std::int64_t>(), t.data_ptr<std::int64_t>() + t.numel());
    };
    // One list in three is drawn from everything.
    const Rewiring change{
        round % 3 == 1 ? drawn(4) : drop, round % 3 == 2 ? drawn(6) : some(drop, drop.numel() / 2, round), {}, {}};
    std::set<std::int64_t> now = set(before);
    std::string expected;
    for (const std::int64_t p : set(change.drop))
      if (now.erase(p) == 0 && expected.empty())
        expected = "w: position " + std::to_string(p) + " to drop is not active";
    for (const std::int64_t p : set(change.grow))
      if (!now.insert(p).second && expected.empty())
        expected = "w: position " + std::to_string(p) + " to grow is active already";
    CompressedWeight s("w", {3, 7});
    s.keep(before);
    std::string found;
    try {
      s.rewire(change);
    } catch (const Error& e) {
      found = e.what();
    }
    // Rows are looked at one by one: where several are wrong, the first row's error is what is told.
    ASSERT_EQ(found.empty(), expected.empty()) << round << ": " << found << "; " << expected;
    ASSERT_EQ(set(s.active()), expected.empty() ? now : set(before)) << round;
    const bool of_drop = found.find("to drop") != std::string::npos;
    if (!found.empty()) {
      const std::int64_t p = std::stoll(found.substr(found.find("position ") + 9));
      EXPECT_EQ(set(of_drop ? change.drop : change.grow).count(p), 1u) << round;
      EXPECT_EQ(set(before).count(p), of_drop ? 0u : 1u) << round;
      EXPECT_TRUE(of_drop || set(change.drop).count(p) == 0) << round;
    }
    ++(found.empty() ? right : of_drop ? absent : present);
  }
  EXPECT_GT(std::min({right, absent, present}), 300) << right << ", " << absent << ", " << present;
}

TEST(CompressedWeight, EntriesAreThoseOfNowWhoeverWroteThem) {
  CompressedWeight s("w", {300, 400});
  s.keep(some(torch::arange(300 * 400, torch::kInt64), 30000, 1));
  s.rewire({{}, {}, {}, {}});
  const auto expect_now = [&] {
    const auto [positions, weights] = s.entries();
    EXPECT_TRUE(torch::equal(positions, s.active()));
    EXPECT_TRUE(torch::equal(weights, s.to_dense().view({-1}).index_select(0, positions)));
    EXPECT_TRUE(torch::equal(weights, s.weights()));
    return weights;
  };
  {
    const torch::NoGradGuard no_grad;
    s.parameter().copy_(torch::arange(30000, torch::kFloat).sin());
  }
  const at::Tensor stale = expect_now();  // the forward copy is older
  s.forward_values();
  EXPECT_TRUE(torch::equal(expect_now(), stale));  // it is as new
}

TEST(CompressedWeight, ForwardValuesAreMadeWhereTheyAreUsedAgain) {
  CompressedWeight s("w", {30, 40}, torch::kDouble);
  s.keep(some(torch::arange(30 * 40, torch::kInt64), 500, 1));
  const auto write = [&](double x) {
    const torch::NoGradGuard no_grad;
    s.parameter().mul_(x).add_(torch::arange(500, torch::kDouble));
  };
  write(2);
  EXPECT_FALSE(s.forward_values_if_reused().defined());
  const at::Tensor second = s.forward_values_if_reused();
  ASSERT_TRUE(second.defined());
  EXPECT_TRUE(second.equal(s.forward_values()));
  write(3);
  EXPECT_FALSE(s.forward_values_if_reused().defined());
  EXPECT_FALSE(s.forward_values().equal(second));
  EXPECT_TRUE(s.forward_values_if_reused().equal(s.forward_values()));  // it is there
  // Also where values change without their version: an optimiser's step in one pass, another structure.
  s.parameter().mutable_grad() = torch::ones({500}, torch::kDouble);
  ASSERT_TRUE(s.one_pass());
  s.one_pass_done();
  EXPECT_FALSE(s.forward_values_if_reused().defined());
  s.rewire({s.active().slice(0, 0, 10), {}, {}, {}});
  EXPECT_FALSE(s.forward_values_if_reused().defined());
  EXPECT_EQ(s.forward_values_if_reused().numel(), 490);
}

// Large enough for its values to be taken as the product goes, while they change, and not without gradients.
TEST(CompressedWeight, TrainsAndAnswersAlikeWithOrWithoutForwardValues) {
  const auto trained = [](bool made) {
    torch::manual_seed(1);
    const auto layer = std::make_shared<nn::SparseLinearImpl>(torch::nn::LinearOptions(1100, 900));
    const at::Tensor kept = some(torch::arange(1100 * 900, torch::kInt64), 300000, 1);
    layer->weight()->keep(kept);
    {
      const torch::NoGradGuard no_grad;
      layer->weight()->parameter().copy_(torch::randn({300000}) * 0.05);
    }
    torch::optim::SGD sgd(layer->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
    std::vector<at::Tensor> answers;
    const at::Tensor x = torch::randn({100, 1100});
    for (int step = 0; step < 3; ++step) {
      sgd.zero_grad();
      if (made) layer->weight()->forward_values();
      const at::Tensor y = layer->forward(x), again = step == 1 ? layer->forward(x) : y;  // twice between two steps
      EXPECT_TRUE(again.equal(y));
      (y.square().mean() + again.mean()).backward();
      sgd.step();
      const torch::NoGradGuard no_grad;
      answers.push_back(layer->forward(x).clone());
    }
    return answers;
  };
  const auto taken = trained(false), made = trained(true);
  for (std::size_t i = 0; i < made.size(); ++i) EXPECT_TRUE(taken[i].equal(made[i])) << i;
}

TEST(CompressedWeight, DropsEverythingAndGrowsAgain) {
  CompressedWeight s("w", {4, 5}, torch::kDouble);
  s.keep(positions({2, 7, 11}));
  at::Tensor momentum = torch::ones({3}, torch::kDouble);
  s.follow([&](const TopologyChange& change) { s.reindex_state(momentum, change); });
  s.rewire({positions({2, 7, 11}), {}, {}, {}});
  EXPECT_EQ(s.nnz(), 0);
  EXPECT_EQ(momentum.numel(), 0);
  s.rewire({{}, positions({7, 19}), torch::tensor({1.5, -2.0}, torch::kDouble), {}});
  EXPECT_TRUE(torch::equal(s.active(), positions({7, 19})));
  EXPECT_TRUE(torch::equal(s.weights(), torch::tensor({1.5, -2.0}, torch::kDouble)));
  EXPECT_TRUE(torch::equal(momentum, torch::zeros({2}, torch::kDouble)));
}

TEST(CompressedWeight, KeepsTheTensorThatTheOptimiserKnows) {
  CompressedWeight s("w", {6, 6});
  const void* impl = s.parameter().unsafeGetTensorImpl();
  s.keep(positions({1, 5, 30}));
  s.rewire({positions({5}), positions({6, 7}), {}, {}});
  EXPECT_EQ(s.parameter().unsafeGetTensorImpl(), impl);
  EXPECT_EQ(s.parameter().numel(), 4);
  EXPECT_TRUE(s.parameter().requires_grad());
}

template <class Layer>
void expect_archive_has_the_entries(const std::function<Layer()>& make, const at::Tensor& x) {
  Layer saved = make();
  const at::Tensor w = torch::randn(saved->weight()->shape()) * torch::rand(saved->weight()->shape()).lt(0.3);
  saved->weight()->from_dense(w);
  {
    const torch::NoGradGuard no_grad;
    saved->bias.copy_(torch::randn_like(saved->bias));
  }
  const at::Tensor y = saved->forward(x);
  std::stringstream file;
  torch::save(saved, file);
  Layer untouched = make(), other = make();
  other->weight()->keep(positions({1, 2, 3}));
  const void* parameter = other->weight()->parameter().unsafeGetTensorImpl();
  for (Layer* layer : {&untouched, &other}) {
    file.seekg(0);
    torch::load(*layer, file);
    EXPECT_TRUE((*layer)->to_dense().equal(w));
    EXPECT_TRUE((*layer)->forward(x).equal(y));
  }
  EXPECT_EQ(other->weight()->parameter().unsafeGetTensorImpl(), parameter);
  EXPECT_EQ(other->parameters().front().unsafeGetTensorImpl(), parameter);
}

TEST(SparseLinear, ItsEntriesTravelWithTorchsArchives) {
  expect_archive_has_the_entries<nn::SparseLinear>([] { return nn::SparseLinear(8, 3); }, torch::randn({20, 8}));
  // In a network beside other layers, and from a dense layer's archive.
  torch::nn::Sequential net(nn::SparseLinear(8, 3), torch::nn::ReLU(), torch::nn::Linear(3, 2)),
      again(nn::SparseLinear(8, 3), torch::nn::ReLU(), torch::nn::Linear(3, 2));
  net->ptr<nn::SparseLinearImpl>(0)->weight()->keep(positions({0, 7, 23}));
  const at::Tensor x = torch::randn({5, 8});
  std::stringstream file, dense_file;
  torch::save(net, file);
  torch::load(again, file);
  EXPECT_TRUE(again->forward(x).equal(net->forward(x)));
  torch::nn::Linear dense(8, 3);
  {
    const torch::NoGradGuard no_grad;
    dense->weight.mul_(torch::rand({3, 8}).lt(0.5));
  }
  torch::save(dense, dense_file);
  nn::SparseLinear layer(8, 3);
  torch::load(layer, dense_file);
  EXPECT_TRUE(layer->to_dense().equal(dense->weight));
  EXPECT_TRUE(layer->bias.equal(dense->bias));
}

TEST(SparseConv2d, ItsEntriesTravelWithTorchsArchives) {
  expect_archive_has_the_entries<nn::SparseConv2d>(
      [] { return nn::SparseConv2d(torch::nn::Conv2dOptions(4, 5, 3).padding(1)); }, torch::randn({20, 4, 7, 7}));
}

TEST(SparseLinear, RefusesAnArchiveOfSomethingElse) {
  nn::SparseLinear layer(8, 3);
  layer->weight()->keep(positions({0, 7, 23}));
  const at::Tensor before = layer->to_dense();
  const auto error_of = [&](const auto& module) {
    std::stringstream file;
    torch::save(module, file);
    try {
      torch::load(layer, file);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::data);
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error_of(torch::nn::Linear(7, 3)), "weight: has shape [3, 7]; the model needs [3, 8]");
  EXPECT_EQ(error_of(torch::nn::Linear(8, 4)), "weight: the archive has a bias of [4]; expected one of [3]");
  EXPECT_EQ(error_of(torch::nn::Linear(torch::nn::LinearOptions(8, 3).bias(false))),
            "weight: the archive has no bias; expected one of [3]");
  EXPECT_EQ(error_of(torch::nn::BatchNorm1d(torch::nn::BatchNormOptions(3))),
            "weight: has shape [3]; the model needs [3, 8]");
  EXPECT_NE(error_of(nn::SparseLinear(9, 3)).find("weight: "), std::string::npos);
  EXPECT_TRUE(layer->to_dense().equal(before));
}

// As torch's Linear and Conv2d: any dimensions before the last one, and an image alone.
TEST(SparseLinear, TakesAnyDimensionsBeforeTheLast) {
  torch::nn::Linear dense(8, 3);
  const nn::SparseLinear sparse(nn::SparseLinearImpl::from_dense(*dense));
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{8}, {5, 8}, {4, 5, 8}, {2, 3, 4, 8}, {0, 8}, {3, 0, 8}}) {
    const at::Tensor x = torch::randn(shape).requires_grad_(true), y = x.detach().clone().requires_grad_(true);
    const at::Tensor expected = dense->forward(x), found = sparse.ptr()->forward(y);
    ASSERT_EQ(found.sizes(), expected.sizes());
    EXPECT_TRUE(torch::allclose(found, expected, 1e-5, 1e-6));
    expected.sum().backward();
    found.sum().backward();
    EXPECT_TRUE(torch::allclose(y.grad(), x.grad(), 1e-5, 1e-6));
  }
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(4, 5, 3));
  const auto sparse_conv = nn::SparseConv2dImpl::from_dense(*conv);
  const at::Tensor image = torch::randn({4, 7, 6});
  EXPECT_TRUE(torch::allclose(sparse_conv->forward(image), conv->forward(image), 1e-5, 1e-5));
}

TEST(SparseLinear, CloneIsALayerOfItsOwn) {
  torch::nn::Sequential net(nn::SparseConv2d(torch::nn::Conv2dOptions(2, 3, 3).bias(false)), torch::nn::Flatten(),
                            nn::SparseLinear(3 * 16, 4), nn::SparseLinear(4, 3));
  net->ptr<nn::SparseConv2dImpl>(0)->weight()->keep(positions({1, 4, 30}));
  auto& weight = *net->ptr<nn::SparseLinearImpl>(2)->weight();
  weight.keep(torch::arange(0, 192, 5, torch::kInt64));
  net->parameters().front().set_requires_grad(false);
  net->eval();
  torch::manual_seed(8);
  const at::Tensor next = torch::rand({1});
  torch::manual_seed(8);
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(net->clone());
  EXPECT_TRUE(torch::rand({1}).equal(next));
  const at::Tensor x = torch::randn({5, 2, 6, 6}), before = net->forward(x);
  EXPECT_TRUE(copy->forward(x).equal(before));  // the last layer's weights are drawn when they are needed
  EXPECT_FALSE(copy->ptr(0)->is_training() || copy->ptr(2)->is_training());
  EXPECT_FALSE(copy->parameters().front().requires_grad());
  weight.rewire({positions({0}), positions({1}), torch::ones({1}), {}});
  {
    const torch::NoGradGuard no_grad;
    net->ptr<nn::SparseLinearImpl>(3)->weight()->parameter().mul_(2);
  }
  EXPECT_FALSE(net->forward(x).equal(before));
  EXPECT_TRUE(copy->forward(x).equal(before));
  std::ostringstream text;
  text << *net;
  EXPECT_NE(text.str().find("espalier::nn::SparseConv2d(2, 3, kernel_size=[3, 3], stride=[1, 1], padding=[0, 0], "
                            "dilation=[1, 1], groups=1, bias=false, 3 of 54 weights)"),
            std::string::npos)
      << text.str();
  EXPECT_NE(text.str().find("espalier::nn::SparseLinear(in_features=48, out_features=4, bias=true, 39 of 192 weights)"),
            std::string::npos);
}

// As torch's layers: uniform within sqrt(1 / fan_in), by the default generator.
TEST(SparseLinear, BeginsAsTheDenseLayerDoes) {
  const auto drawn = [](auto make) {
    torch::manual_seed(4);
    auto first = make();
    torch::manual_seed(4);
    auto again = make(), other = make();
    EXPECT_TRUE(first->to_dense().equal(again->to_dense()));
    EXPECT_FALSE(again->to_dense().equal(other->to_dense()));
    EXPECT_TRUE(first->bias.equal(again->bias));
    return std::make_pair(first->to_dense().flatten(), first->bias.detach());
  };
  const auto expect_uniform = [](const at::Tensor& x, double bound) {
    EXPECT_LE(x.abs().max().item<double>(), bound);
    EXPECT_GT(x.abs().max().item<double>(), 0.9 * bound);
    // Of n numbers within b: the mean within 5 deviations b / sqrt(3 n), the mean square b^2/3 within 5 of 0.3
    // b^2/sqrt(n).
    const double root = std::sqrt(static_cast<double>(x.numel()));
    EXPECT_NEAR(x.mean().item<double>(), 0, 5 * bound / 1.7 / root);
    EXPECT_NEAR(x.square().mean().item<double>(), bound * bound / 3, 5 * 0.3 * bound * bound / root);
  };
  const auto [linear, linear_bias] = drawn([] { return nn::SparseLinear(100, 300); });
  expect_uniform(linear, 0.1);
  expect_uniform(linear_bias, 0.1);
  const auto [conv, conv_bias] = drawn([] { return nn::SparseConv2d(torch::nn::Conv2dOptions(8, 100, 3).groups(2)); });
  torch::manual_seed(4);
  torch::nn::Linear dense(8, 3);
  torch::nn::Conv2d dense_conv(torch::nn::Conv2dOptions(4, 5, 3));
  const at::Tensor next = torch::rand({1});
  torch::manual_seed(4);
  nn::SparseLinearImpl::from_dense(*torch::nn::Linear(8, 3));
  nn::SparseConv2dImpl::from_dense(*torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 5, 3)));
  EXPECT_TRUE(torch::rand({1}).equal(next)) << "to convert a layer draws nothing";
  expect_uniform(conv, 1.0 / 6);
  expect_uniform(conv_bias, 1.0 / 6);
}

// A loop of one's own: zero_grad() before each step leaves gradients where they are, of other entries after a change.
TEST(SparseLinear, AGradientDoesNotOutliveItsEntries) {
  nn::SparseLinear layer(torch::nn::LinearOptions(6, 5).bias(false));
  CompressedWeight& weight = *layer->weight();
  weight.keep(positions({1, 5, 12, 29}));
  const at::Tensor x = torch::rand({7, 6});
  const Rewiring changes[] = {{positions({5}), positions({6, 7}), torch::ones({2}), {}},
                              {positions({6}), positions({8}), torch::ones({1}), {}}};
  for (const Rewiring& change : changes) {
    layer->forward(x).sum().backward();
    weight.rewire(change);
    layer->zero_grad();
    layer->forward(x).sum().backward();  // dL/dw = the sum of the input of its column
    const at::Tensor expected = x.sum(0).index_select(0, weight.active().remainder(6));
    EXPECT_TRUE(torch::allclose(std::get<0>(weight.parameter().grad().sort()), std::get<0>(expected.sort()), 1e-5));
    weight.from_dense(layer->to_dense());
    EXPECT_FALSE(weight.parameter().grad().defined());
    layer->forward(x).sum().backward();
    weight.restore(weight.archive());
    EXPECT_FALSE(weight.parameter().grad().defined());
  }
}

TEST(CompressedWeight, WrongPositionsChangeNothing) {
  CompressedWeight s("w", {2, 3}, torch::kDouble);
  s.from_dense(torch::tensor({1.0, 0.0, 3.0, 0.0, 5.0, 6.0}, torch::kDouble).view({2, 3}));
  EXPECT_THROW(s.rewire({positions({4, 2}), {}, {}, {}}), Error);  // not ascending
  EXPECT_THROW(s.rewire({positions({4, 4}), {}, {}, {}}), Error);  // one of them twice
  EXPECT_THROW(s.rewire({positions({1}), {}, {}, {}}), Error);     // not active
  EXPECT_THROW(s.rewire({positions({6}), {}, {}, {}}), Error);     // outside
  EXPECT_THROW(s.rewire({{}, positions({2}), {}, {}}), Error);     // active already
  EXPECT_THROW(s.rewire({{}, positions({1}), torch::zeros({2}), {}}), Error);
  EXPECT_THROW(s.keep(positions({0, 1})), Error);
  EXPECT_THROW(CompressedWeight("w", {6}), Error);
  EXPECT_THROW(CompressedWeight("w", {0, 6}), Error);
  EXPECT_TRUE(torch::equal(s.active(), positions({0, 2, 4, 5})));
  EXPECT_TRUE(torch::equal(s.weights(), torch::tensor({1.0, 3.0, 5.0, 6.0}, torch::kDouble)));
}

// A long list is read by several threads, and the first wrong number is what is named.
TEST(CompressedWeight, NamesTheFirstWrongPositionOfALongList) {
  CompressedWeight s("w", {400, 1000});
  const int threads_before = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    at::Tensor list = torch::arange(0, 400000, 2, torch::kInt64);
    list[70000] = 139998;  // as the one before it
    list[199999] = 400000;
    try {
      s.keep(list);
      ADD_FAILURE() << threads;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("found 139998 at number 70000"), std::string::npos) << error.what();
    }
  }
  at::set_num_threads(threads_before);
}

TEST(CompressedWeight, ArchiveAndStateComeBack) {
  for (const auto& psi :
       {Reparametrisation(), Reparametrisation(Powerprop(1.7)), Reparametrisation(Powerprop(2, Update::target))}) {
    CompressedWeight s("w", {7, 9}, torch::kDouble);
    s.adopt("w", 0, psi);
    s.from_dense(torch::dropout(dense_values(7, 9), 0.6, true));
    s.set_trainable(s.active().slice(0, 2, 7));
    CompressedWeight other("w", {7, 9}, torch::kDouble);
    other.adopt("w", 0, psi);
    other.restore(s.archive());
    EXPECT_TRUE(torch::equal(other.values(), s.values()));
    EXPECT_TRUE(torch::equal(other.weights(), s.weights()));
    EXPECT_TRUE(torch::equal(other.active(), s.active()));
    EXPECT_TRUE(torch::equal(other.trainable(), s.trainable()));
    CompressedWeight third("w", {7, 9}, torch::kDouble), fourth("w", {7, 9}, torch::kDouble);
    ASSERT_TRUE(third.load_state(s.state()));
    ASSERT_TRUE(fourth.load_state({{"w", s.to_dense()}}));
    EXPECT_FALSE(fourth.load_state({{"v", s.to_dense()}}));
    EXPECT_TRUE(torch::equal(third.to_dense(), s.to_dense()));
    EXPECT_TRUE(torch::equal(fourth.to_dense(), s.to_dense()));
  }
}

TEST(CompressedWeight, DamagedIndicesAreRefused) {
  CompressedWeight s("w", {3, 4});
  const auto attempt = [&](std::vector<std::int64_t> crow, std::vector<std::int64_t> col) {
    s.restore({{"w.crow_indices", positions(crow)},
               {"w.col_indices", positions(col)},
               {"w.phi", torch::ones({static_cast<std::int64_t>(col.size())})}});
  };
  attempt({0, 1, 1, 3}, {3, 0, 2});
  EXPECT_EQ(s.nnz(), 3);
  EXPECT_THROW(attempt({0, 1, 3}, {3, 0, 2}), Error);      // too few rows
  EXPECT_THROW(attempt({0, 2, 1, 3}, {3, 0, 2}), Error);   // falls
  EXPECT_THROW(attempt({0, 1, 1, 4}, {3, 0, 2}), Error);   // beyond the end
  EXPECT_THROW(attempt({0, 1, 1, 3}, {3, 2, 0}), Error);   // not ascending
  EXPECT_THROW(attempt({0, 1, 1, 3}, {4, 0, 2}), Error);   // outside
  EXPECT_THROW(attempt({0, 1, 1, 3}, {-1, 0, 2}), Error);  // outside
  EXPECT_THROW(attempt({0, 1, 1 << 30, 3}, {3, 0, 2}), Error);
  EXPECT_THROW(s.restore({{"w.phi", torch::ones({3})}}), Error);
  EXPECT_EQ(s.nnz(), 3);
}

TEST(SparseLinear, IsTheDenseLayerWithTheSameWeights) {
  for (const std::int64_t batch : {1, 7, 16, 64, 65, 100, 130}) {
    const bool biased = batch != 65;
    torch::nn::Linear dense(torch::nn::LinearOptions(37, 23).bias(biased));
    dense->to(torch::kDouble);
    {
      const torch::NoGradGuard no_grad;
      dense->weight.mul_(torch::rand({23, 37}, torch::kDouble).lt(0.3));
      dense->weight.index_fill_(0, positions({4}), 0);  // an empty row
      dense->weight.index_fill_(1, positions({9}), 0);  // an empty column
    }
    const auto sparse = nn::SparseLinearImpl::from_dense(*dense);
    EXPECT_TRUE(torch::equal(sparse->to_dense(), dense->weight));
    const auto x = torch::randn({batch, 37}, torch::kDouble).set_requires_grad(true);
    const auto x2 = x.detach().clone().set_requires_grad(true);
    const auto target = torch::randn({batch, 23}, torch::kDouble);
    const auto y = dense->forward(x), y2 = sparse->forward(x2);
    EXPECT_TRUE(torch::allclose(y2, y, 1e-13, 1e-13)) << batch;
    (y * target).sum().backward();
    (y2 * target).sum().backward();
    EXPECT_TRUE(torch::allclose(x2.grad(), x.grad(), 1e-13, 1e-13)) << batch;
    if (biased) {
      EXPECT_TRUE(torch::allclose(sparse->bias.grad(), dense->bias.grad(), 1e-12, 1e-12)) << batch;
    }
    auto& weight = *sparse->weight();
    std::vector<std::int64_t> at;
    kernels::EntryIndices place;
    kernels::row_major(*weight.matrix(), at, place, 1);
    const auto grad = weight.stored_values().grad();
    for (std::size_t i = 0; i < at.size(); ++i) {
      EXPECT_NEAR(grad[place[i]].item<double>(), dense->weight.grad().view({-1})[at[i]].item<double>(), 1e-11);
    }
  }
}

// The layer's gradients against central differences of a loss, in double.
TEST(SparseLinear, GradientsAgreeWithCentralDifferences) {
  nn::SparseLinear layer(std::make_shared<nn::SparseLinearImpl>(torch::nn::LinearOptions(5, 4), torch::kDouble));
  torch::manual_seed(3);
  layer->weight()->from_dense(torch::randn({4, 5}, torch::kDouble) * torch::rand({4, 5}).lt(0.6));
  auto x = torch::randn({3, 5}, torch::kDouble).set_requires_grad(true);
  const auto loss = [&] { return torch::tanh(layer->forward(x)).pow(3).sum(); };
  loss().backward();
  for (auto& tensor : {x, layer->weight()->stored_values(), layer->bias}) {
    const auto analytic = tensor.grad().view({-1}).clone();
    const torch::NoGradGuard no_grad;
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      const double h = 1e-6;
      auto entry = tensor.view({-1})[i];
      entry += h;
      const double above = loss().item<double>();
      entry -= 2 * h;
      const double below = loss().item<double>();
      entry += h;
      EXPECT_NEAR(analytic[i].item<double>(), (above - below) / (2 * h), 1e-8);
    }
  }
}

TEST(SparseLinear, AnyThreadsGiveTheSameBits) {
  const int before = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> results;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    torch::manual_seed(5);
    nn::SparseLinear layer(400, 700);
    layer->weight()->from_dense(torch::randn({700, 400}) * torch::rand({700, 400}).lt(0.2));
    auto x = torch::randn({150, 400}).set_requires_grad(true);
    const auto y = layer->forward(x);
    y.square().sum().backward();
    results.push_back({y.detach(), x.grad(), layer->weight()->stored_values().grad(), layer->bias.grad()});
  }
  at::set_num_threads(before);
  for (std::size_t i = 1; i < results.size(); ++i)
    for (std::size_t k = 0; k < results[0].size(); ++k) EXPECT_TRUE(torch::equal(results[0][k], results[i][k])) << k;
}

/// Optimisers of LibTorch over these parameters, of which some write to them without telling their version.
std::vector<std::pair<std::string, std::shared_ptr<torch::optim::Optimizer>>> optimisers(
    const std::vector<at::Tensor>& parameters) {
  using namespace torch::optim;  // NOLINT(google-build-using-namespace)
  return {{"SGD", std::make_shared<SGD>(parameters, SGDOptions(0.01))},
          {"SGD with momentum",
           std::make_shared<SGD>(parameters, SGDOptions(0.01).momentum(0.9).nesterov(true).weight_decay(0.01))},
          {"Adam", std::make_shared<Adam>(parameters, AdamOptions(0.01))},
          {"AdamW", std::make_shared<AdamW>(parameters, AdamWOptions(0.01))},
          {"Adagrad", std::make_shared<Adagrad>(parameters, AdagradOptions(0.01))},
          {"RMSprop", std::make_shared<RMSprop>(parameters, RMSpropOptions(0.01))}};
}

/// Trains a sparse layer and the same one dense, masked, without a Sparsifier, and compares them, trained and asked
/// between all calls, where a copy of the values might have been made and be out of date.
template <class Make>
void expect_any_optimiser_works(const Make& make, const at::Tensor& x) {
  const std::size_t kinds = optimisers({torch::zeros({1}).set_requires_grad(true)}).size();
  for (std::size_t kind = 0; kind < kinds; ++kind) {
    torch::manual_seed(1);
    auto [layer, dense] = make();
    const auto mask = dense->weight.detach().ne(0);
    const auto a = optimisers(layer->parameters())[kind], b = optimisers(dense->parameters())[kind];
    SCOPED_TRACE(a.first);
    const auto expect_same_answer = [&, &layer = layer, &dense = dense] {
      const torch::NoGradGuard no_grad;
      EXPECT_TRUE(torch::allclose(layer->forward(x), dense->forward(x), 1e-4, 1e-5));
    };
    for (int s = 0; s < 6; ++s) {
      a.second->zero_grad();
      b.second->zero_grad();
      if (s % 2 == 1) layer->weight()->stored_values().mutable_grad() = at::Tensor();
      if (s > 3) expect_same_answer();
      layer->forward(x).square().mean().backward();
      dense->forward(x).square().mean().backward();
      dense->weight.mutable_grad().mul_(mask);
      if (s == 2 || s == 4) expect_same_answer();
      a.second->step();
      b.second->step();
      if (s == 4) layer->weight()->stored_values().mutable_grad() = at::Tensor();
      if (s > 2) expect_same_answer();
    }
    EXPECT_TRUE(torch::allclose(layer->to_dense(), dense->weight, 1e-4, 1e-5));
    const auto [positions, w] = layer->weight()->entries();
    EXPECT_TRUE(w.equal(layer->to_dense().flatten().index_select(0, positions)));
  }
}

TEST(SparseLinear, WorksWithAnyOptimiserAndWithoutASparsifier) {
  expect_any_optimiser_works(
      [] {
        torch::nn::Linear dense(8, 3);
        const torch::NoGradGuard no_grad;
        dense->weight.mul_(torch::rand({3, 8}).lt(0.5));
        return std::make_pair(nn::SparseLinearImpl::from_dense(*dense), dense);
      },
      torch::randn({20, 8}));
}

TEST(SparseConv2d, WorksWithAnyOptimiserAndWithoutASparsifier) {
  expect_any_optimiser_works(
      [] {
        torch::nn::Conv2d dense(torch::nn::Conv2dOptions(4, 5, 3).padding(1));
        const torch::NoGradGuard no_grad;
        dense->weight.mul_(torch::rand({5, 4, 3, 3}).lt(0.5));
        return std::make_pair(nn::SparseConv2dImpl::from_dense(*dense), dense);
      },
      torch::randn({20, 4, 7, 7}));
}

TEST(SparseLinear, AnEmptyBatchGivesZeroGradients) {
  nn::SparseLinear layer(8, 3);
  layer->weight()->from_dense(torch::ones({3, 8}));
  const auto y = layer->forward(torch::zeros({0, 8}));
  EXPECT_EQ(y.sizes(), (std::vector<std::int64_t>{0, 3}));
  y.sum().backward();
  EXPECT_TRUE(torch::equal(layer->weight()->stored_values().grad(), torch::zeros({24})));
  EXPECT_TRUE(torch::equal(layer->bias.grad(), torch::zeros({3})));
}

TEST(SparseLinear, SaysWhatDoesNotFit) {
  nn::SparseLinear layer(8, 3);
  EXPECT_THROW(layer->forward(torch::zeros({2, 7})), Error);
  EXPECT_THROW(layer->forward(torch::zeros({2, 8}, torch::kDouble)), Error);
  EXPECT_THROW(layer->forward(torch::zeros({2, 8, 7})), Error);
  EXPECT_THROW(layer->forward(torch::zeros({})), Error);
  EXPECT_THROW(layer->forward(torch::zeros({2, 8}, torch::kInt64)), Error);
}

}  // namespace
}  // namespace espalier
