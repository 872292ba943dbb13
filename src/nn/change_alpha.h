// Powerpropagation with another exponent on the same weights; private to nn/.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/nn/reparametrisation.h"

namespace espalier {

/// phi, in place, becomes phi' with psi'(phi') = psi(phi); `psi` becomes psi'. w: psi(phi), or 0 where it is masked;
/// all of one shape. Returns dphi / dphi', 0 where phi is 0. Throws Error(usage) unless both exponents are above 1.
at::Tensor change_alpha(at::Tensor& phi, const at::Tensor& w, double alpha, Reparametrisation& psi,
                        const std::string& name);

}  // namespace espalier
