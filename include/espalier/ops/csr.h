/// A sparse matrix as torch's CSR has it, and the way between its order of entries, row-major, and the canonical one of
/// compressed weights (kernels/compressed.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/kernels/compressed.h"

namespace espalier::ops {

/// int64 on the CPU: crow_indices [rows + 1], col_indices [nnz]. The columns of row r are col_indices[crow_indices[r]]
/// to col_indices[crow_indices[r + 1] - 1], ascending.
struct Csr {
  at::Tensor crow_indices, col_indices;
};

Csr csr_of(const kernels::RowMajorList& list);

/// The inverse. Throws Error(kind) that begins with `name` unless these are the rows of a matrix [rows, columns] with
/// at most kernels::kMostEntries entries.
kernels::RowMajorList list_of(const Csr& csr, std::int64_t rows, std::int64_t columns, const std::string& name,
                              ErrorKind kind);

/// canonical[place[i]] = row_major[i], with the places that `compress` and `row_major` give. [nnz], float32 or float64;
/// outside autograd, like its inverse.
at::Tensor to_canonical(const at::Tensor& row_major, const kernels::EntryIndices& place);
at::Tensor from_canonical(const at::Tensor& canonical, const kernels::EntryIndices& place);

}  // namespace espalier::ops
