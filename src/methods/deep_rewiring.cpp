#include "espalier/methods/deep_rewiring.h"

#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier {
namespace {

const std::string kPrefix = "method.sign.";

at::Tensor signs_of(const SparseWeight& weight) { return weight.weights().sign().to(torch::kChar); }

RandomStream stream(const MethodContext& context, Purpose purpose, const SparseWeight& weight) {
  return {context.seed, purpose, static_cast<std::uint64_t>(weight.layer()),
          static_cast<std::uint64_t>(context.clock.step)};
}

}  // namespace

void add_pull_and_noise(SparseWeight& weight, double l1, double temperature, const MethodContext& context) {
  const double noise = context.learning_rate > 0 ? std::sqrt(2 * temperature / context.learning_rate) : 0;
  at::Tensor added = weight.weights().sign().to(torch::kDouble).mul_(l1);
  if (noise > 0) {
    const RandomStream random = stream(context, Purpose::noise, weight);
    auto* value = added.data_ptr<double>();
    for (std::int64_t i = 0; i < added.numel(); ++i) {
      value[i] += noise * random.normal_at(static_cast<std::uint64_t>(i));
    }
  }
  weight.add_gradient(weight.active(), added);
}

void DeepRewiring::describe(Describe& d) {
  d("l1", l1_, "lambda_1: the pull of every connection towards zero, added to the loss as lambda_1 |w|", at_least(0));
  d("temperature", temperature_, "T: in each step plain SGD moves a connection by sqrt(2 lr T) N(0, 1) besides",
    at_least(0));
  DropAndGrow::describe(d);
}

void DeepRewiring::prepare(const MethodContext& context) {
  DropAndGrow::prepare(context);
  for (const SparseWeight* w : context.weights) sign_[w->name()] = signs_of(*w);
}

void DeepRewiring::before_update(const MethodContext& context) {
  if (context.clock.step >= end_step(context.clock)) return;
  for (SparseWeight* w : context.weights) add_pull_and_noise(*w, l1_, temperature_, context);
}

void DeepRewiring::change(const MethodContext& context) {
  for (SparseWeight* w : context.weights) {
    const at::Tensor flipped = sign_.at(w->name()).to(torch::kInt).mul(signs_of(*w).to(torch::kInt)).lt(0);
    const at::Tensor active = w->active();
    const at::Tensor leave = active.masked_select(flipped);
    const std::int64_t count = leave.numel();
    if (count > 0) {
      const at::Tensor kept = active.masked_select(flipped.logical_not());
      const at::Tensor grow = random_outside(w->numel(), kept, count, stream(context, Purpose::topology, *w));
      w->rewire({leave, grow, births(*w, count, context), std::nullopt});
    }
    sign_[w->name()] = signs_of(*w);
  }
}

at::Tensor DeepRewiring::births(const SparseWeight& weight, std::int64_t count, const MethodContext& context) const {
  at::Tensor values = birth_.draw(weight, count, context);
  if (values.defined()) return values;
  values = torch::empty({count}, torch::kDouble);
  const RandomStream random = stream(context, Purpose::birth, weight);
  for (std::int64_t i = 0; i < count; ++i) {
    values.data_ptr<double>()[i] =
        random.uniform_at(static_cast<std::uint64_t>(i)) < 0.5 ? kDeepRewiringBirth : -kDeepRewiringBirth;
  }
  return values;
}

NamedTensors DeepRewiring::archive() const {
  NamedTensors tensors;
  for (const auto& [name, sign] : sign_) tensors.emplace_back(kPrefix + name, sign);
  return tensors;
}

void DeepRewiring::restore(const NamedTensors& tensors) {
  for (auto& [weight, sign] : sign_) {
    const at::Tensor* saved = nullptr;
    for (const auto& [name, tensor] : tensors)
      if (name == kPrefix + weight) saved = &tensor;
    ESPALIER_CHECK(saved != nullptr && saved->scalar_type() == torch::kChar && saved->dim() == 1, ErrorKind::data,
                   "the saved state has no \"{}{}\" (int8): it is not that of a run with method deep-r", kPrefix,
                   weight);
    sign = saved->clone();
  }
}

}  // namespace espalier
