#include "espalier/methods/fused_update.h"

#include <torch/torch.h>

#include <cmath>
#include <typeinfo>

#include "espalier/methods/optimizer_state.h"
#include "espalier/ops/update.h"

namespace espalier {
namespace {

using namespace torch::optim;

OptimizerParamGroup* group_of(Optimizer& optimizer, const at::Tensor& parameter) {
  for (auto& group : optimizer.param_groups())
    for (const auto& p : group.params())
      if (p.is_same(parameter)) return &group;
  return nullptr;
}

/// The moment as a contiguous tensor like the parameter, zeros where there is none yet.
at::Tensor& ready(at::Tensor& moment, const at::Tensor& parameter) {
  if (!moment.defined()) moment = torch::zeros_like(parameter.detach());
  if (!moment.is_contiguous()) moment = moment.contiguous();
  return moment;
}

/// The optimiser's step on `tensors`, whose phi is the parameter; false, and nothing done, if it is not known.
bool step(Optimizer& optimizer, ops::UpdateTensors tensors) {
  // Exactly these classes: one derived from them may do something else.
  const bool is_sgd = typeid(optimizer) == typeid(SGD), is_adam = typeid(optimizer) == typeid(Adam),
             is_adamw = typeid(optimizer) == typeid(AdamW);
  if (!is_sgd && !is_adam && !is_adamw) return false;
  const at::Tensor parameter = tensors.phi;
  OptimizerParamGroup* group = group_of(optimizer, parameter);
  if (group == nullptr) return false;
  if (is_sgd) {
    const auto& o = static_cast<SGDOptions&>(group->options());
    ops::SgdRule rule{o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov(), false};
    if (o.momentum() != 0) {
      auto& state = state_of<SGDParamState>(optimizer, parameter);
      rule.first_step = !state.momentum_buffer().defined();
      tensors.first = ready(state.momentum_buffer(), parameter);
    }
    ops::update(tensors, rule);
  } else {
    const auto adam = [&](const auto& o, auto& state) {
      state.step(state.step() + 1);
      const auto steps = static_cast<double>(state.step());
      tensors.first = ready(state.exp_avg(), parameter);
      tensors.second = ready(state.exp_avg_sq(), parameter);
      const auto [beta1, beta2] = o.betas();
      ops::update(tensors, ops::AdamRule{o.lr(), beta1, beta2, o.eps(), o.weight_decay(), 1 - std::pow(beta1, steps),
                                         1 - std::pow(beta2, steps), is_adamw});
    };
    if (is_adam) {
      const auto& o = static_cast<AdamOptions&>(group->options());
      if (o.amsgrad()) return false;
      adam(o, state_of<AdamParamState>(optimizer, parameter));
    } else {
      const auto& o = static_cast<AdamWOptions&>(group->options());
      if (o.amsgrad()) return false;
      adam(o, state_of<AdamWParamState>(optimizer, parameter));
    }
  }
  return true;
}

}  // namespace

bool fused_update(Optimizer& optimizer, SparseWeight& weight, double decay) {
  const torch::NoGradGuard no_grad;
  const auto pass = weight.one_pass();
  if (!pass ||
      !step(optimizer,
            {pass->phi, pass->w, pass->gradient, {}, {}, pass->power, weight.reparametrisation().alpha(), decay})) {
    return false;
  }
  weight.one_pass_done();
  return true;
}

bool fused_update(Optimizer& optimizer, at::Tensor parameter) {
  const torch::NoGradGuard no_grad;
  const at::Tensor& gradient = parameter.grad();
  const bool known = gradient.defined() && gradient.layout() == at::kStrided && parameter.is_contiguous() &&
                     parameter.device().is_cpu() && gradient.scalar_type() == parameter.scalar_type() &&
                     (parameter.scalar_type() == at::kFloat || parameter.scalar_type() == at::kDouble);
  if (!known || !step(optimizer, {parameter, {}, gradient.contiguous(), {}, {}, {}})) return false;
  torch::autograd::impl::bump_version(parameter);  // as torch's own operations in place do
  parameter.mutable_grad() = at::Tensor();
  return true;
}

}  // namespace espalier
