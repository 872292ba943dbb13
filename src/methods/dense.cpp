#include "espalier/methods/dense.h"

#include "espalier/core/error.h"

namespace espalier {

void Dense::check(const MethodContext& context) const {
  ESPALIER_CHECK(
      context.sparsity.sparsity == 0, ErrorKind::usage,
      "[sparsity].sparsity = {} has no effect with method \"dense\"; choose a method that makes the network sparse "
      "(espalier list methods) or leave it at 0",
      context.sparsity.sparsity);
}

}  // namespace espalier
