/// A random sparse network that never changes: the baseline of every sparse-to-sparse method.
#pragma once

#include "espalier/methods/method.h"
#include "espalier/methods/reinit.h"

namespace espalier {

/// Each layer keeps its allocation (uniform, er, erk) at random positions; `global` draws from all layers together.
/// Draws the masks of `static-random`. With `none_empty` a layer whose allocation is nothing gets one weight, from the
/// layer that has most: what changes the topology later needs something to go by. Throws Error(usage) if there are
/// fewer weights than layers then.
void keep_random(const MethodContext& context, const Reinit& reinit, bool none_empty = false);

class StaticRandom : public Method {
 public:
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool is_static() const override { return true; }
  void describe(Describe& d) override { reinit_.describe(d); }
  void prepare(const MethodContext& context) override { keep_random(context, reinit_); }

 private:
  Reinit reinit_;
};

}  // namespace espalier
