#include "espalier/ops/relu.h"

#include <torch/torch.h>

#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Relu : torch::autograd::Function<Relu> {
  static at::Tensor forward(AutogradContext* ctx, at::Tensor x, bool over_x) {
    at::Tensor y = over_x ? x.relu_() : at::relu(x);
    if (over_x) ctx->mark_dirty({x});
    ctx->save_for_backward({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const bool over_dy = may_overwrite(gradients[0]);
    at::Tensor dy = gradients[0];
    const at::Tensor y = ctx->get_saved_variables()[0];
    if (!over_dy) return {at::threshold_backward(dy, y, 0), {}};
    at::threshold_backward_out(dy, dy, y, 0);
    return {dy, {}};
  }
};

}  // namespace

at::Tensor relu(const at::Tensor& x) { return Relu::apply(x, false); }
at::Tensor relu_over(at::Tensor x) { return Relu::apply(x, true); }

}  // namespace espalier::ops
