#include "espalier/methods/given.h"

#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/probe.h"

namespace espalier {

void Given::describe(Describe& d) {
  d("structure", structure_, "safetensors file with a mask for each weight, as espalier init writes it");
}

void Given::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.probe != nullptr && context.probe->structure, ErrorKind::usage,
                 "method given needs a structure: set [method].structure to a file of masks (espalier train "
                 "--structure-from FILE), or Probe::structure in a program");
}

void Given::prepare(const MethodContext& context) {
  std::int64_t positions = 0, nnz = 0;
  for (SparseWeight* w : context.weights) {
    w->keep(context.probe->structure(*w));
    positions += w->numel();
    nnz += w->nnz();
  }
  const double sparsity = context.sparsity.sparsity;
  ESPALIER_CHECK(
      sparsity == 0 || kept_count(positions, sparsity) == nnz, ErrorKind::usage,
      "[sparsity].sparsity = {} would keep {} of {} weights, and the given structure keeps {}; leave sparsity "
      "out",
      sparsity, kept_count(positions, sparsity), positions, nnz);
}

}  // namespace espalier
