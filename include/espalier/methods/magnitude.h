/// Magnitude pruning: the smallest |w| go, at once, gradually or in rounds. Pruned weights stay pruned.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "espalier/methods/method.h"

namespace espalier {

/// Prunes `weights` to `sparsity` by |w|: exactly kept_count(sum of numel, sparsity) stay. `distribution` uniform, er
/// and erk keep each layer's allocation; global ranks all layers together. Ties keep the lower layer and position.
/// Never grows: a layer that is sparser than its allocation already keeps what it has, and the others take the rest.
void prune_by_magnitude(const std::vector<SparseWeight*>& weights, double sparsity, const std::string& distribution);

/// Prunes each weight to a budget of its own.
void prune_by_magnitude(SparseWeight& weight, std::int64_t budget);

/// The three methods differ in one thing: the sparsity that is due after a step.
class MagnitudePruning : public Method {
 public:
  void check(const MethodContext& context) const override;
  void after_step(const MethodContext& context) override;

 protected:
  /// The sparsity to prune to after clock.step steps; empty when nothing is due.
  virtual std::optional<double> due(const Clock& clock, double sparsity) const = 0;
};

/// `magnitude`: once, at `at`; what follows is retraining.
class OneShotMagnitude : public MagnitudePruning {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;

 protected:
  std::optional<double> due(const Clock& clock, double sparsity) const override;

 private:
  Duration at_ = Duration::percent(50);
};

/// `gradual-magnitude`: from `start` to `end`, every `every`, along a cubic (Zhu, Gupta 2017) or linear schedule. The
/// first pruning is at `start` with progress 0 (nothing goes unless initial_sparsity > 0); at `end` the sparsity is
/// exactly reached.
class GradualMagnitude : public MagnitudePruning {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;

 protected:
  std::optional<double> due(const Clock& clock, double sparsity) const override;

 private:
  Duration start_ = Duration::percent(25);
  Duration end_ = Duration::percent(75);
  Duration every_ = Duration::steps(100);
  double initial_sparsity_ = 0;
  std::string schedule_ = "cubic";
};

/// `iterative-magnitude`: `rounds` prunings, each removing the same share of what is left, retraining between them (Han
/// et al. 2015). The first is after `start`, the last at `end`, equally spaced; training goes on after each. With
/// `rewind`, from the values that the surviving weights had at `rewind_to` (Frankle, Carbin, "The Lottery Ticket
/// Hypothesis", ICLR 2019).
class IterativeMagnitude : public MagnitudePruning {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  void prepare(const MethodContext& context) override;
  void after_step(const MethodContext& context) override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 protected:
  std::optional<double> due(const Clock& clock, double sparsity) const override;

 private:
  void remember(const MethodContext& context);

  struct Rewound {
    at::Tensor phi;    // to go back to at active()  [nnz]
    double alpha = 1;  // by which psi(phi) is the weight
  };
  std::map<std::string, Rewound> rewound_;  // by the weight's name
  bool rewind_ = false;
  Duration rewind_to_ = Duration::steps(0);
  std::int64_t rounds_ = 5;
  Duration start_ = Duration::percent(20);
  Duration end_ = Duration::percent(80);
};

}  // namespace espalier
