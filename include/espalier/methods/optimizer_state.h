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

/// The parameter has other coordinates, in which a gradient is what it was times `factor` (one number an entry): each
/// state becomes what it would be had the gradients been given so, factor^k times itself where it is made of k-th
/// powers of them. RMSprop's momentum, of gradients divided by their size, stays.
void scale_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter, const at::Tensor& factor);

/// Every state tensor as "<parameter>.<state>" and every step count as "<parameter>.step" (int64 scalar).
NamedTensors save_optimizer(torch::optim::Optimizer& optimizer, const NamedParameters& parameters);

/// The inverse; the optimiser must be of the kind and over the parameters that were saved.
void load_optimizer(torch::optim::Optimizer& optimizer, const NamedParameters& parameters, const NamedTensors& saved);

/// The key of a parameter's state: the address of its TensorImpl, as text in torch 1.13 and as a pointer in 2.x.
template <class Map>
typename Map::key_type state_key(const Map&, const at::Tensor& parameter) {
  if constexpr (std::is_same_v<typename Map::key_type, std::string>) {
    return c10::guts::to_string(parameter.unsafeGetTensorImpl());
  } else {
    return parameter.unsafeGetTensorImpl();
  }
}

/// The state of `parameter`, made if there is none; the optimiser must be of the kind that keeps a State.
template <class State>
State& state_of(torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  auto& all = optimizer.state();
  auto& state = all[state_key(all, parameter)];
  if (!state) state = std::make_unique<State>();
  return static_cast<State&>(*state);
}

}  // namespace espalier
