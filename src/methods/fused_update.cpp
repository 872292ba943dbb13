#include "espalier/methods/fused_update.h"

#include <torch/torch.h>

#include <cmath>
#include <typeinfo>

#include "espalier/kernels/dispatch.h"
#include "espalier/methods/optimizer_state.h"

namespace espalier {
namespace {

using namespace torch::optim;

/// Entries that a thread takes at least.
constexpr std::int64_t kGrain = 32768;

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

}  // namespace

bool fused_update(Optimizer& optimizer, SparseWeight& weight, double decay) {
  const torch::NoGradGuard no_grad;
  // Exactly these classes: one derived from them may do something else.
  const bool is_sgd = typeid(optimizer) == typeid(SGD), is_adam = typeid(optimizer) == typeid(Adam),
             is_adamw = typeid(optimizer) == typeid(AdamW);
  if (!is_sgd && !is_adam && !is_adamw) return false;
  const auto pass = weight.one_pass();
  if (!pass) return false;
  const at::Tensor parameter = pass->phi;
  OptimizerParamGroup* group = group_of(optimizer, parameter);
  if (group == nullptr) return false;

  const auto with_tensors = [&](at::Tensor first, at::Tensor second, const auto& step) {
    const auto as = [&](auto zero) {
      using T = decltype(zero);
      kernels::UpdateTensors<T> t;
      t.phi = parameter.data_ptr<T>();
      t.w = pass->w.data_ptr<T>();
      t.g = pass->gradient.data_ptr<T>();
      t.power = pass->power.defined() ? pass->power.data_ptr<T>() : nullptr;
      t.first = first.defined() ? first.data_ptr<T>() : nullptr;
      t.second = second.defined() ? second.data_ptr<T>() : nullptr;
      t.alpha = weight.reparametrisation().alpha();
      t.decay_w = decay;
      at::parallel_for(0, parameter.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
        step(kernels::active().update<T>(), t, begin, end);
      });
    };
    if (parameter.scalar_type() == at::kFloat)
      as(float{});
    else
      as(double{});
  };

  if (is_sgd) {
    const auto& o = static_cast<SGDOptions&>(group->options());
    kernels::SgdRule rule{o.lr(), o.momentum(), o.dampening(), o.weight_decay(), o.nesterov(), false};
    at::Tensor buffer;
    if (o.momentum() != 0) {
      auto& state = state_of<SGDParamState>(optimizer, parameter);
      rule.first_step = !state.momentum_buffer().defined();
      buffer = ready(state.momentum_buffer(), parameter);
    }
    with_tensors(buffer, {}, [&](const auto& k, const auto& t, std::int64_t begin, std::int64_t end) {
      k.sgd(t, rule, begin, end);
    });
  } else {
    const auto adam = [&](const auto& o, auto& state) {
      state.step(state.step() + 1);
      const auto steps = static_cast<double>(state.step());
      const kernels::AdamRule rule{o.lr(),
                                   std::get<0>(o.betas()),
                                   std::get<1>(o.betas()),
                                   o.eps(),
                                   o.weight_decay(),
                                   1 - std::pow(std::get<0>(o.betas()), steps),
                                   1 - std::pow(std::get<1>(o.betas()), steps),
                                   is_adamw};
      with_tensors(
          ready(state.exp_avg(), parameter), ready(state.exp_avg_sq(), parameter),
          [&](const auto& k, const auto& t, std::int64_t begin, std::int64_t end) { k.adam(t, rule, begin, end); });
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
  weight.one_pass_done();
  return true;
}

}  // namespace espalier
