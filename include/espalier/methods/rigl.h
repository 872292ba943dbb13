/// `rigl`: each layer drops its smallest weights and grows where the gradient is largest.
///
/// Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020, algorithm 1.
#pragma once

#include "espalier/methods/drop_and_grow.h"

namespace espalier {

class RigL : public DropAndGrow {
 public:
  RigL() : DropAndGrow("rigl", Duration::steps(100), Duration::percent(75)) {}
  void describe(Describe& d) override;
  bool wants_dense_gradient(const Clock& clock) const override { return due(clock); }
  bool replaces_update(const Clock& clock) const override { return due(clock) && instead_of_update_; }

 protected:
  void change(const MethodContext& context) override;

 private:
  double fraction_ = 0.3;
  std::string schedule_ = "cosine";
  bool instead_of_update_ = true;
};

}  // namespace espalier
