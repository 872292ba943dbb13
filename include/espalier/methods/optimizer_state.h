/// What a torch optimiser remembers of a parameter (momentum, moments), by name: to re-index it when a topology
/// changes, to save and to restore it. Knows SGD, Adam, AdamW, RMSprop and Adagrad; the state of any other is an error,
/// not a guess.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/nn/sparse_weight.h"

namespace espalier {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// visit(name, tensor) for each element-wise state tensor that the optimiser holds for `parameter` (none before its
/// first step).
void for_each_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter,
                    const std::function<void(const std::string&, at::Tensor&)>& visit);

/// Every state tensor as "<parameter>.<state>" and every step count as "<parameter>.step" (int64 scalar).
NamedTensors save_optimizer(torch::optim::Optimizer& optimizer, const NamedParameters& parameters);

/// The inverse; the optimiser must be of the kind and over the parameters that were saved.
void load_optimizer(torch::optim::Optimizer& optimizer, const NamedParameters& parameters, const NamedTensors& saved);

}  // namespace espalier
