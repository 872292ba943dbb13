/// A step of an optimiser on a weight in one pass (kernels/update.h), in place of torch's several and psi's two.
#pragma once

#include <torch/optim/optimizer.h>

#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// Does what `weight.pull(decay)`, the optimiser's step on weight.parameter() and `weight.settle()` do, if it can: for
/// SGD, Adam and AdamW as they are in torch, where SparseWeight::one_pass allows it. The optimiser's own state
/// is used, so the two ways may alternate. False, and nothing done, otherwise, or where there is no gradient. What is
/// left for torch's step is nothing: the gradient is consumed.
bool fused_update(torch::optim::Optimizer& optimizer, SparseWeight& weight, double decay);

/// The same for a parameter as it is, a bias or what batch norm learns: torch's several operations on a few numbers
/// take more time than a pass over them.
bool fused_update(torch::optim::Optimizer& optimizer, at::Tensor parameter);

}  // namespace espalier
