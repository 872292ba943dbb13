/// Every table of kernels that this CPU runs: tests go through all of them.
#pragma once

#include <vector>

#include "espalier/kernels/dispatch.h"

namespace espalier::kernels {

inline std::vector<const Table*> runnable() {
  std::vector<const Table*> tables;
  for (const Table* t : compiled())
    if (t->runs_here()) tables.push_back(t);
  return tables;
}

}  // namespace espalier::kernels
