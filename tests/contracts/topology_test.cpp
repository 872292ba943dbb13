// What must hold after every change of a topology, whatever the method, the sizes and the values: the total is exact,
// no layer is empty, no position appears twice, the state of newborns is zero, and both storages choose alike.
#include <algorithm>
#include <functional>
#include <numeric>

#include "espalier/core/random.h"
#include "espalier/kernels/compressed.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/drop_and_grow.h"
#include "espalier/methods/registry.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using test::numbers;

enum class Values { random, ties, tiny, huge, zeros };

/// phi at the active positions: what makes selection hard.
at::Tensor values(Values kind, std::int64_t n, RandomStream& random) {
  at::Tensor phi = torch::empty({n});
  auto* p = phi.data_ptr<float>();
  for (std::int64_t i = 0; i < n; ++i) {
    const double sign = random.below(2) == 0 ? -1 : 1;
    switch (kind) {
      case Values::random: p[i] = static_cast<float>(0.1 * random.normal()); break;
      case Values::ties: p[i] = static_cast<float>(sign * 0.25 * static_cast<double>(random.below(3))); break;
      case Values::tiny: p[i] = static_cast<float>(sign * 1e-12 * (1 + random.uniform())); break;
      case Values::huge: p[i] = static_cast<float>(sign * 1e6 * (1 + random.uniform())); break;
      case Values::zeros: p[i] = 0; break;
    }
  }
  return phi;
}

/// An optimiser's state of that weight: at each kept position its number and one, elsewhere zero. In the order in which
/// the storage keeps state.
at::Tensor numbered_state(SparseWeight& w) {
  const auto active = numbers(w.active());
  if (auto* compressed = dynamic_cast<CompressedWeight*>(&w)) {
    at::Tensor state = torch::zeros({w.nnz()});
    auto* number = state.data_ptr<float>();
    std::vector<std::int64_t> position;
    kernels::EntryIndices place;
    kernels::row_major(*compressed->matrix(), position, place, 1);
    for (std::size_t i = 0; i < position.size(); ++i) number[place[i]] = static_cast<float>(position[i] + 1);
    return state;
  }
  at::Tensor state = torch::zeros({w.numel()});
  for (const auto i : active) state.data_ptr<float>()[i] = static_cast<float>(i + 1);
  return state;
}

struct Network {
  std::vector<at::Tensor> models;  // what layers with masked storage compute with
  std::vector<std::unique_ptr<SparseWeight>> weights;
  std::unique_ptr<Method> method;
  MethodContext context;
};

void set_every_step(Method& method) {
  for (auto& option : describe(method))
    if (option.name == "every") *std::get<Duration*>(option.value) = Duration::steps(1);
}

/// What the changes of a test have been.
struct Seen {
  std::int64_t changes = 0, grown = 0;
  std::int64_t full = 0;             // with a layer that is full
  std::int64_t none = 0, every = 0;  // in which nothing left, or all that may
};

/// One change on both storages; then everything is looked at.
void change_and_check(Network (&nets)[2], std::int64_t step, std::int64_t total, Seen& seen) {
  std::vector<TopologyChange> changes[2];
  std::vector<at::Tensor> before;
  for (const auto& w : nets[0].weights) {
    before.push_back(w->active());
    if (w->nnz() == w->numel()) ++seen.full;
  }
  std::int64_t left = 0;
  for (int s = 0; s < 2; ++s) {
    Network& net = nets[s];
    net.context.clock.step = step;
    std::vector<std::unique_ptr<test::Change>> changed;
    std::vector<at::Tensor> states;
    for (const auto& w : net.weights) {
      changed.push_back(std::make_unique<test::Change>(*w));
      states.push_back(numbered_state(*w));
    }
    net.method->after_step(net.context);
    std::int64_t sum = 0;
    for (std::size_t l = 0; l < net.weights.size(); ++l) {
      SparseWeight& w = *net.weights[l];
      const auto active = numbers(w.active());
      sum += w.nnz();
      ASSERT_GE(w.nnz(), 1);
      ASSERT_EQ(static_cast<std::int64_t>(active.size()), w.nnz());
      for (std::size_t i = 0; i < active.size(); ++i) {
        ASSERT_TRUE(active[i] >= 0 && active[i] < w.numel());
        ASSERT_TRUE(i == 0 || active[i - 1] < active[i]);  // ascending, so none twice
      }
      changes[s].push_back(changed[l]->take().value_or(TopologyChange{}));
      const TopologyChange& change = changes[s].back();
      if (!change.grown.defined()) continue;
      // No newborn connection that could never move.
      const at::Tensor newborn = w.values().masked_select(torch::isin(w.active(), change.grown));
      ASSERT_TRUE(w.reparametrisation().derivative(newborn).ne(0).all().item<bool>());
      if (s == 0) seen.grown += change.grown.numel();
      if (s == 0) left += change.dropped.numel();
      // An optimiser's state: what stayed has its own still, newborns have zero, and so has what has left.
      w.reindex_state(states[l], change);
      at::Tensor expected = numbered_state(w);
      const auto born = numbers(change.grown);
      auto* number = expected.data_ptr<float>();
      for (std::int64_t i = 0; i < expected.numel(); ++i) {
        if (std::binary_search(born.begin(), born.end(), static_cast<std::int64_t>(number[i]) - 1)) number[i] = 0;
      }
      ASSERT_TRUE(torch::equal(states[l], expected)) << w.storage() << ", step " << step;
      const std::int64_t stayed = torch::isin(before[l], change.dropped).logical_not().sum().item<std::int64_t>();
      ASSERT_EQ(w.nnz(), stayed + change.grown.numel());
    }
    ASSERT_EQ(sum, total) << "step " << step;
  }
  ++seen.changes;
  if (left == 0) ++seen.none;
  if (left + static_cast<std::int64_t>(nets[0].weights.size()) >= total) ++seen.every;
  for (std::size_t l = 0; l < nets[0].weights.size(); ++l) {
    ASSERT_TRUE(torch::equal(nets[0].weights[l]->active(), nets[1].weights[l]->active())) << "step " << step;
    ASSERT_TRUE(torch::equal(nets[0].weights[l]->values(), nets[1].weights[l]->values())) << "step " << step;
    ASSERT_EQ(changes[0][l].grown.defined(), changes[1][l].grown.defined());
    if (!changes[0][l].grown.defined()) continue;
    ASSERT_TRUE(torch::equal(changes[0][l].dropped, changes[1][l].dropped));
    ASSERT_TRUE(torch::equal(changes[0][l].grown, changes[1][l].grown));
  }
}

class Topology : public ::testing::TestWithParam<std::string> {};

TEST_P(Topology, HoldsOverAThousandChanges) {
  Seen seen;
  for (std::uint64_t net = 0; net < 40; ++net) {
    RandomStream random(net, Purpose::test, 77);
    const double alpha = net % 4 == 3 ? 1.5 : net % 8 == 6 ? 2 : 1;
    const double ends[] = {0.5, 0.9, 0.999};  // and anything between
    std::vector<std::vector<std::int64_t>> shapes;
    const auto layers = 1 + static_cast<int>(random.below(4));
    for (int l = 0; l < layers; ++l) {
      const auto below = [&random](std::uint64_t n) { return 1 + static_cast<std::int64_t>(random.below(n)); };
      shapes.push_back({below(40), below(60)});
      if (random.below(3) == 0) shapes.back() = {below(8), below(8), below(3), below(5)};
    }
    shapes.push_back({50, 70});                               // room for one weight a layer at 0.999
    if (net % 5 == 0) shapes.insert(shapes.begin(), {2, 1});  // so small that it may be full
    Network nets[2];
    std::int64_t total = 0, positions = 0;
    double asked = net % 4 < 3 ? ends[net % 4] : random.uniform(0.5, 0.999);
    for (const auto& shape : shapes) {
      positions += std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    }
    if (kept_count(positions, asked) < static_cast<std::int64_t>(shapes.size())) asked = 0.9;
    for (int s = 0; s < 2; ++s) {
      for (std::size_t l = 0; l < shapes.size(); ++l) {
        nets[s].models.emplace_back();
        nets[s].weights.push_back(test::weight_of(s == 1 && make_method(GetParam())->takes_compressed(),
                                                  torch::ones(shapes[l]), Powerprop(alpha),
                                                  static_cast<std::int64_t>(l), &nets[s].models.back()));
        nets[s].context.weights.push_back(nets[s].weights.back().get());
      }
      nets[s].context.seed = net;
      nets[s].context.clock = {0, 100, 10};
      nets[s].context.sparsity = {asked, net % 2 == 0 ? "erk" : "uniform", {}};
      nets[s].method = make_method(GetParam());
      set_every_step(*nets[s].method);
      nets[s].method->check(nets[s].context);
      nets[s].method->prepare(nets[s].context);
    }
    for (const auto& w : nets[0].weights) {
      total += w->nnz();
    }
    ASSERT_EQ(total, kept_count(positions, asked));
    for (std::int64_t step = 1; step <= 26; ++step) {
      const auto kind = static_cast<Values>(random.below(5));
      for (std::size_t l = 0; l < shapes.size(); ++l) {
        const at::Tensor phi = values(kind, nets[0].weights[l]->nnz(), random);
        // Whole numbers, so that there are ties.
        const at::Tensor gradient = torch::empty(shapes[l]);
        for (std::int64_t i = 0; i < gradient.numel(); ++i) {
          gradient.data_ptr<float>()[i] = static_cast<float>(random.below(9)) - 4;
        }
        for (auto& n : nets) {
          test::set_values(*n.weights[l], phi);
          test::give_gradient(*n.weights[l], n.models[l], gradient);
        }
      }
      change_and_check(nets, step, total, seen);
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GE(seen.changes, 1000);
  EXPECT_GT(seen.grown, 10000);  // that there were changes to look at
  EXPECT_GT(seen.full, 0);
  if (GetParam() == "dpr" ||
      GetParam() == "deep-r") {  // a threshold that all or none are under, signs that flip or not
    EXPECT_GT(seen.none, 0);
  }
  if (GetParam() == "dpr") {
    EXPECT_GT(seen.every, 0);
  }
}

/// The methods that drop and grow.
std::vector<std::string> names() {
  std::vector<std::string> list;
  for (const auto& m : known_methods())
    if (dynamic_cast<const DropAndGrow*>(m.make().get()) != nullptr) list.push_back(m.name);
  return list;
}
INSTANTIATE_TEST_SUITE_P(Registry, Topology, ::testing::ValuesIn(names()), [](const auto& p) {
  std::string name = p.param;
  for (char& ch : name) ch = std::isalnum(static_cast<unsigned char>(ch)) != 0 ? ch : '_';
  return name;
});

}  // namespace
}  // namespace espalier
