/// No sparsity: the baseline of everything, and the way to use a reparametrisation alone.
#pragma once

#include "espalier/methods/method.h"

namespace espalier {

class Dense : public Method {
 public:
  void check(const MethodContext& context) const override;
};

}  // namespace espalier
