/// A random sparse network that never changes: the baseline of every sparse-to-sparse method.
#pragma once

#include "espalier/methods/method.h"

namespace espalier {

/// Each layer keeps its allocation (uniform, er, erk) at random positions; `global` draws from all layers together.
/// Draws the masks of `static-random`. With `none_empty` a layer whose allocation is nothing gets one weight, from the
/// layer that has most: what changes the topology later needs something to go by. Throws Error(usage) if there are
/// fewer weights than layers then.
void keep_random(const MethodContext& context, bool none_empty = false);

class StaticRandom : public Method {
 public:
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool is_static() const override { return true; }
  void prepare(const MethodContext& context) override { keep_random(context); }
};

}  // namespace espalier
