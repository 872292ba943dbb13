/// SynFlow: without data, in rounds, the weights stay through which most flows from input to output (Tanaka, Kunin,
/// Yamins, Ganguli, NeurIPS 2020, algorithm 1).
#pragma once

#include "espalier/methods/prune_at_init.h"

namespace espalier {

/// The share that is kept after round e of n: exponential rho^(e/n), linear 1 - (1 - rho) e/n; exactly rho at the end.
double synflow_kept(double rho, std::int64_t round, std::int64_t rounds, const std::string& schedule);

class SynFlow : public PruneAtInit {
 public:
  SynFlow() = default;
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;

 protected:
  /// power 1: score |w| dR/d|w|. 2: w^2 dR_2/d(w^2), SynFlow-L2.
  explicit SynFlow(int power) : power_(power) {}
  std::vector<at::Tensor> survivors(const MethodContext& context) override;

 private:
  int power_ = 1;
  std::int64_t rounds_ = 100;
  std::string schedule_ = "exponential";
};

/// `synflow-l2`: the same with squared weights, which makes the trace of the path kernel large (Gebhart, Saxena,
/// Schrater 2021; Patil, Dovrolis, ICML 2021).
class SynFlowL2 : public SynFlow {
 public:
  SynFlowL2() : SynFlow(2) {}
};

}  // namespace espalier
