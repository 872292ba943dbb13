/// max(0, x) of each entry, in any layout. torch::relu forms the gradient in new memory; here it is written over the
/// one that arrives where nobody else holds that: memory is what bounds this.
#pragma once

#include <ATen/core/Tensor.h>

namespace espalier::ops {

/// Differentiable any number of times; NaN stays NaN.
at::Tensor relu(const at::Tensor& x);

/// The same, written over x: for a tensor that nobody else holds and that no backward pass needs.
at::Tensor relu_over(at::Tensor x);

}  // namespace espalier::ops
