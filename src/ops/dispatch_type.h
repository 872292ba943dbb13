// From the type of a tensor to a C++ type; private to ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/core/error.h"

namespace espalier::ops {

/// f(T{}) with T the C++ type of `tensor`, float or double.
template <class F>
void with_type(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kFloat) return f(float{});
  if (tensor.scalar_type() == at::kDouble) return f(double{});
  fail(ErrorKind::usage, "sparse layers take float32 and float64; found {}", c10::toString(tensor.scalar_type()));
}

}  // namespace espalier::ops
