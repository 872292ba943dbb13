/// `snfs`: sparse networks from scratch, by sparse momentum. A layer with a large mean momentum gets connections from
/// others, at the places of its largest momentum.
///
/// Dettmers, Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing Performance", 2019.
#pragma once

#include <map>

#include "espalier/methods/drop_and_grow.h"

namespace espalier {

/// How the `total` removed weights are grown again: in proportion to `shares`, no layer above 99 % of what it has free
/// (all of it, where that is too little for the total).
std::vector<std::int64_t> momentum_quotas(std::int64_t total, const std::vector<double>& shares,
                                          const std::vector<std::int64_t>& free);

/// Keeps the momentum of the gradient of w at every position, in either storage.
class SparseMomentum : public DropAndGrow {
 public:
  SparseMomentum() : DropAndGrow("snfs", Duration::epochs(1), Duration::percent(100)) {}
  void describe(Describe& d) override;
  bool wants_dense_gradient(const Clock& clock) const override { return clock.step < end_step(clock); }
  void after_step(const MethodContext& context) override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 protected:
  void change(const MethodContext& context) override;

 private:
  double fraction_ = 0.5;
  double final_fraction_ = 0.005;
  double momentum_factor_ = 0.9;
  std::map<std::string, at::Tensor> momentum_;  // M of each weight, by its name, as large as the weight
};

}  // namespace espalier
