#include "espalier/nn/reparametrisation.h"

#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"

namespace espalier {

Reparametrisation::Reparametrisation(double alpha, Update update) : alpha_(alpha), update_(update) {
  ESPALIER_CHECK(std::isfinite(alpha) && alpha >= 1, ErrorKind::usage,
                 "powerprop: alpha = {}; expected a finite number of at least 1 (1 is the plain network)", alpha);
}

at::Tensor Reparametrisation::psi(const at::Tensor& phi) const {
  return is_identity() ? phi : phi * phi.abs().pow(alpha_ - 1);
}

at::Tensor Reparametrisation::derivative(const at::Tensor& phi) const {
  return is_identity() ? torch::ones_like(phi) : phi.abs().pow(alpha_ - 1) * alpha_;
}

at::Tensor Reparametrisation::inverse(const at::Tensor& w) const {
  return is_identity() ? w : w.sign() * w.abs().pow(1 / alpha_);
}

}  // namespace espalier
