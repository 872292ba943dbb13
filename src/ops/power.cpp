#include "espalier/ops/power.h"

#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"

namespace espalier::ops {
namespace {

/// Mask words (64 elements) that a thread takes at least: enough work to outweigh waking it.
constexpr std::int64_t kMaskWords = 256;

void check(const at::Tensor& tensor, const at::Tensor& like, const BitMask& mask, const char* what) {
  ESPALIER_CHECK(tensor.device().is_cpu() && tensor.is_contiguous(), ErrorKind::usage,
                 "{} must be a contiguous tensor on the CPU", what);
  ESPALIER_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, ErrorKind::usage,
                 "{} must be float32 or float64; found {}", what, c10::toString(tensor.scalar_type()));
  ESPALIER_CHECK(tensor.scalar_type() == like.scalar_type() && tensor.sizes() == like.sizes(), ErrorKind::usage,
                 "{} must have the type and shape of the weight", what);
  ESPALIER_CHECK(mask.size() == tensor.numel(), ErrorKind::usage, "mask of {} positions for a weight of {}",
                 mask.size(), tensor.numel());
}

/// f(kernels of the type, T{}, begin, end) over the elements, in parallel, split at mask words.
template <class F>
void split(const at::Tensor& tensor, const F& f) {
  const std::int64_t n = tensor.numel();
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().power<T>();
    at::parallel_for(0, (n + 63) / 64, kMaskWords,
                     [&](std::int64_t first, std::int64_t last) { f(k, zero, first * 64, std::min(n, last * 64)); });
  };
  if (tensor.scalar_type() == at::kFloat)
    run(float{});
  else
    run(double{});
}

}  // namespace

void power_push(const at::Tensor& phi, const BitMask& forward, double alpha, at::Tensor& w, at::Tensor& power) {
  check(phi, phi, forward, "phi");
  check(w, phi, forward, "w");
  split(phi, [&](const auto& k, auto zero, std::int64_t begin, std::int64_t end) {
    using T = decltype(zero);
    if (power.defined()) {
      k.push_keeping_power(phi.data_ptr<T>(), forward.words_or_null(), alpha, w.data_ptr<T>(), power.data_ptr<T>(),
                           begin, end);
    } else {
      k.push(phi.data_ptr<T>(), forward.words_or_null(), alpha, w.data_ptr<T>(), begin, end);
    }
  });
}

void power_pull(const at::Tensor& phi, const at::Tensor& power, const BitMask& backward, double alpha, double decay,
                at::Tensor& gradient) {
  check(phi, phi, backward, "phi");
  check(gradient, phi, backward, "gradient");
  split(phi, [&](const auto& k, auto zero, std::int64_t begin, std::int64_t end) {
    using T = decltype(zero);
    if (power.defined()) {
      k.pull_with_power(phi.data_ptr<T>(), power.data_ptr<T>(), backward.words_or_null(), alpha, decay,
                        gradient.data_ptr<T>(), begin, end);
    } else {
      k.pull(phi.data_ptr<T>(), backward.words_or_null(), alpha, decay, gradient.data_ptr<T>(), begin, end);
    }
  });
}

void power_target(at::Tensor& phi, const BitMask& forward, const BitMask& backward, double alpha, at::Tensor& w) {
  check(phi, phi, forward, "phi");
  check(w, phi, backward, "w");
  split(phi, [&](const auto& k, auto zero, std::int64_t begin, std::int64_t end) {
    using T = decltype(zero);
    k.target(phi.data_ptr<T>(), forward.words_or_null(), backward.words_or_null(), alpha, w.data_ptr<T>(), begin, end);
  });
}

void keep(at::Tensor& x, const BitMask& mask, const at::Tensor& otherwise) {
  check(x, x, mask, "x");
  if (otherwise.defined()) check(otherwise, x, mask, "otherwise");
  split(x, [&](const auto& k, auto zero, std::int64_t begin, std::int64_t end) {
    using T = decltype(zero);
    k.keep(x.data_ptr<T>(), mask.words_or_null(), otherwise.defined() ? otherwise.data_ptr<T>() : nullptr, begin, end);
  });
}

bool power_is_costly(double alpha) { return kernels::PowerKernels<float>::costly(alpha); }

}  // namespace espalier::ops
