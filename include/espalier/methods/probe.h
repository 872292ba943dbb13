/// What a method may look at before training: the network as a function, batches, a loss. GraSP differentiates twice
/// and SynFlow changes weights, so the network is always a dense copy in masked storage, whatever is to be trained.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "espalier/nn/sparse_weight.h"
#include "espalier/nn/wiring.h"

namespace espalier {

struct ProbeNetwork {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor& inputs)> forward;  ///< [N, …] -> logits [N, classes]
};

struct ProbeBatch {
  at::Tensor inputs;  ///< [N, …]
  at::Tensor labels;  ///< [N] int64
};

struct Probe {
  /// A fresh copy with the weights of step 0, its parameters named as those of the model to be trained. The caller's to
  /// change.
  std::function<ProbeNetwork()> network;
  std::vector<std::int64_t> input;  ///< shape of one sample
  nn::Wiring wiring;
  std::string initializer;  ///< of nn/init.h, by which the weights were drawn; "" if unknown
  /// Batch `index` (0, 1, …) of the training data as they are, without augmentation: the same for the same seed.
  /// per_class = 0: a batch of training; else so many samples of each class. Empty where no data is at hand.
  std::function<ProbeBatch(std::int64_t per_class, std::int64_t index)> batch{};
  /// For the method `given`: the positions that it keeps of a weight, ascending.
  std::function<at::Tensor(const SparseWeight& weight)> structure{};
  /// Of a batch, in the mean over its samples; cross-entropy unless another is given.
  std::function<at::Tensor(const at::Tensor& logits, const at::Tensor& labels)> loss{};
};

}  // namespace espalier
