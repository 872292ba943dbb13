#include "bench/rows.h"

#include <torch/torch.h>

#include "espalier/core/error.h"

namespace espalier::bench {

double rounding(double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); }

double error_share(const at::Tensor& found, const at::Tensor& reference, const at::Tensor& bound) {
  const at::Tensor off = (found.detach().to(torch::kDouble) - reference).abs();
  return (off / bound.clamp_min(1e-300)).where(off > 0, torch::zeros_like(off)).max().item<double>();
}

void verified(Row& row, double error) {
  ESPALIER_CHECK(
      error <= 1, ErrorKind::check,
      "bench: {} {} batch {} sparsity {}: the {} pass is off the reference by {:.3g} times the rounding bound; "
      "nothing was timed",
      row.what, row.shape, row.batch, row.sparsity, row.pass, error);
  row.error = error;
}

void add_sparse(Row& row, const Timing& timing, double stored_products, double dense_products) {
  row.sparse = timing;
  row.sparse_gflops = 2e-3 * stored_products / timing.median;
  row.dense_equivalent_gflops = 2e-3 * dense_products / timing.median;
}

at::Tensor scattered(const kernels::Compressed& matrix, const at::Tensor& values, at::IntArrayRef sizes) {
  std::vector<std::int64_t> positions;
  kernels::EntryIndices place;
  kernels::row_major(matrix, positions, place, at::get_num_threads());
  const auto order = torch::tensor(std::vector<std::int64_t>(place.begin(), place.end()), torch::kInt64);
  const at::Tensor dense = torch::zeros(sizes, values.options());
  dense.view({-1}).index_put_({torch::tensor(positions, torch::kInt64)}, values.index_select(0, order));
  return dense;
}

void add_dense(Row& row, const std::vector<Named>& ways) {
  for (const Named& way : ways) {
    if (row.dense_path.empty() || way.us < row.dense_us) {
      row.dense_us = way.us;
      row.dense_path = way.path;
    }
    row.peers[way.path] = way.us;
  }
}

void add_beside(Row& row, const Named& peer) {
  row.peers[peer.path] = peer.us;
  row.beside.push_back(peer.path);
}

}  // namespace espalier::bench
