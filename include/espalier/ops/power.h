/// The element-wise kernels of masked training on tensors: contiguous, float32 or float64, CPU, all of one shape; masks
/// have one bit for each element. Work is split over at::get_num_threads() threads; the bits do not depend on their
/// number. These run outside autograd, between backward and the next forward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/core/bitmask.h"

namespace espalier::ops {

/// w = psi(phi) . forward, psi(phi) = phi |phi|^(alpha-1). Where `power` is defined it receives |phi|^(alpha-1).
void power_push(const at::Tensor& phi, const BitMask& forward, double alpha, at::Tensor& w, at::Tensor& power);

/// gradient = ((gradient + decay psi(phi)) . backward) . alpha |phi|^(alpha-1), in place. Where `power` is defined it
/// holds |phi|^(alpha-1) of this phi, and saves forming it.
void power_pull(const at::Tensor& phi, const at::Tensor& power, const BitMask& backward, double alpha, double decay,
                at::Tensor& gradient);

/// An optimiser has moved w from psi(phi) . forward to a target. On backward: phi += (w - psi(phi) . forward) . alpha
/// |phi|^(alpha-1); then w = psi(phi) . forward.
void power_target(at::Tensor& phi, const BitMask& forward, const BitMask& backward, double alpha, at::Tensor& w);

/// x stays where the mask is set; elsewhere it becomes `otherwise`, or 0 where that is undefined.
void keep(at::Tensor& x, const BitMask& mask, const at::Tensor& otherwise);

/// True where forming |phi|^(alpha-1) costs so much that a push should leave it for the next pull.
bool power_is_costly(double alpha);

}  // namespace espalier::ops
