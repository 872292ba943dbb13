/// A random sparse network that never changes: the baseline of every sparse-to-sparse method.
#pragma once

#include "espalier/methods/method.h"

namespace espalier {

/// Each layer keeps its allocation (uniform, er, erk) at random positions; `global` draws from all layers together.
class StaticRandom : public Method {
 public:
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool is_static() const override { return true; }
  void prepare(const MethodContext& context) override;
};

}  // namespace espalier
