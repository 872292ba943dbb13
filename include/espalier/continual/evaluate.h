/// Using a packed network: logits, accuracies, and which task an input belongs to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "espalier/continual/pack.h"
#include "espalier/data/loader.h"
#include "espalier/train/experiment.h"

namespace espalier::continual {

/// [N, classes], in evaluation mode. Each batch is computed by one thread, so the bits do not depend on their number.
at::Tensor logits_of(nn::Network& network, const data::Loader& batches);

/// By sums over samples, from logits_of.
train::Evaluation evaluate(nn::Network& network, const data::Loader& batches);

/// How well the lowest entropy of the softmax tells tasks apart.
struct Inference {
  std::int64_t samples = 0;
  std::int64_t task_right = 0;  ///< the task of lowest entropy is the one the sample comes from
  std::int64_t label_right =
      0;  ///< its label is right under that task; of a wrong task only where labels mean the same
  double task_accuracy() const { return share(task_right); }
  double accuracy() const { return share(label_right); }

 private:
  double share(std::int64_t count) const {
    return samples == 0 ? 0 : static_cast<double>(count) / static_cast<double>(samples);
  }
};
/// For each of these test sets (one a task of the pack), its samples by every task. Equal entropies: the lower task.
/// `same_labels`: whether a label means the same in every task (permuted and rotated data).
std::vector<Inference> infer_tasks(const Pack& pack, const std::vector<const data::Loader*>& tests, bool same_labels);

}  // namespace espalier::continual
