/// A sparse matrix as torch's CSR has it, and the way between its order of entries, row-major, and the canonical one of
/// compressed weights (kernels/compressed.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/error.h"

namespace espalier::ops {

/// int64 on the CPU: crow_indices [rows + 1], col_indices [nnz]. The columns of row r are col_indices[crow_indices[r]]
/// to col_indices[crow_indices[r + 1] - 1], ascending.
struct Csr {
  at::Tensor crow_indices, col_indices;
};

/// positions: int64 [nnz], flat row-major indices into rows x columns, ascending.
Csr csr_of(const at::Tensor& positions, std::int64_t rows, std::int64_t columns);

/// The inverse. Throws Error(kind) that begins with `name` unless these are the rows of a matrix [rows, columns].
std::vector<std::int64_t> positions_of(const Csr& csr, std::int64_t rows, std::int64_t columns, const std::string& name,
                                       ErrorKind kind);

/// canonical[place[i]] = row_major[i], with the places that `compress` and `row_major` give. [nnz], float32 or float64;
/// outside autograd, like its inverse.
at::Tensor to_canonical(const at::Tensor& row_major, const std::vector<std::uint32_t>& place);
at::Tensor from_canonical(const at::Tensor& canonical, const std::vector<std::uint32_t>& place);

}  // namespace espalier::ops
