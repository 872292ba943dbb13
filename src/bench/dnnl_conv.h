// Dense convolution by oneDNN, each product in the layouts that it likes best. Private to bench/.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "espalier/bench/bench.h"

namespace espalier::bench {

/// A product that is ready to run: operands and result stand in oneDNN's own layouts, which costs it nothing when it
/// runs. Empty where oneDNN has none.
struct DnnlProduct {
  std::function<void()> run;
  std::function<at::Tensor()> result;  ///< in LibTorch's layout
  explicit operator bool() const { return static_cast<bool>(run); }
};

struct DnnlConv {
  /// x [N, in, H, W], w [out, in / groups, kh, kw], dy [N, out, H', W'], all float32.
  DnnlConv(const kernels::ConvShape& shape, const at::Tensor& x, const at::Tensor& w, const at::Tensor& dy);
  DnnlProduct forward, backward_data, backward_weights;  ///< direct
  DnnlProduct winograd;                                  ///< forward; 3x3 with stride 1, on some processors
};

}  // namespace espalier::bench
