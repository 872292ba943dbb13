#include "nn/positions.h"

#include <torch/torch.h>

#include "espalier/core/error.h"

namespace espalier {

at::Tensor to_tensor(const std::vector<std::int64_t>& positions) { return torch::tensor(positions, torch::kInt64); }

Positions::Positions(const at::Tensor& positions, std::int64_t n, const std::string& name, const char* what) {
  if (!positions.defined()) return;
  ESPALIER_CHECK(positions.scalar_type() == at::kLong && positions.dim() == 1, ErrorKind::usage,
                 "{}: positions to {} must be a one-dimensional int64 tensor", name, what);
  flat_ = positions.contiguous();
  begin_ = flat_.data_ptr<std::int64_t>();
  size_ = flat_.numel();
  for (std::int64_t i = 0; i < size_; ++i) {
    const std::int64_t p = begin_[i];
    ESPALIER_CHECK(p >= 0 && p < n && (i == 0 || p > begin_[i - 1]), ErrorKind::usage,
                   "{}: positions to {} must ascend within [0, {}); found {} at number {}", name, what, n, p, i);
  }
}

const std::vector<std::int64_t>& enough(const std::vector<std::int64_t>& positions, std::int64_t k,
                                        const std::string& name) {
  ESPALIER_CHECK(static_cast<std::int64_t>(positions.size()) == k, ErrorKind::usage,
                 "{}: {} positions to grow are asked for, {} are free", name, k, positions.size());
  return positions;
}

}  // namespace espalier
