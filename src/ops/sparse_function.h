// What the autograd functions of sparse layers have in common; private to ops/.
#pragma once

#include <torch/csrc/autograd/functions/basic_ops.h>

#include <memory>
#include <string>

#include "espalier/core/error.h"

namespace espalier::ops {

/// Multiply-adds a thread must get to be worth waking.
constexpr std::int64_t kWorthAThread = 200'000;

/// Throws Error(usage) unless `bias` is undefined or one number for each output, of the type of x.
inline void check_bias(const at::Tensor& bias, const at::Tensor& x, std::int64_t outputs, const char* layer) {
  ESPALIER_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == outputs && bias.device().is_cpu() &&
                                     bias.scalar_type() == x.scalar_type()),
                 ErrorKind::usage, "{}: the bias is {} [{}] on {}; expected {} [{}] on the CPU", layer,
                 c10::toString(bias.scalar_type()), fmt::join(bias.sizes(), ", "), bias.device().str(),
                 c10::toString(x.scalar_type()), outputs);
}

/// May an argument of Function::backward be written over? Where nobody but autograd holds it, which does so twice
/// around that function, whose argument is the third.
inline bool may_overwrite(const at::Tensor& gradient) {
  return gradient.use_count() <= 3 && gradient.storage().use_count() == 1 && gradient.is_contiguous() &&
         !at::GradMode::is_enabled();
}

/// The gradient of another use, to be added to in place: itself where it may be overwritten, else a copy.
inline at::Tensor to_add_to(const at::Tensor& other) {
  return may_overwrite(other) ? other : other.clone(at::MemoryFormat::Contiguous);
}

/// Gradients formed outside autograd: differentiating them once more is an error and not a silent zero.
inline torch::autograd::variable_list differentiable_once(torch::autograd::variable_list gradients, const char* what,
                                                          const char* instead = "a dense layer") {
  if (!at::GradMode::is_enabled()) return gradients;
  for (at::Tensor& gradient : gradients) {
    if (gradient.defined()) gradient.requires_grad_();  // what DelayedError goes by
  }
  const auto refuse = std::make_shared<torch::autograd::DelayedError>(
      std::string(what) + ": differentiable once; second derivatives need " + instead,
      static_cast<int>(gradients.size()));
  return (*refuse)(std::move(gradients));
}

}  // namespace espalier::ops
