#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/bench/bench.h"
#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/select.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/models.h"

namespace espalier::bench {
namespace {

constexpr std::int64_t kPool = 1024;  // samples that batches are drawn from
constexpr double kLr = 1e-3;

std::unique_ptr<torch::optim::Optimizer> optimizer(const std::string& name, const std::vector<at::Tensor>& parameters) {
  if (name == "adam") return std::make_unique<torch::optim::Adam>(parameters, torch::optim::AdamOptions(kLr));
  return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(kLr).momentum(0.9));
}

/// SET's change (Mocanu et al. 2018): the share of smallest magnitude leaves, as many others come at random.
void rewire(SparseWeight& w, double share, const RandomStream& random) {
  const auto count = static_cast<std::int64_t>(share * static_cast<double>(w.nnz()));
  const at::Tensor drop = smallest_weights(w, count).positions;
  w.rewire({drop, random_inactive(w, std::min(count, w.numel() - w.nnz()), random), {}, {}});
}

struct Data {
  Data(const StepCase& c, std::uint64_t seed) : batch(c.batch) {
    torch::manual_seed(static_cast<std::int64_t>(seed));
    x = torch::randn({kPool, 1, 1, c.widths.front()});
    labels = torch::randint(c.widths.back(), {kPool}, torch::kInt64);
  }
  /// The samples of step `s`, copied as a loader does.
  std::pair<at::Tensor, at::Tensor> of_step(std::int64_t s) const {
    const at::Tensor at = (torch::arange(batch, torch::kInt64) + s * batch).remainder(kPool);
    return {x.index_select(0, at), labels.index_select(0, at)};
  }
  std::int64_t batch;
  at::Tensor x, labels;
};

/// A network under a Sparsifier, in either storage.
struct Ours {
  Ours(const StepCase& c, const std::string& storage, double sparsity, std::uint64_t seed) {
    nn::ModelOptions options;
    options.name = "mlp";
    options.widths.assign(c.widths.begin() + 1, c.widths.end() - 1);
    options.storage = storage;
    net = nn::make_model(options, {1, 1, c.widths.front()}, c.widths.back(), seed);
    sparsifier = std::make_unique<Sparsifier>(*net, make_method(sparsity > 0 ? "static-random" : "dense"),
                                              Reparametrisation(), SparsifierOptions().sparsity(sparsity).seed(seed));
    optim = optimizer(c.optimizer, sparsifier->parameters());
  }
  at::Tensor step(const std::pair<at::Tensor, at::Tensor>& batch) {
    const at::Tensor loss = torch::cross_entropy_loss(net->forward(batch.first), batch.second);
    loss.backward();
    sparsifier->step(*optim);
    return loss.detach();
  }
  std::shared_ptr<nn::Network> net;
  std::unique_ptr<Sparsifier> sparsifier;
  std::unique_ptr<torch::optim::Optimizer> optim;
};

/// What research code does with LibTorch: a float mask times gradients before the step and weights after it.
struct TorchMasked {
  TorchMasked(const StepCase& c, const Ours* same_as) {
    torch::nn::Sequential layers;
    for (std::size_t l = 0; l + 1 < c.widths.size(); ++l) {
      torch::nn::Linear linear(c.widths[l], c.widths[l + 1]);
      layers->push_back(linear);
      if (l + 2 < c.widths.size()) layers->push_back(torch::nn::ReLU(torch::nn::ReLUOptions().inplace(true)));
      weights.push_back(linear->weight);
      const torch::NoGradGuard no_grad;
      linear->bias.zero_();
      if (same_as == nullptr) continue;
      const SparseWeight& w = *same_as->sparsifier->weights()[l];
      linear->weight.zero_();
      linear->weight.view({-1}).index_put_({w.active()}, w.weights());
      masks.push_back(torch::zeros({w.numel()}).index_fill(0, w.active(), 1).view(w.shape()));
    }
    net = layers;
    optim = optimizer(c.optimizer, net->parameters());
  }
  at::Tensor step(const std::pair<at::Tensor, at::Tensor>& batch) {
    for (auto& p : net->parameters()) p.mutable_grad() = at::Tensor();
    const at::Tensor loss = torch::cross_entropy_loss(net->forward(batch.first.flatten(1)), batch.second);
    loss.backward();
    const torch::NoGradGuard no_grad;
    for (std::size_t l = 0; l < masks.size(); ++l) weights[l].mutable_grad().mul_(masks[l]);
    optim->step();
    for (std::size_t l = 0; l < masks.size(); ++l) weights[l].mul_(masks[l]);
    return loss.detach();
  }
  torch::nn::Sequential net;
  std::vector<at::Tensor> weights, masks;
  std::unique_ptr<torch::optim::Optimizer> optim;
};

}  // namespace

std::vector<Row> bench_step(const StepCase& c, double seconds, std::uint64_t seed) {
  ESPALIER_CHECK(c.widths.size() >= 2, ErrorKind::usage, "bench step: {} widths; expected inputs, layers, classes",
                 c.widths.size());
  at::set_num_threads(c.threads);
  const Data data(c, seed);
  Ours compressed(c, "compressed", c.sparsity, seed);
  TorchMasked masked(c, &compressed), dense(c, nullptr);

  // The two start alike and must stay alike: losses of five steps, to what roundings in float32 can do to them.
  double error = 0;
  for (std::int64_t s = 0; s < 5; ++s) {
    const auto batch = data.of_step(s);
    const double a = compressed.step(batch).item<double>(), b = masked.step(batch).item<double>();
    error = std::max(error, std::abs(a - b) / (1e-4 * std::max(1.0, std::abs(b))));
  }
  ESPALIER_CHECK(
      error <= 1, ErrorKind::check,
      "bench step: the losses of sparse and masked training differ by {:.3g} of what rounding explains; nothing "
      "was timed",
      error);

  std::int64_t step = 0;
  const auto next = [&] { return data.of_step(step++); };
  const auto t = measure(
      {{"", [&] { compressed.step(next()); }}, {"", [&] { masked.step(next()); }}, {"", [&] { dense.step(next()); }}},
      seconds / 3);
  std::uint64_t changes = 0;
  const auto topology = [&] {
    ++changes;
    for (const auto& w : compressed.sparsifier->weights()) {
      w->follow([&](const TopologyChange& change) {
        for_each_state(*compressed.optim, w->parameter(),
                       [&](const std::string&, at::Tensor& state) { w->reindex_state(state, change); });
      });
      rewire(*w, 0.3, RandomStream(seed, Purpose::topology, static_cast<std::uint64_t>(w->layer()), changes));
      w->follow({});
    }
  };
  Row row;
  row.level = "step";
  row.what = "mlp";
  row.shape = fmt::format("{}", fmt::join(c.widths, "-"));
  row.pass = "step";
  row.isa = kernels::active().isa;
  row.batch = c.batch;
  row.sparsity = c.sparsity;
  row.threads = c.threads;
  row.sparse = t[0];
  row.dense_us = t[1].median;
  row.dense_path = "LibTorch masked";
  row.peers = {{"LibTorch masked", t[1].median}, {"LibTorch dense", t[2].median}};
  row.error = error;
  // The first layer forms no input gradient.
  double products = 0, dense_products = 0;
  for (std::size_t l = 0; l < compressed.sparsifier->weights().size(); ++l) {
    const auto& w = compressed.sparsifier->weights()[l];
    products += (l == 0 ? 2.0 : 3.0) * static_cast<double>(w->nnz());
    dense_products += (l == 0 ? 2.0 : 3.0) * static_cast<double>(w->numel());
  }
  row.sparse_gflops = 2e-3 * products * static_cast<double>(c.batch) / row.sparse.median;
  row.dense_equivalent_gflops = 2e-3 * dense_products * static_cast<double>(c.batch) / row.sparse.median;
  std::vector<Row> rows = {row};
  if (c.rewire_every > 0) {
    const Timing change = measure({{"", topology}}, seconds / 3)[0];
    Row topology_row = row;
    topology_row.pass = "rewire";
    topology_row.sparse = change;
    topology_row.dense_us = 0;
    topology_row.dense_path.clear();
    topology_row.peers.clear();
    topology_row.sparse_gflops = topology_row.dense_equivalent_gflops = 0;
    Row both = row;
    both.pass = "step with rewiring";
    const double share = change.median / static_cast<double>(c.rewire_every);
    both.sparse.median += share;
    both.sparse.low += share;
    both.sparse.high += share;
    rows.push_back(topology_row);
    rows.push_back(both);
  }
  return rows;
}

}  // namespace espalier::bench
