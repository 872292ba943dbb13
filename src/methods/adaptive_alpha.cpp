#include "espalier/methods/adaptive_alpha.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr const char* kControls = "adaptive_alpha.controls";
constexpr const char* kLosses = "adaptive_alpha.losses";
constexpr std::int64_t kSaved = 6;  // numbers of a loop

/// f(first, number) on the values as they are.
template <class F>
double on_values(const at::Tensor& w, const F& f) {
  const at::Tensor values = w.detach().contiguous();
  if (values.scalar_type() == at::kFloat) return f(values.data_ptr<float>(), values.numel());
  ESPALIER_ASSERT(values.scalar_type() == at::kDouble);
  return f(values.data_ptr<double>(), values.numel());
}

}  // namespace

void AdaptiveAlphaOptions::describe(Describe& d) {
  d("interval", interval, "adaptive: distance between checks, each of which changes alpha");
  d("signal", signal,
    "adaptive: what is not to fall from check to check. near-zero: the share of |w| < epsilon; effective: 1 - (sum "
    "|w|)^2 / (n sum w^2), the same at every scale of the weights, in each layer and averaged over them",
    {"near-zero", "effective"});
  d("epsilon", epsilon, "adaptive: a weight below this size counts as near zero", above(0));
  d("cr", cr,
    "adaptive: alpha - 1 is multiplied by this at a success of the slow start, divided by it at every failure",
    above(1));
  d("cd", cd, "adaptive: added to alpha at a success once the slow start is over", above(0));
  d("loss_tolerance", loss_tolerance,
    "adaptive: a check fails too where the mean training loss since the last is above the lowest so far by more than "
    "this share of it; 0: the loss is not looked at",
    at_least(0));
  d("alpha_min", alpha_min, "adaptive: alpha stays at or above this", {1, 16, true, false});
  d("alpha_max", alpha_max, "adaptive: alpha stays at or below this", {1, 16, true, false});
  d("per", per, "adaptive: one alpha for the whole network, or one for each weight", {"network", "layer"});
}

double share_near_zero(const at::Tensor& w, double epsilon) {
  return on_values(w, [&](const auto* value, std::int64_t n) {
    const auto limit = static_cast<std::decay_t<decltype(*value)>>(epsilon);
    const auto below = std::count_if(value, value + n, [&](auto v) { return std::abs(v) < limit; });
    return n == 0 ? 0 : static_cast<double>(below) / static_cast<double>(n);
  });
}

double effective_share_of_zeros(const at::Tensor& w) {
  return on_values(w, [](const auto* value, std::int64_t n) {
    double size = 0, square = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double v = static_cast<double>(value[i]);
      size += std::abs(v);
      square += v * v;
    }
    return square == 0 ? 0 : 1 - size * size / (static_cast<double>(n) * square);
  });
}

AlphaControl::AlphaControl(double alpha, const AdaptiveAlphaOptions& options)
    : cr_(options.cr),
      cd_(options.cd),
      loss_tolerance_(options.loss_tolerance),
      alpha_min_(options.alpha_min),
      alpha_max_(options.alpha_max) {
  // At 1 the loop would stay: alpha - 1 is what it multiplies.
  ESPALIER_CHECK(alpha_min_ > 1 && alpha >= alpha_min_ && alpha <= alpha_max_ && std::isfinite(alpha), ErrorKind::usage,
                 "adaptive alpha begins at {} with bounds {} and {}; expected 1 < lower bound <= alpha <= upper bound",
                 alpha, alpha_min_, alpha_max_);
  ESPALIER_CHECK(cr_ > 1 && cd_ > 0, ErrorKind::usage, "adaptive alpha: cr = {}, cd = {}; expected cr > 1 and cd > 0",
                 cr_, cd_);
  state_.alpha = alpha;
}

AlphaControl::Verdict AlphaControl::check(double signal, std::optional<double> loss) {
  bool success = !state_.signal || signal >= *state_.signal;
  if (loss_tolerance_ > 0 && loss) {
    if (state_.lowest_loss && *loss > (1 + loss_tolerance_) * *state_.lowest_loss) success = false;
    state_.lowest_loss = std::min(*loss, state_.lowest_loss.value_or(*loss));
  }
  state_.signal = signal;
  double& alpha = state_.alpha;
  if (!success) {
    alpha = 1 + (alpha - 1) / cr_;
    state_.slow_start = false;
  } else if (state_.slow_start) {
    alpha = 1 + cr_ * (alpha - 1);
  } else {
    alpha += cd_;
  }
  alpha = std::clamp(alpha, alpha_min_, alpha_max_);
  return success ? Verdict::increase : Verdict::decrease;
}

AdaptiveAlpha::AdaptiveAlpha(const AdaptiveAlphaOptions& options, double alpha, const Weights& weights)
    : options_(options),
      controls_(options.per == "layer" ? weights.size() : std::size_t{1}, AlphaControl(alpha, options)) {}

bool AdaptiveAlpha::due(const Clock& clock) const {
  const std::int64_t interval = options_.interval.in_steps(clock);
  ESPALIER_CHECK(interval >= 1, ErrorKind::usage, "[reparam].interval = \"{}\" is less than one step",
                 options_.interval.text());
  return clock.step > 0 && clock.step % interval == 0;
}

void AdaptiveAlpha::observe_loss(double loss) {
  loss_sum_ += loss;
  ++losses_;
}

AlphaTrace AdaptiveAlpha::look(std::int64_t step, const Weights& weights) const {
  AlphaTrace trace;
  trace.step = step;
  if (losses_ > 0) trace.loss = loss_sum_ / static_cast<double>(losses_);
  double near_zero = 0, signal = 0, entries = 0;  // of the network: averaged over its weights
  for (const auto& weight : weights) {
    const at::Tensor w = weight->weights();
    AlphaRecord record;
    record.weight = weight->name();
    record.near_zero = share_near_zero(w, options_.epsilon);
    record.signal = options_.signal == "near-zero" ? record.near_zero : effective_share_of_zeros(w);
    const auto n = static_cast<double>(w.numel());
    near_zero += record.near_zero * n;
    signal += record.signal * n;
    entries += n;
    trace.records.push_back(record);
  }
  if (controls_.size() == 1) {
    AlphaRecord record;
    // A count again, which the products may have missed by a rounding: equal counts must give equal shares.
    record.near_zero = entries > 0 ? std::round(near_zero) / entries : 0;
    record.signal = options_.signal == "near-zero" ? record.near_zero : entries > 0 ? signal / entries : 0;
    trace.records = {record};
  }
  for (std::size_t c = 0; c < controls_.size(); ++c) {
    AlphaRecord& record = trace.records[c];
    record.before = record.alpha = controls_[c].alpha();
    record.signal_before = controls_[c].state().signal;
    record.slow_start = controls_[c].slow_start();
  }
  return trace;
}

AlphaTrace AdaptiveAlpha::start(const Weights& weights) const {
  AlphaTrace trace = look(0, weights);
  trace.start = true;
  return trace;
}

AlphaTrace AdaptiveAlpha::check(const Clock& clock, const Weights& weights) {
  AlphaTrace trace = look(clock.step, weights);
  for (std::size_t c = 0; c < controls_.size(); ++c) {
    trace.records[c].verdict = controls_[c].check(trace.records[c].signal, trace.loss);
    trace.records[c].alpha = controls_[c].alpha();
    trace.records[c].slow_start = controls_[c].slow_start();
  }
  loss_sum_ = 0;
  losses_ = 0;
  return trace;
}

NamedTensors AdaptiveAlpha::archive() const {
  std::vector<double> numbers;
  for (const AlphaControl& control : controls_) {
    const AlphaControl::State& s = control.state();
    for (const double x : {s.alpha, s.slow_start ? 1.0 : 0.0, s.signal ? 1.0 : 0.0, s.signal.value_or(0),
                           s.lowest_loss ? 1.0 : 0.0, s.lowest_loss.value_or(0)})
      numbers.push_back(x);
  }
  return {{kControls, torch::tensor(numbers, torch::kDouble).view({-1, kSaved})},
          {kLosses, torch::tensor({loss_sum_, static_cast<double>(losses_)}, torch::kDouble)}};
}

void AdaptiveAlpha::restore(const NamedTensors& tensors) {
  const auto numbers_of = [&](const char* key, std::int64_t count) {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == key; });
    ESPALIER_CHECK(
        at != tensors.end() && at->second.scalar_type() == at::kDouble && at->second.numel() == count, ErrorKind::data,
        "\"{}\": missing from the saved state, or not {} numbers; was it saved with another [reparam]?", key, count);
    const at::Tensor numbers = at->second.contiguous();
    return std::vector<double>(numbers.data_ptr<double>(), numbers.data_ptr<double>() + count);
  };
  const auto loops = static_cast<std::int64_t>(controls_.size());
  const std::vector<double> saved = numbers_of(kControls, loops * kSaved), losses = numbers_of(kLosses, 2);
  const auto number = [](double there, double x) { return there != 0 ? std::optional(x) : std::nullopt; };
  std::vector<AlphaControl> restored = controls_;
  for (std::int64_t c = 0; c < loops; ++c) {
    const double* s = saved.data() + c * kSaved;
    ESPALIER_CHECK(s[0] > 1 && std::isfinite(s[0]), ErrorKind::data, "\"{}\": alpha = {}; expected above 1", kControls,
                   s[0]);
    restored[static_cast<std::size_t>(c)].restore({s[0], s[1] != 0, number(s[2], s[3]), number(s[4], s[5])});
  }
  controls_ = std::move(restored);
  loss_sum_ = losses[0];
  losses_ = static_cast<std::int64_t>(losses[1]);
}

}  // namespace espalier
