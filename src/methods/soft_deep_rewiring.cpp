#include "espalier/methods/soft_deep_rewiring.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/methods/deep_rewiring.h"
#include "espalier/methods/static_random.h"

namespace espalier {
namespace {

const std::string kSign = "method.sign.", kTheta = "method.theta.";

RandomStream stream(const MethodContext& context, Purpose purpose, const SparseWeight& weight) {
  return {context.seed, purpose, static_cast<std::uint64_t>(weight.layer()),
          static_cast<std::uint64_t>(context.clock.step)};
}

at::Tensor to_tensor(const std::vector<std::int64_t>& list) { return torch::tensor(list, torch::kInt64); }

}  // namespace

double sleeping_floor(double density, double l1, double temperature) {
  return -(1 - density) / density * temperature / l1;
}

void SoftDeepRewiring::describe(Describe& d) {
  d("l1", l1_, "alpha: the pull of every connection towards zero, added to the loss as alpha |w|", above(0));
  d("temperature", temperature_, "T: in each step plain SGD moves a connection by sqrt(2 lr T) N(0, 1) besides",
    above(0));
  d("every", every_, "distance between looks at who sleeps and who wakes");
  d("end", end_, "from here on nobody falls asleep or wakes, and there is neither pull nor noise");
  reinit_.describe(d);
}

void SoftDeepRewiring::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.sparsity.sparsity > 0, ErrorKind::usage,
                 "method soft-deep-r needs [sparsity].sparsity above 0: what it starts with, and what pull and noise "
                 "alone would keep up (a network without zeros is method \"dense\")");
  ESPALIER_CHECK(every_.in_steps(context.clock) >= 1, ErrorKind::usage, "[method].every = \"{}\" is less than one step",
                 every_.text());
  acts(context.clock);  // throws where the clock lacks what the duration needs
}

bool SoftDeepRewiring::acts(const Clock& clock) const {
  if (clock.total_steps == 0 && end_ == Duration::percent(100)) return true;
  return clock.step < end_.in_steps(clock);
}

void SoftDeepRewiring::prepare(const MethodContext& context) {
  keep_random(context, reinit_, /*none_empty=*/true);
  const double floor = sleeping_floor(1 - context.sparsity.sparsity, l1_, temperature_);
  for (const SparseWeight* w : context.weights) {
    // Everybody sleeps at a place of its own, with a sign of its own; then those that are awake take that of w.
    Connections& c = connections_[w->name()];
    c.sign = torch::empty({w->numel()}, torch::kChar);
    c.theta = torch::empty({w->numel()});
    const RandomStream random = stream(context, Purpose::birth, *w);
    for (std::int64_t i = 0; i < w->numel(); ++i) {
      const auto at = static_cast<std::uint64_t>(i);
      c.sign.data_ptr<std::int8_t>()[i] = (random.bits_at(2 * at) >> 63) != 0 ? 1 : -1;
      c.theta.data_ptr<float>()[i] = static_cast<float>(floor * random.uniform_at(2 * at + 1));
    }
    const at::Tensor active = w->active();
    c.sign.index_copy_(0, active, w->weights().lt(0).to(torch::kChar).mul_(-2).add_(1));
    c.theta.index_fill_(0, active, 0);
  }
  log_info(fmt::format("soft-deep-r: connections sleep down to {:.3g}, and wake where they come above 0", floor));
}

void SoftDeepRewiring::before_update(const MethodContext& context) {
  if (!acts(context.clock)) return;
  for (SparseWeight* w : context.weights) add_pull_and_noise(*w, l1_, temperature_, context);
}

void SoftDeepRewiring::after_step(const MethodContext& context) {
  if (!acts(context.clock) || context.clock.step % every_.in_steps(context.clock) != 0) return;
  for (SparseWeight* w : context.weights) change(*w, connections_.at(w->name()), context);
}

void SoftDeepRewiring::change(SparseWeight& weight, Connections& c, const MethodContext& context) const {
  const auto floor = static_cast<float>(sleeping_floor(1 - context.sparsity.sparsity, l1_, temperature_));
  auto* sign = c.sign.data_ptr<std::int8_t>();
  auto* theta = c.theta.data_ptr<float>();
  const at::Tensor active = weight.active(), w = weight.weights().to(torch::kDouble);
  const auto* position = active.data_ptr<std::int64_t>();
  const auto* value = w.data_ptr<double>();
  const std::int64_t awake = active.numel();

  // Between two looks a sleeper takes as many steps of the walk as there were, which is one longer step.
  const auto steps = static_cast<double>(every_.in_steps(context.clock));
  const double deviation = std::sqrt(2 * context.learning_rate * temperature_ * steps);
  const RandomStream random = stream(context, Purpose::topology, weight);
  std::vector<std::int64_t> wake, sleep;
  std::vector<double> births;
  for (std::int64_t i = 0, next = 0; i < weight.numel(); ++i) {
    if (next < awake && position[next] == i) {
      ++next;
      continue;
    }
    const auto walked = static_cast<float>(theta[i] + deviation * random.normal_at(static_cast<std::uint64_t>(i)));
    theta[i] = std::max(walked, floor);
    if (theta[i] < 0) continue;
    wake.push_back(i);
    births.push_back(sign[i] * std::max<double>(theta[i], kDeepRewiringBirth));
    theta[i] = 0;
  }
  std::int64_t best = 0;  // the last one awake does not sleep
  for (std::int64_t k = 1; k < awake; ++k) {
    if (sign[position[k]] * value[k] > sign[position[best]] * value[best]) best = k;
  }
  for (std::int64_t k = 0; k < awake; ++k) {
    const double theta_k = sign[position[k]] * value[k];
    if (theta_k >= 0 || (k == best && wake.empty())) continue;
    sleep.push_back(position[k]);
    theta[position[k]] = std::max(static_cast<float>(theta_k), floor);
  }
  if (wake.empty() && sleep.empty()) return;
  const at::Tensor values = weight.reparametrisation().inverse(torch::tensor(births, torch::kDouble));
  weight.rewire({to_tensor(sleep), to_tensor(wake), values, std::nullopt});
}

NamedTensors SoftDeepRewiring::archive() const {
  NamedTensors tensors;
  for (const auto& [name, c] : connections_) {
    tensors.emplace_back(kSign + name, c.sign);
    tensors.emplace_back(kTheta + name, c.theta);
  }
  return tensors;
}

void SoftDeepRewiring::restore(const NamedTensors& tensors) {
  for (auto& [weight, c] : connections_) {
    const auto take = [&tensors](const std::string& name, at::Tensor& to) {
      const auto saved = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; });
      ESPALIER_CHECK(saved != tensors.end() && saved->second.scalar_type() == to.scalar_type() &&
                         saved->second.sizes() == to.sizes(),
                     ErrorKind::data,
                     "the saved state has no \"{}\" of {} {}: it is not that of a run with method soft-deep-r", name,
                     to.numel(), c10::toString(to.scalar_type()));
      to = saved->second.clone();
    };
    take(kSign + weight, c.sign);
    take(kTheta + weight, c.theta);
  }
}

}  // namespace espalier
