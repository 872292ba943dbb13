// Sets of positions as tensors and as numbers; private to nn/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace espalier {

at::Tensor to_tensor(const std::vector<std::int64_t>& positions);

/// Positions as numbers, without a copy where the tensor is contiguous.
class Positions {
 public:
  /// Checked to be int64, one-dimensional, ascending and within [0, n). An undefined tensor is the empty set.
  Positions(const at::Tensor& positions, std::int64_t n, const std::string& name, const char* what);

  const std::int64_t* begin() const { return begin_; }
  const std::int64_t* end() const { return begin_ + size_; }
  std::int64_t size() const { return size_; }
  std::int64_t operator[](std::int64_t i) const { return begin_[i]; }

 private:
  at::Tensor flat_;
  const std::int64_t* begin_ = nullptr;
  std::int64_t size_ = 0;
};

/// `positions` if there are k of them. Throws Error(usage) otherwise.
const std::vector<std::int64_t>& enough(const std::vector<std::int64_t>& positions, std::int64_t k,
                                        const std::string& name);

}  // namespace espalier
