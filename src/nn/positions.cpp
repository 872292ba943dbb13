#include "nn/positions.h"

#include <torch/torch.h>

#include "espalier/core/error.h"

namespace espalier {

at::Tensor to_tensor(const std::vector<std::int64_t>& positions) { return torch::tensor(positions, torch::kInt64); }

std::vector<std::int64_t> checked(const at::Tensor& positions, std::int64_t n, const std::string& name,
                                  const char* what) {
  if (!positions.defined()) return {};
  ESPALIER_CHECK(positions.scalar_type() == at::kLong && positions.dim() == 1, ErrorKind::usage,
                 "{}: positions to {} must be a one-dimensional int64 tensor", name, what);
  const at::Tensor flat = positions.contiguous();
  const auto* p = flat.data_ptr<std::int64_t>();
  std::vector<std::int64_t> list(p, p + flat.numel());
  for (std::size_t i = 0; i < list.size(); ++i) {
    ESPALIER_CHECK(list[i] >= 0 && list[i] < n && (i == 0 || list[i] > list[i - 1]), ErrorKind::usage,
                   "{}: positions to {} must ascend within [0, {}); found {} at number {}", name, what, n, list[i], i);
  }
  return list;
}

const std::vector<std::int64_t>& enough(const std::vector<std::int64_t>& positions, std::int64_t k,
                                        const std::string& name) {
  ESPALIER_CHECK(static_cast<std::int64_t>(positions.size()) == k, ErrorKind::usage,
                 "{}: {} positions to grow are asked for, {} are free", name, k, positions.size());
  return positions;
}

}  // namespace espalier
