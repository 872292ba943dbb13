// Sets of positions as tensors and as numbers; private to nn/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace espalier {

at::Tensor to_tensor(const std::vector<std::int64_t>& positions);

/// The positions as numbers, checked to be int64, one-dimensional, ascending and within [0, n). An undefined tensor is
/// the empty set.
std::vector<std::int64_t> checked(const at::Tensor& positions, std::int64_t n, const std::string& name,
                                  const char* what);

/// `positions` if there are k of them. Throws Error(usage) otherwise.
const std::vector<std::int64_t>& enough(const std::vector<std::int64_t>& positions, std::int64_t k,
                                        const std::string& name);

}  // namespace espalier
