#include "espalier/ops/cross_entropy.h"

#include <torch/torch.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "ops/dispatch_type.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Logits that a thread takes at least.
constexpr std::int64_t kLogits = 16384;

/// The mean loss; the gradient too where it is defined.
at::Tensor mean_loss(const at::Tensor& logits, const at::Tensor& labels, double smoothing, at::Tensor& gradient) {
  const std::int64_t rows = logits.size(0), classes = logits.size(1);
  std::vector<double> loss(static_cast<std::size_t>(rows));
  with_type(logits, [&](auto zero) {
    using T = decltype(zero);
    T* const g = gradient.defined() ? gradient.data_ptr<T>() : nullptr;
    at::parallel_for(0, rows, std::max<std::int64_t>(1, kLogits / classes), [&](std::int64_t begin, std::int64_t end) {
      kernels::active().cross_entropy<T>().cross_entropy(logits.data_ptr<T>(), labels.data_ptr<std::int64_t>(), classes,
                                                         smoothing, 1 / static_cast<double>(rows), g, loss.data(),
                                                         begin, end);
    });
  });
  const double sum = std::accumulate(loss.begin(), loss.end(), 0.0);
  return torch::scalar_tensor(sum / static_cast<double>(rows), logits.options().requires_grad(false));
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& labels,
                            double smoothing) {
    at::Tensor gradient = at::empty(logits.sizes(), logits.options().requires_grad(false));
    at::Tensor loss = mean_loss(logits, labels, smoothing, gradient);
    ctx->save_for_backward({gradient});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const at::Tensor gradient = ctx->get_saved_variables()[0];
    const double factor = gradients[0].item<double>();
    return differentiable_once({factor == 1 ? gradient : gradient * factor, {}, {}}, "cross-entropy",
                               "torch::cross_entropy_loss");
  }
};

}  // namespace

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, double smoothing) {
  ESPALIER_CHECK(logits.dim() == 2 && logits.size(0) > 0 && logits.size(1) > 0, ErrorKind::usage,
                 "cross-entropy: logits of [{}]; expected [samples, classes], one of each at least",
                 fmt::join(logits.sizes(), ", "));
  ESPALIER_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0) && labels.scalar_type() == at::kLong,
                 ErrorKind::usage, "cross-entropy: labels are {} [{}]; expected {} [{}]",
                 c10::toString(labels.scalar_type()), fmt::join(labels.sizes(), ", "), c10::toString(at::kLong),
                 logits.size(0));
  ESPALIER_CHECK(smoothing >= 0 && smoothing <= 1, ErrorKind::usage, "cross-entropy: smoothing = {}; expected 0 to 1",
                 smoothing);
  const at::Tensor targets = labels.contiguous(), in = logits.contiguous();
  const auto* const first = targets.data_ptr<std::int64_t>();
  const auto [least, most] = std::minmax_element(first, first + targets.numel());
  ESPALIER_CHECK(*least >= 0 && *most < logits.size(1), ErrorKind::usage,
                 "cross-entropy: a label is {}; expected 0 to {}, one less than there are logits",
                 *least < 0 ? *least : *most, logits.size(1) - 1);
  if (at::GradMode::is_enabled() && in.requires_grad()) return CrossEntropy::apply(in, targets, smoothing);
  at::Tensor none;
  return mean_loss(in, targets, smoothing, none);
}

}  // namespace espalier::ops
