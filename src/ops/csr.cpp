#include "espalier/ops/csr.h"

#include <torch/torch.h>

#include <algorithm>

#include "ops/dispatch_type.h"

namespace espalier::ops {
namespace {

/// Entries that a thread takes at least.
constexpr std::int64_t kMovedEntries = 32768;

/// f(from, to) on the contiguous entries of `tensor` and of a new one of its size, which is the result.
template <class F>
at::Tensor permuted(const at::Tensor& tensor, const kernels::EntryIndices& place, const F& f) {
  ESPALIER_ASSERT(tensor.dim() == 1 && tensor.numel() == static_cast<std::int64_t>(place.size()));
  const at::Tensor from = tensor.detach().contiguous();
  at::Tensor to = at::empty_like(from);
  with_type(from, [&](auto zero) {
    using T = decltype(zero);
    const T* source = from.data_ptr<T>();
    T* target = to.data_ptr<T>();
    at::parallel_for(0, from.numel(), kMovedEntries, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) f(source, target, i, place[static_cast<std::size_t>(i)]);
    });
  });
  return to;
}

void check_indices(const at::Tensor& indices, const char* what, const std::string& name, ErrorKind kind) {
  ESPALIER_CHECK(indices.defined() && indices.scalar_type() == at::kLong && indices.dim() == 1 &&
                     indices.layout() == at::kStrided && indices.device().is_cpu(),
                 kind, "{}: {} must be a one-dimensional int64 tensor on the CPU; found {}", name, what,
                 indices.defined() ? fmt::format("{} [{}] on {}", c10::toString(indices.scalar_type()),
                                                 fmt::join(indices.sizes(), ", "), indices.device().str())
                                   : "none");
}

}  // namespace

Csr csr_of(const kernels::RowMajorList& list) {
  const auto wide = [](const auto& numbers) {
    at::Tensor out = at::empty({static_cast<std::int64_t>(numbers.size())}, at::kLong);
    std::copy(numbers.begin(), numbers.end(), out.data_ptr<std::int64_t>());
    return out;
  };
  return {wide(list.start), wide(list.column)};
}

kernels::RowMajorList list_of(const Csr& csr, std::int64_t rows, std::int64_t columns, const std::string& name,
                              ErrorKind kind) {
  check_indices(csr.crow_indices, "crow_indices", name, kind);
  check_indices(csr.col_indices, "col_indices", name, kind);
  ESPALIER_CHECK(csr.crow_indices.numel() == rows + 1, kind,
                 "{}: crow_indices has {} entries; a matrix [{}, {}] needs {}", name, csr.crow_indices.numel(), rows,
                 columns, rows + 1);
  const at::Tensor crow = csr.crow_indices.contiguous(), col = csr.col_indices.contiguous();
  const auto* start = crow.data_ptr<std::int64_t>();
  const auto* column = col.data_ptr<std::int64_t>();
  const std::int64_t nnz = col.numel();
  ESPALIER_CHECK(start[0] == 0 && start[rows] == nnz, kind,
                 "{}: crow_indices begins with {} and ends with {}; expected 0 and the number of col_indices, {}", name,
                 start[0], start[rows], nnz);
  for (std::int64_t r = 0; r < rows; ++r) {  // before any row is read
    ESPALIER_CHECK(start[r] <= start[r + 1], kind, "{}: crow_indices must not descend; found {} before {} at row {}",
                   name, start[r], start[r + 1], r);
  }
  ESPALIER_CHECK(nnz <= kernels::kMostEntries, kind, "{}: {} entries; compressed storage holds at most {} a layer",
                 name, nnz, kernels::kMostEntries);
  kernels::RowMajorList list;
  list.start.assign(start, start + rows + 1);
  list.column.resize(static_cast<std::size_t>(nnz));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = start[r]; k < start[r + 1]; ++k) {
      ESPALIER_CHECK(column[k] >= 0 && column[k] < columns && (k == start[r] || column[k] > column[k - 1]), kind,
                     "{}: the col_indices of a row must ascend within [0, {}); found {} at number {}, in row {}", name,
                     columns, column[k], k, r);
      list.column[static_cast<std::size_t>(k)] = static_cast<std::uint32_t>(column[k]);
    }
  }
  return list;
}

at::Tensor to_canonical(const at::Tensor& row_major, const kernels::EntryIndices& place) {
  return permuted(row_major, place,
                  [](const auto* from, auto* to, std::int64_t i, std::uint32_t at) { to[at] = from[i]; });
}

at::Tensor from_canonical(const at::Tensor& canonical, const kernels::EntryIndices& place) {
  return permuted(canonical, place,
                  [](const auto* from, auto* to, std::int64_t i, std::uint32_t at) { to[i] = from[at]; });
}

}  // namespace espalier::ops
