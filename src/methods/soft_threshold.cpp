#include "espalier/methods/soft_threshold.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/select.h"

namespace espalier {
namespace {
const std::string kS = "method.s.", kRecorded = "method.recorded.";
}

void SoftThreshold::describe(Describe& d) {
  d("s_init", s_init_, "s of each layer at the start; its threshold is 1 / (1 + exp(-s))", between(-1e6, 1e6));
  d("every", every_, "distance between entries in the record; the network itself changes in every step");
}

void SoftThreshold::check(const MethodContext& context) const {
  ESPALIER_CHECK(
      context.sparsity.sparsity == 0, ErrorKind::usage,
      "[sparsity].sparsity = {}: method str is not told how sparse to become, its thresholds learn it; leave "
      "the sparsity out, and move it by [method].s_init and [optim].weight_decay",
      context.sparsity.sparsity);
  for (const SparseWeight* w : context.weights) {
    const Reparametrisation& psi = w->reparametrisation();
    ESPALIER_CHECK(psi.is_identity() || psi.update() == Update::gradient, ErrorKind::usage,
                   "method str updates values that the layers do not see; [reparam].update = \"target\" steps in what "
                   "they see. Use \"gradient\"");
  }
  ESPALIER_CHECK(every_.in_steps(context.clock) >= 1, ErrorKind::usage, "[method].every = \"{}\" is less than one step",
                 every_.text());
}

double SoftThreshold::threshold(const at::Tensor& s) { return 1 / (1 + std::exp(-s.item<double>())); }

void SoftThreshold::prepare(const MethodContext& context) {
  for (SparseWeight* w : context.weights) {
    at::Tensor& s = s_[w->name()];
    s = torch::full({1}, s_init_, torch::kFloat).set_requires_grad(true);
    w->set_soft_threshold(threshold(s));
    recorded_[w->name()] = w->active();
    w->record({{}, {}, threshold(s), {}});
  }
}

void SoftThreshold::before_update(const MethodContext& context) {
  for (const SparseWeight* w : context.weights) {
    at::Tensor& s = s_.at(w->name());
    const double g = threshold(s);
    s.mutable_grad() = torch::full({1}, g * (1 - g) * w->soft_threshold_gradient(), torch::kFloat);
  }
}

void SoftThreshold::after_step(const MethodContext& context) {
  const bool last = context.clock.total_steps > 0 && context.clock.step == context.clock.total_steps;
  const bool due = last || context.clock.step % every_.in_steps(context.clock) == 0;
  for (SparseWeight* w : context.weights) {
    const double now = threshold(s_.at(w->name()));
    w->set_soft_threshold(now);
    if (!due) continue;
    at::Tensor& before = recorded_.at(w->name());
    const at::Tensor active = w->active();
    w->record({without(before, active), without(active, before), now, {}});
    before = active;
  }
}

NamedTensors SoftThreshold::parameters() const {
  NamedTensors list;
  for (const auto& [name, s] : s_) list.emplace_back(kS + name, s);
  return list;
}

NamedTensors SoftThreshold::archive() const {
  NamedTensors tensors;
  for (const auto& [name, s] : s_) tensors.emplace_back(kS + name, s.detach());
  for (const auto& [name, positions] : recorded_) tensors.emplace_back(kRecorded + name, positions);
  return tensors;
}

void SoftThreshold::restore(const NamedTensors& tensors) {
  const torch::NoGradGuard no_grad;
  const auto saved = [&tensors](const std::string& name, at::ScalarType type) -> const at::Tensor& {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; });
    ESPALIER_CHECK(at != tensors.end() && at->second.scalar_type() == type && at->second.dim() == 1, ErrorKind::data,
                   "the saved state has no \"{}\" of {}: it is not that of a run with method str", name,
                   c10::toString(type));
    return at->second;
  };
  for (auto& [name, s] : s_) {
    s.copy_(saved(kS + name, torch::kFloat));  // the optimiser holds this tensor
    recorded_.at(name) = saved(kRecorded + name, torch::kLong).clone();
  }
}

}  // namespace espalier
