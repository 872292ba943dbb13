#include "nn/positions.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <atomic>

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
  std::atomic<std::int64_t> wrong{size_};  // the first one that is
  at::parallel_for(0, size_, 32768, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t p = begin_[i];
      if (p >= 0 && p < n && (i == 0 || p > begin_[i - 1])) continue;
      for (std::int64_t first = wrong; i < first && !wrong.compare_exchange_weak(first, i);) {
      }
      return;
    }
  });
  ESPALIER_CHECK(wrong == size_, ErrorKind::usage,
                 "{}: positions to {} must ascend within [0, {}); found {} at number {}", name, what, n, begin_[wrong],
                 wrong.load());
}

const std::vector<std::int64_t>& enough(const std::vector<std::int64_t>& positions, std::int64_t k,
                                        const std::string& name) {
  ESPALIER_CHECK(static_cast<std::int64_t>(positions.size()) == k, ErrorKind::usage,
                 "{}: {} positions to grow are asked for, {} are free", name, k, positions.size());
  return positions;
}

}  // namespace espalier
