#include "bench/training.h"

#include <algorithm>

#include "espalier/core/random.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparse_evolutionary.h"
#include "espalier/nn/loss.h"

namespace espalier::bench {
namespace {

constexpr std::int64_t kPool = 1024;  // samples that batches are drawn from
constexpr double kLr = 1e-3;
constexpr double kReplaced = 0.3;

}  // namespace

Task mlp_task(const std::vector<std::int64_t>& widths) {
  Task task;
  task.model.name = "mlp";
  task.model.widths.assign(widths.begin() + 1, widths.end() - 1);
  task.input = {1, 1, widths.front()};
  task.classes = widths.back();
  return task;
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Task& task, const std::vector<at::Tensor>& parameters) {
  if (task.optimizer == "adam") return std::make_unique<torch::optim::Adam>(parameters, torch::optim::AdamOptions(kLr));
  return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(kLr).momentum(0.9));
}

Samples::Samples(const Task& task) : batch_(task.batch) {
  torch::manual_seed(static_cast<std::int64_t>(task.seed));
  images_ = torch::randn({kPool, task.input.channels, task.input.height, task.input.width});
  labels_ = torch::randint(task.classes, {kPool}, torch::kInt64);
  order_ = torch::arange(kPool + batch_, torch::kInt64).remainder(kPool);
}

Batch Samples::of_step(std::int64_t s) const {
  const at::Tensor at = order_.narrow(0, s * batch_ % kPool, batch_);
  return {images_.index_select(0, at), labels_.index_select(0, at)};
}

Training::Training(const Task& task, const std::string& storage, double sparsity, at::ScalarType type)
    : seed_(task.seed) {
  nn::ModelOptions options = task.model;
  options.storage = storage;
  net = nn::make_model(options, task.input, task.classes, task.seed);
  if (type != at::kFloat) net->to(type);
  sparsifier = std::make_unique<Sparsifier>(*net, make_method(sparsity > 0 ? "static-random" : "dense"),
                                            Reparametrisation(), SparsifierOptions().sparsity(sparsity).seed(seed_));
  optim = make_optimizer(task, sparsifier->parameters());
}

at::Tensor Training::step(const Batch& batch) {
  const at::Tensor loss = nn::cross_entropy(net->logits(batch.first), batch.second);
  loss.backward();
  sparsifier->step(*optim);
  return loss.detach();
}

void Training::change_topology() {
  ++changes_;
  for (const auto& w : sparsifier->weights()) {
    w->follow([&](const TopologyChange& change) {
      for_each_state(*optim, w->parameter(),
                     [&](const std::string&, at::Tensor& state) { w->reindex_state(state, change); });
    });
    const RandomStream random(seed_, Purpose::topology, static_cast<std::uint64_t>(w->layer()), changes_);
    w->rewire(random_exchange(*w, drop_smallest(*w, kReplaced), random));
    w->follow({});
  }
}

Training::Products Training::products(bool stored) {
  Products sum;
  const auto costs = nn::layer_costs(*net);
  for (std::size_t l = 0; l < costs.size(); ++l) {
    double macs = static_cast<double>(costs[l].macs);
    for (const auto& w : sparsifier->weights()) {
      if (!stored || w->name() != costs[l].name + ".weight") continue;
      macs *= static_cast<double>(w->nnz()) / static_cast<double>(w->numel());
    }
    sum.forward += macs;
    sum.step += (l == 0 ? 2 : 3) * macs;
  }
  return sum;
}

std::vector<Row> rewiring_rows(const Row& step, Training& training, std::int64_t every, double seconds) {
  const Timing change = measure({{"", [&] { training.change_topology(); }}}, seconds)[0];
  Row rewire = step;
  rewire.pass = "rewire";
  rewire.sparse = change;
  rewire.dense_us = 0;
  rewire.dense_path.clear();
  rewire.peers.clear();
  rewire.beside.clear();
  rewire.sparse_gflops = rewire.dense_equivalent_gflops = 0;
  Row both = step;
  both.pass = "step with rewiring";
  const double share = change.median / static_cast<double>(every);
  both.sparse.median += share;
  both.sparse.low += share;
  both.sparse.high += share;
  return {rewire, both};
}

}  // namespace espalier::bench
