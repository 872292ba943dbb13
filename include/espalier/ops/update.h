/// An optimiser's step on a reparametrised weight in one pass (kernels/update.h), split over threads.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/kernels/update.h"

namespace espalier::ops {

using kernels::AdamRule;
using kernels::SgdRule;

/// The tensors of kernels::UpdateTensors: contiguous, of one size and type; undefined where the rule or alpha has no
/// use for one.
struct UpdateTensors {
  at::Tensor phi, w, gradient, first, second, power;
  double alpha = 1;
  double decay_w = 0;
};

void update(const UpdateTensors& tensors, const SgdRule& rule);
void update(const UpdateTensors& tensors, const AdamRule& rule);

}  // namespace espalier::ops
