// Sparse products of other libraries, where CMake found them. Private to bench/.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace espalier::bench {

/// y = w x with the weight already packed, which is not counted.
struct SparsePeer {
  std::string name;
  std::function<void()> run;
  at::Tensor y;  ///< [out, batch]
};

/// w [out, in], mostly zeros; x [in, batch]; float32, contiguous. On at::get_num_threads() threads.
std::vector<SparsePeer> sparse_peers(const at::Tensor& w, const at::Tensor& x);

}  // namespace espalier::bench
