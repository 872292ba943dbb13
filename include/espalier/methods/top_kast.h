/// `top-kast`: always sparse, forward and backward, with one dense vector of values from which the network is chosen
/// anew every so often: the largest compute, some more learn.
///
/// Jayakumar, Pascanu, Rae, Osindero, Elsen, "Top-KAST: Top-K Always Sparse Training", NeurIPS 2020.
#pragma once

#include "espalier/methods/method.h"

namespace espalier {

class TopKast : public Method {
 public:
  void describe(Describe& d) override;
  double stored_sparsity(double sparsity) const override { return sparsity - exploration_; }  ///< B
  void check(const MethodContext& context) const override;
  void prepare(const MethodContext& context) override { choose(context); }
  void before_update(const MethodContext& context) override;
  void after_step(const MethodContext& context) override;

 private:
  /// A = the largest |theta| in number of the density D, B = of the density D + M; B = A from `explore_until` on.
  void choose(const MethodContext& context) const;
  bool explores(const Clock& clock) const;

  double exploration_ = 0.1;
  double penalty_ = 1e-4;
  Duration every_ = Duration::steps(100);
  Duration explore_until_ = Duration::percent(100);
};

}  // namespace espalier
