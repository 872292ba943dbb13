/// Powerpropagation whose alpha tunes itself while the network trains: a control loop like TCP's, with a slow start,
/// additive increase and multiplicative decrease of alpha - 1.
///
///   espalier::Sparsifier sparsifier(*net, espalier::make_method("dense"), espalier::Powerprop(1.2),
///                                   espalier::SparsifierOptions().adaptive_alpha(espalier::AdaptiveAlphaOptions()));
///
/// Source: Jain, Raj, Asgaonkar, "Powerpropagation" (report, 2022), section 5, algorithm 1. What it leaves open is
/// settled in docs/methods/adaptive-powerprop.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/core/duration.h"
#include "espalier/core/options.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// Keys of table [reparam] that belong to name = "adaptive-powerprop".
struct AdaptiveAlphaOptions {
  Duration interval = Duration::epochs(3);
  std::string signal = "near-zero";
  double epsilon = 0.01;
  double cr = 1.5;
  double cd = 0.1;
  double loss_tolerance = 0;
  double alpha_min = 1.01;
  double alpha_max = 16;
  std::string per = "network";
  void describe(Describe& d);
};

/// near-zero: share of the values with |w| < epsilon. `epsilon` is rounded to the type of w first, so that a float32
/// weight of 0.01 is not below 0.01. effective: 1 - (sum |w|)^2 / (n sum w^2), which is the share of zeros where all
/// others are of one size, and does not change when all are multiplied by one number (Hoyer 2004 takes its root); 0
/// where every w is 0. Both are sums over 64-bit numbers in the order of the values.
double share_near_zero(const at::Tensor& w, double epsilon);
double effective_share_of_zeros(const at::Tensor& w);

/// One loop, on numbers alone.
class AlphaControl {
 public:
  enum class Verdict { increase, decrease };

  /// Throws Error(usage) unless 1 < alpha_min <= alpha <= alpha_max.
  AlphaControl(double alpha, const AdaptiveAlphaOptions& options);

  double alpha() const { return state_.alpha; }
  bool slow_start() const { return state_.slow_start; }

  /// One check: alpha() is another one afterwards, within the bounds. It increases when the signal is not less than at
  /// the check before (at the first there is none to be less than) and the loss is not above (1 + loss_tolerance) times
  /// the lowest so far (looked at where the tolerance is above 0 and there is a loss).
  Verdict check(double signal, std::optional<double> loss);

  struct State {
    double alpha = 1;
    bool slow_start = true;
    std::optional<double> signal, lowest_loss;
  };
  const State& state() const { return state_; }
  void restore(const State& state) { state_ = state; }

 private:
  double cr_, cd_, loss_tolerance_, alpha_min_, alpha_max_;
  State state_;
};

/// What one check saw and did, for the record.
struct AlphaRecord {
  std::string weight;  ///< "" where one alpha serves the whole network
  double before = 1, alpha = 1;
  double near_zero = 0, signal = 0;
  std::optional<double> signal_before;  ///< none at the start and at the first check
  AlphaControl::Verdict verdict = AlphaControl::Verdict::increase;
  bool slow_start = true;  ///< after the check
};
struct AlphaTrace {
  std::int64_t step = 0;  ///< optimiser steps done when the weights were looked at
  bool start = false;     ///< a record of where the loop begins; nothing is decided
  std::optional<double> loss;
  std::vector<AlphaRecord> records;  ///< one for the network, or one a weight
};

/// The loops of a network: one, or one for each weight.
class AdaptiveAlpha {
 public:
  using Weights = std::vector<std::shared_ptr<SparseWeight>>;

  AdaptiveAlpha(const AdaptiveAlphaOptions& options, double alpha, const Weights& weights);

  /// Whether the step after `clock` begins with a check.
  bool due(const Clock& clock) const;
  /// A loss of the interval that is under way; its mean is what the check looks at.
  void observe_loss(double loss);
  AlphaTrace start(const Weights& weights) const;
  /// Looks at the weights and moves the loops; alpha(l) is what weight l is to have then.
  AlphaTrace check(const Clock& clock, const Weights& weights);
  double alpha(std::size_t weight) const { return controls_[controls_.size() == 1 ? 0 : weight].alpha(); }

  NamedTensors archive() const;
  /// Throws Error(data) if `tensors` lacks what `archive` gives, or it is of another number of loops.
  void restore(const NamedTensors& tensors);

 private:
  AlphaTrace look(std::int64_t step, const Weights& weights) const;

  AdaptiveAlphaOptions options_;
  std::vector<AlphaControl> controls_;
  double loss_sum_ = 0;
  std::int64_t losses_ = 0;
};

}  // namespace espalier
