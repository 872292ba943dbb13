/// One pass over the stored entries of a weight that does what would take four: the gradient of w becomes that of phi,
/// the optimiser steps, and w = psi(phi) is formed. The rules are torch.optim's, term for term.
#pragma once

#include <cstdint>

namespace espalier::kernels {

/// What happens around the optimiser; with alpha = 1, phi is w and `w` is not touched.
template <class T>
struct UpdateTensors {
  T* phi;      ///< the parameter
  T* w;        ///< psi(phi), written where alpha > 1
  const T* g;  ///< gradient of w
  T* first;    ///< momentum buffer, or the first moment
  T* second;   ///< the second moment (Adam)
  T* power;    ///< null, or |phi|^(alpha-1) of the phi before: read in place of computing it, and written anew
  double alpha = 1;
  double decay_w = 0;  ///< decay * w is added to the gradient of w
};

/// torch.optim.SGD: g += weight_decay phi; b = momentum b + (1 - dampening) g (b = g in the first step);
/// phi -= lr (nesterov ? g + momentum b : b). Without momentum `first` is not touched.
struct SgdRule {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, first_step;
};

/// torch.optim.Adam and AdamW (`decoupled`) without amsgrad, after the bias corrections 1 - beta^t.
struct AdamRule {
  double lr, beta1, beta2, eps, weight_decay;
  double correction1, correction2;
  bool decoupled;
};

template <class T>
struct UpdateKernels {
  void (*sgd)(const UpdateTensors<T>& tensors, const SgdRule& rule, std::int64_t begin, std::int64_t end);
  void (*adam)(const UpdateTensors<T>& tensors, const AdamRule& rule, std::int64_t begin, std::int64_t end);
};

}  // namespace espalier::kernels
