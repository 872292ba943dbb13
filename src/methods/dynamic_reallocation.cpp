#include "espalier/methods/dynamic_reallocation.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/sparsifier.h"

namespace espalier {
namespace {

constexpr const char* kThreshold = "method.threshold";
constexpr const char* kMilestones = "method.threshold_milestones";

bool names(const std::vector<std::string>& patterns, const SparseWeight& weight) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& p) {
    return matches(p, weight.name()) || matches(p + ".weight", weight.name());
  });
}

void check_ascending(const char* key, const std::vector<std::string>& milestones, const Clock& clock) {
  std::int64_t before = -1;
  for (const auto& m : milestones) {
    const std::int64_t step = Duration::parse(m).in_steps(clock);
    ESPALIER_CHECK(step > before, ErrorKind::usage,
                   "[method].{}: \"{}\" (step {}) does not come after the one before it (step {})", key, m, step,
                   before);
    before = step;
  }
}

}  // namespace

double adjusted_threshold(double threshold, std::int64_t pruned, std::int64_t target, double tolerance) {
  const auto excess = static_cast<double>(pruned - target), allowed = tolerance * static_cast<double>(target);
  if (excess < -allowed) return 2 * threshold;
  if (excess > allowed) return threshold / 2;
  return threshold;
}

void DynamicReallocation::describe(Describe& d) {
  d("every", every_, "distance between reallocations");
  d("every_milestones", every_milestones_,
    "durations in ascending order; at each the distance is multiplied by every_factor");
  d("every_factor", every_factor_, "factor on the distance at each milestone", above(0));
  d("stop_after", end_, "no reallocation from here on: what is left of the run trains the structure that is there");
  d("target", target_count_, "weights that a reallocation should move (K); 0: target_share decides", at_least(0));
  d("target_share", target_share_, "K as a share of all kept weights", Range{0, 1, true, true});
  d("tolerance", tolerance_, "delta: H stays while the number moved is within this share of K", from_up_to(0, 1));
  d("threshold", initial_threshold_, "H at the start: weights |w| < H are moved", above(0));
  d("threshold_milestones", threshold_milestones_,
    "durations in ascending order; at each H is set to the next of `thresholds`, and adapts from there");
  d("thresholds", thresholds_, "one for each of threshold_milestones", above(0));
  d("protected_layers", protected_layers_, "layers that never have fewer than protected_weights survivors");
  d("protected_weights", protected_weights_, "survivors that a protected layer keeps; any other keeps 1", at_least(1));
  reinit_.describe(d);
  birth_.describe(d);
}

void DynamicReallocation::check(const MethodContext& context) const {
  DropAndGrow::check(context);
  check_ascending("every_milestones", every_milestones_, context.clock);
  check_ascending("threshold_milestones", threshold_milestones_, context.clock);
  ESPALIER_CHECK(thresholds_.size() == threshold_milestones_.size(), ErrorKind::usage,
                 "[method].thresholds has {} numbers for {} threshold_milestones; give one for each",
                 thresholds_.size(), threshold_milestones_.size());
  std::int64_t positions = 0;
  std::string list;
  for (const SparseWeight* w : context.weights) {
    positions += w->numel();
    list += (list.empty() ? "" : ", ") + w->name();
  }
  const std::int64_t nnz = kept_count(positions, context.sparsity.sparsity);
  const auto room = nnz - static_cast<std::int64_t>(context.weights.size());
  ESPALIER_CHECK(target(nnz) <= std::max<std::int64_t>(1, room), ErrorKind::usage,
                 "[method].target = {}: only {} weights are kept, and each of {} layers keeps one; lower it",
                 target_count_, nnz, context.weights.size());
  for (const auto& pattern : protected_layers_) {
    ESPALIER_CHECK(std::any_of(context.weights.begin(), context.weights.end(),
                               [&](const SparseWeight* w) { return names({pattern}, *w); }),
                   ErrorKind::usage, "[method].protected_layers: \"{}\" matches no sparsified weight. Weights: {}",
                   pattern, list);
  }
}

void DynamicReallocation::prepare(const MethodContext& context) {
  DropAndGrow::prepare(context);
  threshold_ = initial_threshold_;
}

std::int64_t DynamicReallocation::target(std::int64_t nnz) const {
  if (target_count_ > 0) return target_count_;
  return std::max<std::int64_t>(1, std::llround(target_share_ * static_cast<double>(nnz)));
}

std::int64_t DynamicReallocation::least(const SparseWeight& weight) const {
  return std::min(weight.nnz(), names(protected_layers_, weight) ? protected_weights_ : 1);
}

bool DynamicReallocation::due(const Clock& clock) const {
  if (clock.step >= end_step(clock) || (clock.total_steps > 0 && clock.step >= clock.total_steps)) return false;
  auto distance = static_cast<double>(every_.in_steps(clock));
  for (const auto& m : every_milestones_) {
    if (clock.step >= Duration::parse(m).in_steps(clock)) distance *= every_factor_;
  }
  return clock.step % std::max<std::int64_t>(1, std::llround(distance)) == 0;
}

void DynamicReallocation::change(const MethodContext& context) {
  for (auto m = static_cast<std::size_t>(milestones_passed_);
       m < thresholds_.size() &&
       context.clock.step >= Duration::parse(threshold_milestones_[m]).in_steps(context.clock);
       ++m) {
    threshold_ = thresholds_[m];
    ++milestones_passed_;
  }

  // 1. What is under H leaves; each layer keeps its largest `least`.
  const std::size_t layers = context.weights.size();
  std::vector<at::Tensor> magnitude;
  std::vector<std::int64_t> pruned, room;  // positions that are free before the pruning: only they may be grown
  for (const SparseWeight* w : context.weights) {
    magnitude.push_back(w->weights().abs());
    pruned.push_back(std::min(magnitude.back().lt(threshold_).sum().item<std::int64_t>(), w->nnz() - least(*w)));
    room.push_back(w->numel() - w->nnz());
  }
  const auto sum = [](const std::vector<std::int64_t>& v) {
    return std::accumulate(v.begin(), v.end(), std::int64_t{0});
  };
  if (const std::int64_t excess = sum(pruned) - sum(room); excess > 0) {
    // More than can be grown elsewhere: the largest of them stay.
    std::vector<at::Tensor> leaving;
    for (std::size_t l = 0; l < layers; ++l) {
      leaving.push_back(magnitude[l].index_select(0, select_top(magnitude[l], magnitude[l].numel() - pruned[l]).rest));
    }
    const auto spared = select_top_counts(leaving, excess);
    for (std::size_t l = 0; l < layers; ++l) pruned[l] -= spared[l];
  }
  const std::int64_t moved = sum(pruned);

  // 2. H for the next time.
  const double used = threshold_;
  threshold_ = adjusted_threshold(threshold_, moved, target(total_nnz(context.weights)), tolerance_);
  if (moved == 0) return;

  // 3. Grown in proportion to the survivors.
  std::vector<double> survivors;
  for (std::size_t l = 0; l < layers; ++l) {
    survivors.push_back(static_cast<double>(magnitude[l].numel() - pruned[l]));
  }
  const auto grown = apportion(moved, survivors, room);

  // 4. At random among what was free before; what was just pruned is not.
  for (std::size_t l = 0; l < layers; ++l) {
    SparseWeight& w = *context.weights[l];
    if (pruned[l] == 0 && grown[l] == 0) continue;
    const RandomStream random(context.seed, Purpose::topology, static_cast<std::uint64_t>(w.layer()),
                              static_cast<std::uint64_t>(context.clock.step));
    const at::Tensor active = w.active();
    const at::Tensor leaves = select_top(magnitude[l], w.nnz() - pruned[l], active).rest;
    w.rewire({leaves, random_outside(w.numel(), active, grown[l], random), birth_.draw(w, grown[l], context), used});
  }
}

NamedTensors DynamicReallocation::archive() const {
  return {{kThreshold, torch::tensor(threshold_, torch::kDouble)},
          {kMilestones, torch::tensor(milestones_passed_, torch::kInt64)}};
}

void DynamicReallocation::restore(const NamedTensors& tensors) {
  const auto find = [&](const char* name, at::ScalarType type) -> const at::Tensor& {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; });
    ESPALIER_CHECK(at != tensors.end() && at->second.numel() == 1 && at->second.scalar_type() == type, ErrorKind::data,
                   "the saved state has no \"{}\" of one {}: it is not that of a run with method dpr", name,
                   c10::toString(type));
    return at->second;
  };
  threshold_ = find(kThreshold, at::kDouble).item<double>();
  milestones_passed_ = find(kMilestones, at::kLong).item<std::int64_t>();
}

}  // namespace espalier
