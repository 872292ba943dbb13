/// `dpr`: dynamic parameter reallocation. Weights under one adaptive threshold leave, wherever they are; as many are
/// grown at random, where most have survived. So parameters move between layers.
///
/// Mostafa, Wang, "Parameter efficient training of deep convolutional neural networks by dynamic sparse
/// reparameterization", ICML 2019; "Dynamic parameter reallocation improves trainability of deep convolutional
/// networks", NIPS 2018 workshop (algorithm 1).
#pragma once

#include "espalier/methods/drop_and_grow.h"

namespace espalier {

/// H for the next change: 2 H if fewer than (1 - tolerance) target were pruned, H / 2 if more than (1 + tolerance)
/// target, else H.
double adjusted_threshold(double threshold, std::int64_t pruned, std::int64_t target, double tolerance);

class DynamicReallocation : public DropAndGrow {
 public:
  DynamicReallocation() : DropAndGrow("dpr", Duration::steps(100), Duration::percent(100)) {}
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  void prepare(const MethodContext& context) override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

  double threshold() const { return threshold_; }  ///< H of the next change

 protected:
  bool due(const Clock& clock) const override;
  void change(const MethodContext& context) override;

 private:
  std::int64_t target(std::int64_t nnz) const;
  std::int64_t least(const SparseWeight& weight) const;

  double initial_threshold_ = 1e-3;
  double tolerance_ = 0.1;
  std::int64_t target_count_ = 0;
  double target_share_ = 0.1;
  std::vector<std::string> every_milestones_;
  double every_factor_ = 2;
  std::vector<std::string> threshold_milestones_;
  std::vector<double> thresholds_;
  std::vector<std::string> protected_layers_;
  std::int64_t protected_weights_ = 100;

  double threshold_ = 0;
  std::int64_t milestones_passed_ = 0;  // of threshold_milestones_
};

}  // namespace espalier
