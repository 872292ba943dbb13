/// w = psi(phi): how the trainable phi becomes the weight that a layer computes with.
///
/// Powerpropagation (Schwarz, Jayakumar, Pascanu, Latham, Teh, "Powerpropagation: A sparsity inducing weight
/// reparameterisation", NeurIPS 2021): psi(phi) = phi |phi|^(alpha-1), psi'(phi) = alpha |phi|^(alpha-1), alpha >= 1.
/// Large weights take large steps and small ones small steps, so training leaves many weights near zero. alpha = 1 is
/// the identity, and is treated as such: no copy, no cost, the plain network to the bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier {

/// How an optimiser's step reaches phi.
enum class Update {
  gradient,  ///< the optimiser is given phi and dL/dphi = dL/dw psi'(phi): the paper's main text and its notebook
  target,    ///< the optimiser is given w and dL/dw; phi moves by (its step in w) psi'(phi): the "virtual target"
};

class Reparametrisation {
 public:
  Reparametrisation() = default;  ///< the identity
  /// Throws Error(usage) unless alpha >= 1.
  explicit Reparametrisation(double alpha, Update update = Update::gradient);

  double alpha() const { return alpha_; }
  Update update() const { return update_; }
  bool is_identity() const { return alpha_ == 1; }

  at::Tensor psi(const at::Tensor& phi) const;         ///< phi |phi|^(alpha-1)
  at::Tensor derivative(const at::Tensor& phi) const;  ///< alpha |phi|^(alpha-1); 0 at phi = 0 for alpha > 1
  at::Tensor inverse(const at::Tensor& w) const;       ///< sign(w) |w|^(1/alpha)

 private:
  double alpha_ = 1;
  Update update_ = Update::gradient;
};

/// espalier::Powerprop(1.5) where a reparametrisation is asked for.
struct Powerprop : Reparametrisation {
  explicit Powerprop(double alpha, Update update = Update::gradient) : Reparametrisation(alpha, update) {}
};

}  // namespace espalier
