#include "espalier/continual/evaluate.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <optional>

#include "espalier/core/error.h"
#include "espalier/train/environment.h"

namespace espalier::continual {
namespace {

/// f(batch number) for every batch, several at a time, each on one thread.
void each_batch(nn::Network& network, const data::Loader& batches,
                const std::function<void(std::int64_t, const data::Batch&, const at::Tensor& logits)>& f) {
  const bool training = network.is_training();
  network.eval();
  // Inside a parallel region everything is serial; a single batch would not be in one.
  std::optional<OneThread> alone;
  if (batches.batches_per_epoch() < 2) alone.emplace();
  at::parallel_for(0, batches.batches_per_epoch(), 1, [&](std::int64_t begin, std::int64_t end) {
    const torch::NoGradGuard no_grad;  // a thread's own
    for (std::int64_t b = begin; b < end; ++b) {
      const data::Batch batch = batches.batch(0, b);
      f(b, batch, network.forward(batch.images));
    }
  });
  network.train(training);
}

}  // namespace

at::Tensor logits_of(nn::Network& network, const data::Loader& batches) {
  std::vector<at::Tensor> parts(static_cast<std::size_t>(batches.batches_per_epoch()));
  each_batch(network, batches, [&](std::int64_t b, const data::Batch&, const at::Tensor& logits) {
    parts[static_cast<std::size_t>(b)] = logits;
  });
  return torch::cat(parts);
}

train::Evaluation evaluate(nn::Network& network, const data::Loader& batches) {
  std::vector<train::Evaluation> parts(static_cast<std::size_t>(batches.batches_per_epoch()));
  each_batch(network, batches, [&](std::int64_t b, const data::Batch& batch, const at::Tensor& logits) {
    train::Evaluation& part = parts[static_cast<std::size_t>(b)];
    part.samples = batch.size();
    part.correct = logits.argmax(1).eq(batch.labels).sum().item<std::int64_t>();
    part.loss_sum =
        torch::nll_loss(logits.to(torch::kDouble).log_softmax(1), batch.labels, {}, at::Reduction::Sum).item<double>();
  });
  train::Evaluation sum;
  for (const train::Evaluation& part : parts) {
    sum.samples += part.samples;
    sum.correct += part.correct;
    sum.loss_sum += part.loss_sum;
  }
  return sum;
}

std::vector<Inference> infer_tasks(const Pack& pack, const std::vector<const data::Loader*>& tests, bool same_labels) {
  ESPALIER_CHECK(!pack.tasks.empty(), ErrorKind::usage, "the packed network has no task yet to tell apart");
  struct Best {
    at::Tensor entropy, task, label;
  };
  std::vector<Best> best(tests.size());
  for (std::size_t k = 0; k < pack.tasks.size(); ++k) {  // each network is made once
    const auto network = task_network(pack, static_cast<std::int64_t>(k) + 1);
    for (std::size_t j = 0; j < tests.size(); ++j) {
      const at::Tensor log_p = logits_of(*network, *tests[j]).to(torch::kDouble).log_softmax(1);
      const at::Tensor entropy = -(log_p.exp() * log_p).nan_to_num(0).sum(1), label = log_p.argmax(1);
      if (k == 0) {
        best[j] = {entropy, torch::zeros_like(label), label};
        continue;
      }
      const at::Tensor lower = entropy.lt(best[j].entropy);
      best[j].entropy = torch::where(lower, entropy, best[j].entropy);
      best[j].task.masked_fill_(lower, static_cast<std::int64_t>(k));
      best[j].label = torch::where(lower, label, best[j].label);
    }
  }
  std::vector<Inference> found(tests.size());
  for (std::size_t j = 0; j < tests.size(); ++j) {
    std::vector<at::Tensor> labels;
    for (std::int64_t b = 0; b < tests[j]->batches_per_epoch(); ++b) labels.push_back(tests[j]->batch(0, b).labels);
    const at::Tensor right_task = best[j].task.eq(static_cast<std::int64_t>(j));
    at::Tensor right = best[j].label.eq(torch::cat(labels));
    if (!same_labels) right = right.logical_and(right_task);
    found[j].samples = right.numel();
    found[j].task_right = right_task.sum().item<std::int64_t>();
    found[j].label_right = right.sum().item<std::int64_t>();
  }
  return found;
}

}  // namespace espalier::continual
