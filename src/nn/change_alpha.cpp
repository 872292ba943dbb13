#include "nn/change_alpha.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Powers that a thread takes at least.
constexpr std::int64_t kPowers = 8192;

/// One entry: |phi'| from |w| where w has all its digits, so that any number of changes in a row is no worse than one;
/// from |phi| where w is masked, or too small to have them.
template <class T>
void change(T& phi, T w, double from, double to, T& factor) {
  if (phi == 0) {
    factor = 0;
    return;
  }
  const double before = std::abs(static_cast<double>(phi)), weight = std::abs(static_cast<double>(w));
  const bool whole = weight >= static_cast<double>(std::numeric_limits<T>::min());
  const double after = whole ? std::pow(weight, 1 / to) : std::pow(before, from / to);
  // phi = phi'^(to / from), so dphi / dphi' = (to / from) phi / phi'.
  const double slope = to / from * before / after;
  factor = static_cast<T>(std::isfinite(slope) ? slope : 0);
  phi = static_cast<T>(std::copysign(after, static_cast<double>(phi)));
}

}  // namespace

at::Tensor change_alpha(at::Tensor& phi, const at::Tensor& w, double alpha, Reparametrisation& psi,
                        const std::string& name) {
  ESPALIER_CHECK(!psi.is_identity() && alpha > 1, ErrorKind::usage,
                 "{}: alpha from {} to {}; alpha can change while both are above 1 (1 is the plain network, in which "
                 "phi is the weight itself)",
                 name, psi.alpha(), alpha);
  const double from = psi.alpha();
  psi = Reparametrisation(alpha, psi.update());  // refuses what is not finite, before anything has changed
  at::Tensor factor = torch::empty_like(phi, torch::TensorOptions().requires_grad(false));
  ESPALIER_ASSERT(phi.is_contiguous() && w.is_contiguous() && w.numel() == phi.numel());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* const values = phi.data_ptr<T>();
    const T* const weights = w.data_ptr<T>();
    T* const factors = factor.data_ptr<T>();
    at::parallel_for(0, phi.numel(), kPowers, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) change(values[i], weights[i], from, alpha, factors[i]);
    });
  };
  if (phi.scalar_type() == at::kFloat)
    run(float{});
  else
    run(double{});
  return factor;
}

}  // namespace espalier
