#include "espalier/methods/magnitude.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/schedule.h"
#include "espalier/methods/select.h"

namespace espalier {

void prune_by_magnitude(SparseWeight& weight, std::int64_t budget) {
  if (budget == weight.nnz()) return;
  const Smallest drop = smallest_weights(weight, weight.nnz() - budget);
  weight.rewire({drop.positions, {}, {}, drop.threshold});
  ESPALIER_ASSERT(weight.nnz() == budget);
}

void prune_by_magnitude(const std::vector<SparseWeight*>& weights, double sparsity, const std::string& distribution) {
  std::int64_t positions = 0;
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> present;
  for (const SparseWeight* w : weights) {
    positions += w->numel();
    shapes.push_back(w->shape());
    present.push_back(w->nnz());
  }
  std::vector<std::int64_t> budgets;
  if (distribution == "global") {
    std::vector<at::Tensor> scores;
    for (const SparseWeight* w : weights) scores.push_back(w->weights().abs_());
    budgets = select_top_counts(scores, kept_count(positions, sparsity));
  } else {
    budgets = allocate(shapes, present, sparsity, distribution);
  }
  for (std::size_t l = 0; l < weights.size(); ++l) prune_by_magnitude(*weights[l], budgets[l]);
}

namespace {
const std::string kRewound = "method.rewound.";
const std::string kRewoundAlpha = "method.rewound_alpha.";

/// A pruning that never comes would leave the run denser than it says.
void check_within(const Clock& clock, const char* key, const Duration& when) {
  ESPALIER_CHECK(
      clock.total_steps == 0 || when.in_steps(clock) <= clock.total_steps, ErrorKind::usage,
      "[method].{} = \"{}\" (step {}) comes after the end of the run (step {}): the sparsity would not be reached", key,
      when.text(), when.in_steps(clock), clock.total_steps);
}
}  // namespace

void MagnitudePruning::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.sparsity.sparsity > 0, ErrorKind::usage,
                 "magnitude pruning needs [sparsity].sparsity above 0 (a network without zeros is method \"dense\")");
  due(context.clock, context.sparsity.sparsity);  // throws where the clock lacks what a duration needs
}

void MagnitudePruning::after_step(const MethodContext& context) {
  const auto target = due(context.clock, context.sparsity.sparsity);
  if (!target) return;
  std::int64_t positions = 0, present = 0;
  for (const SparseWeight* w : context.weights) {
    positions += w->numel();
    present += w->nnz();
  }
  if (kept_count(positions, *target) >= present) return;
  prune_by_magnitude(context.weights, *target, context.sparsity.distribution);
}

void OneShotMagnitude::describe(Describe& d) { d("at", at_, "when to prune; what follows is retraining"); }

void OneShotMagnitude::check(const MethodContext& context) const {
  MagnitudePruning::check(context);
  check_within(context.clock, "at", at_);
}

std::optional<double> OneShotMagnitude::due(const Clock& clock, double sparsity) const {
  if (clock.step != std::max<std::int64_t>(1, at_.in_steps(clock))) return std::nullopt;
  return sparsity;
}

void GradualMagnitude::describe(Describe& d) {
  d("start", start_, "first pruning");
  d("end", end_, "last pruning: the sparsity is reached here");
  d("every", every_, "distance between prunings");
  d("initial_sparsity", initial_sparsity_, "sparsity at the start of the schedule", from_up_to(0, 1));
  d("schedule", schedule_, "shape of the way from the initial to the final sparsity", {"cubic", "linear"});
}

void GradualMagnitude::check(const MethodContext& context) const {
  MagnitudePruning::check(context);
  const auto start = start_.in_steps(context.clock), end = end_.in_steps(context.clock);
  ESPALIER_CHECK(start < end, ErrorKind::usage,
                 "[method].start ({}, step {}) must come before [method].end ({}, step {})", start_.text(), start,
                 end_.text(), end);
  check_within(context.clock, "end", end_);
  ESPALIER_CHECK(every_.in_steps(context.clock) >= 1, ErrorKind::usage, "[method].every = \"{}\" is less than one step",
                 every_.text());
  ESPALIER_CHECK(initial_sparsity_ <= context.sparsity.sparsity, ErrorKind::usage,
                 "[method].initial_sparsity = {} is above [sparsity].sparsity = {}", initial_sparsity_,
                 context.sparsity.sparsity);
}

std::optional<double> GradualMagnitude::due(const Clock& clock, double sparsity) const {
  const auto start = start_.in_steps(clock), end = end_.in_steps(clock);
  const auto every = std::max<std::int64_t>(1, every_.in_steps(clock));
  if (clock.step < start || clock.step > end) return std::nullopt;
  if (clock.step == end) return sparsity;
  if ((clock.step - start) % every != 0) return std::nullopt;
  const double progress = static_cast<double>(clock.step - start) / static_cast<double>(end - start);
  return schedule_ == "cubic" ? cubic_schedule(initial_sparsity_, sparsity, progress)
                              : linear_schedule(initial_sparsity_, sparsity, progress);
}

void IterativeMagnitude::describe(Describe& d) {
  d("rounds", rounds_, "number of prunings", at_least(1));
  d("start", start_, "first pruning");
  d("end", end_, "last pruning: the sparsity is reached here");
  d("rewind", rewind_, "after each pruning the weights that are left go back to the values they had at rewind_to");
  d("rewind_to", rewind_to_, "the moment whose values come back; 0it: those of the start");
}

void IterativeMagnitude::prepare(const MethodContext& context) {
  if (rewind_ && rewind_to_.in_steps(context.clock) == 0) remember(context);
}

void IterativeMagnitude::remember(const MethodContext& context) {
  for (const SparseWeight* w : context.weights) rewound_[w->name()] = {w->values(), w->reparametrisation().alpha()};
}

void IterativeMagnitude::after_step(const MethodContext& context) {
  if (rewind_ && context.clock.step > 0 && context.clock.step == rewind_to_.in_steps(context.clock)) remember(context);
  std::vector<at::Tensor> before;
  if (rewind_ && due(context.clock, context.sparsity.sparsity)) {
    for (const SparseWeight* w : context.weights) before.push_back(w->active());
  }
  MagnitudePruning::after_step(context);
  for (std::size_t l = 0; l < before.size(); ++l) {
    SparseWeight& w = *context.weights[l];
    auto& [values, alpha] = rewound_.at(w.name());
    const at::Tensor left = w.active();
    values = values.index_select(0, torch::searchsorted(before[l], left));
    const Reparametrisation& now = w.reparametrisation();
    if (alpha != now.alpha()) {  // it has adapted itself since: the same weights, in the phi of today
      values = now.inverse(Reparametrisation(alpha).psi(values.to(torch::kDouble))).to(values.scalar_type());
      alpha = now.alpha();
    }
    w.rewire({left, left, values, std::nullopt});  // all anew, also for the optimiser
  }
}

NamedTensors IterativeMagnitude::archive() const {
  NamedTensors tensors;
  for (const auto& [name, rewound] : rewound_) {
    tensors.emplace_back(kRewound + name, rewound.phi);
    tensors.emplace_back(kRewoundAlpha + name, torch::tensor(rewound.alpha, torch::kDouble));
  }
  return tensors;
}

void IterativeMagnitude::restore(const NamedTensors& tensors) {
  rewound_.clear();
  for (const auto& [name, values] : tensors) {
    if (name.compare(0, kRewound.size(), kRewound) == 0) rewound_[name.substr(kRewound.size())].phi = values.clone();
    if (name.compare(0, kRewoundAlpha.size(), kRewoundAlpha) == 0)
      rewound_[name.substr(kRewoundAlpha.size())].alpha = values.item<double>();
  }
}

void IterativeMagnitude::check(const MethodContext& context) const {
  MagnitudePruning::check(context);
  const auto start = start_.in_steps(context.clock), end = end_.in_steps(context.clock);
  check_within(context.clock, "end", end_);
  ESPALIER_CHECK(rounds_ == 1 || end - start >= rounds_ - 1, ErrorKind::usage,
                 "[method].rounds = {} prunings do not fit between start (\"{}\", step {}) and end (\"{}\", step {})",
                 rounds_, start_.text(), start, end_.text(), end);
  ESPALIER_CHECK(!rewind_ || rewind_to_.in_steps(context.clock) < std::max<std::int64_t>(1, start), ErrorKind::usage,
                 "[method].rewind_to = \"{}\" (step {}) must come before the first pruning, start = \"{}\" (step {})",
                 rewind_to_.text(), rewind_to_.in_steps(context.clock), start_.text(), start);
}

std::optional<double> IterativeMagnitude::due(const Clock& clock, double sparsity) const {
  const auto start = std::max<std::int64_t>(1, start_.in_steps(clock)), end = end_.in_steps(clock);
  if (rounds_ == 1) return clock.step == end ? std::optional(sparsity) : std::nullopt;
  for (std::int64_t round = 1; round <= rounds_; ++round) {
    if (clock.step == start + (end - start) * (round - 1) / (rounds_ - 1)) {
      return geometric_schedule(sparsity, round, rounds_);
    }
  }
  return std::nullopt;
}

}  // namespace espalier
