#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>

#include "bench/rows.h"
#include "bench/training.h"
#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"

namespace espalier::bench {
namespace {

constexpr double kSlack = 16;  // see bench.h
constexpr std::int64_t kClasses = 10;

Task task_of(const ModelCase& c, std::uint64_t seed) {
  Task task;
  if (c.model == "mlp") {
    ESPALIER_CHECK(c.widths.size() >= 2, ErrorKind::usage, "bench model: {} widths; expected inputs, layers, classes",
                   c.widths.size());
    task = mlp_task(c.widths);
  } else {
    task.model.name = c.model;
    task.input = {c.image[0], c.image[1], c.image[2]};
    task.classes = kClasses;
  }
  task.batch = c.batch;
  task.optimizer = c.optimizer;
  task.seed = seed;
  return task;
}

/// The dense network under LibTorch alone, images and weights in channels_last.
struct ChannelsLast {
  explicit ChannelsLast(const Task& task) {
    nn::ModelOptions options = task.model;
    options.storage = "masked";
    net = nn::make_model(options, task.input, task.classes, task.seed);
    for (at::Tensor& p : net->parameters()) {
      if (p.dim() == 4) p.set_data(p.detach().contiguous(torch::MemoryFormat::ChannelsLast));
    }
    optim = make_optimizer(task, net->parameters());
  }
  at::Tensor logits(const at::Tensor& images) {
    return net->forward(images.contiguous(torch::MemoryFormat::ChannelsLast));
  }
  void step(const Batch& batch) {
    for (at::Tensor& p : net->parameters()) p.mutable_grad() = at::Tensor();
    torch::cross_entropy_loss(logits(batch.first), batch.second).backward();
    optim->step();
  }
  std::shared_ptr<nn::Network> net;
  std::unique_ptr<torch::optim::Optimizer> optim;
};

at::Tensor logits(Training& training, const at::Tensor& images) {
  const torch::NoGradGuard no_grad;
  return training.net->forward(images).to(torch::kDouble);
}

/// What a step does to the kept weights of all layers.
at::Tensor change_of_weights(Training& training, const Batch& batch) {
  const auto weights = [&] {
    std::vector<at::Tensor> each;
    for (const auto& w : training.sparsifier->weights()) each.push_back(w->weights().detach().to(torch::kDouble));
    return torch::cat(each);
  };
  const at::Tensor before = weights();
  training.step(batch);
  return weights() - before;
}

/// How far `found` is off, as a share of what it may be when `masked` is what masked storage gives in float32.
double error_beside(const at::Tensor& found, const at::Tensor& masked, const at::Tensor& exact) {
  const double scale = exact.norm().item<double>();
  const double own = (masked - exact).norm().item<double>();
  return (found - exact).norm().item<double>() / (kSlack * std::max(own, 0x1p-24 * scale));
}

template <class Net>
std::function<void()> inference(Net& net, const at::Tensor& images) {
  return [&net, images] {
    const torch::NoGradGuard no_grad;
    net.forward(images);
  };
}

}  // namespace

std::vector<Row> bench_model(const ModelCase& c, double seconds, std::uint64_t seed) {
  at::set_num_threads(c.threads);
  const Task task = task_of(c, seed);
  const Samples samples(task);
  const Batch batch = samples.of_step(0);
  Training compressed(task, "compressed", c.sparsity), masked(task, "masked", c.sparsity), dense(task, "masked", 0);
  std::optional<ChannelsLast> channels_last;
  if (task.model.name != "mlp") channels_last.emplace(task);

  Row row;
  row.level = "model";
  row.what = c.model;
  row.shape = c.model == "mlp" ? fmt::format("{}", fmt::join(c.widths, "-")) : task.input.text();
  row.isa = kernels::active().isa;
  row.batch = c.batch;
  row.sparsity = c.sparsity;
  row.threads = c.threads;
  Row inference_row = row, step_row = row;
  inference_row.pass = "inference";
  step_row.pass = "step";
  const auto all_to_training_mode = [&](bool on) {
    for (const auto& net : {compressed.net, masked.net, dense.net}) net->train(on);
    if (channels_last) channels_last->net->train(on);
  };
  {
    Training exact(task, "masked", c.sparsity, torch::kDouble);
    const Batch exact_batch = {batch.first.to(torch::kDouble), batch.second};
    if (c.inference) {
      all_to_training_mode(false);
      exact.net->eval();
      verified(inference_row, error_beside(logits(compressed, batch.first), logits(masked, batch.first),
                                           logits(exact, exact_batch.first)));
    }
    if (c.step) {
      all_to_training_mode(true);
      exact.net->train();
      verified(step_row, error_beside(change_of_weights(compressed, batch), change_of_weights(masked, batch),
                                      change_of_weights(exact, exact_batch)));
    }
  }

  const double share = seconds / (channels_last ? 4 : 3) / (c.step && c.inference ? 2 : 1);
  const auto samples_in_a_batch = static_cast<double>(c.batch);
  const Training::Products stored = compressed.stored_products(), all = compressed.all_products();
  const auto peers = [&](Row& r, const std::vector<Timing>& t) {
    add_dense(r, {{"dense", t[2].median}});
    if (channels_last) add_dense(r, {{"LibTorch dense channels_last", t[3].median}});
    add_beside(r, {"masked", t[1].median});
  };
  std::vector<Row> rows;
  if (c.inference) {
    all_to_training_mode(false);
    std::vector<Candidate> candidates = {{"", inference(*compressed.net, batch.first)},
                                         {"", inference(*masked.net, batch.first)},
                                         {"", inference(*dense.net, batch.first)}};
    if (channels_last) {
      const at::Tensor images = batch.first.contiguous(torch::MemoryFormat::ChannelsLast);
      candidates.push_back({"", inference(*channels_last->net, images)});
    }
    const auto t = measure(candidates, share, kStepTurn);
    add_sparse(inference_row, t[0], samples_in_a_batch * stored.forward, samples_in_a_batch * all.forward);
    peers(inference_row, t);
    rows.push_back(inference_row);
  }
  if (c.step) {
    all_to_training_mode(true);
    std::int64_t step = 0;
    const auto next = [&] { return samples.of_step(step++); };
    std::vector<Candidate> candidates = {
        {"", [&] { compressed.step(next()); }}, {"", [&] { masked.step(next()); }}, {"", [&] { dense.step(next()); }}};
    if (channels_last) candidates.push_back({"", [&] { channels_last->step(next()); }});
    const auto t = measure(candidates, share, kStepTurn);
    add_sparse(step_row, t[0], samples_in_a_batch * stored.step, samples_in_a_batch * all.step);
    peers(step_row, t);
    rows.push_back(step_row);
    if (c.rewire_every > 0) {
      for (Row& r : rewiring_rows(step_row, compressed, c.rewire_every, share)) rows.push_back(std::move(r));
    }
  }
  return rows;
}

}  // namespace espalier::bench
