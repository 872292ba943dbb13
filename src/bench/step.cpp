#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "bench/rows.h"
#include "bench/training.h"
#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"

namespace espalier::bench {
namespace {

/// What research code does with LibTorch: a float mask times gradients before the step and weights after it.
struct TorchMasked {
  TorchMasked(const StepCase& c, const Task& task, const Training* same_as) {
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
    optim = make_optimizer(task, net->parameters());
  }
  at::Tensor step(const Batch& batch) {
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
  Task task = mlp_task(c.widths);
  task.batch = c.batch;
  task.optimizer = c.optimizer;
  task.seed = seed;
  const Samples samples(task);
  Training compressed(task, "compressed", c.sparsity);
  TorchMasked masked(c, task, &compressed), dense(c, task, nullptr);

  // The two start alike and must stay alike: losses of five steps, to what roundings in float32 can do to them.
  double error = 0;
  for (std::int64_t s = 0; s < 5; ++s) {
    const auto batch = samples.of_step(s);
    const double a = compressed.step(batch).item<double>(), b = masked.step(batch).item<double>();
    error = std::max(error, std::abs(a - b) / (1e-4 * std::max(1.0, std::abs(b))));
  }
  ESPALIER_CHECK(
      error <= 1, ErrorKind::check,
      "bench step: the losses of sparse and masked training differ by {:.3g} of what rounding explains; nothing "
      "was timed",
      error);

  std::int64_t step = 0;
  const auto next = [&] { return samples.of_step(step++); };
  const auto t = measure(
      {{"", [&] { compressed.step(next()); }}, {"", [&] { masked.step(next()); }}, {"", [&] { dense.step(next()); }}},
      seconds / 3, kStepTurn);
  Row row;
  row.level = "step";
  row.what = "mlp";
  row.shape = fmt::format("{}", fmt::join(c.widths, "-"));
  row.pass = "step";
  row.isa = kernels::active().isa;
  row.batch = c.batch;
  row.sparsity = c.sparsity;
  row.threads = c.threads;
  row.error = error;
  const auto work = static_cast<double>(c.batch);
  add_sparse(row, t[0], work * compressed.stored_products().step, work * compressed.all_products().step);
  add_dense(row, {{"LibTorch masked", t[1].median}});
  add_beside(row, {"LibTorch dense", t[2].median});
  std::vector<Row> rows = {row};
  if (c.rewire_every > 0) {
    for (Row& r : rewiring_rows(row, compressed, c.rewire_every, seconds / 3)) rows.push_back(std::move(r));
  }
  return rows;
}

}  // namespace espalier::bench
