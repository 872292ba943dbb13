/// Softmax and cross-entropy of a batch, and its gradient, in one pass over each row of logits while it is in L1.
#pragma once

#include <cstdint>

namespace espalier::kernels {

template <class T>
struct CrossEntropyKernels {
  /// Rows [begin, end) of logits x [rows, classes], which lie one after the other, with targets
  /// q = (1 - smoothing) onehot(label) + smoothing / classes:
  ///   loss[r] = log sum_c e^x[r,c] - sum_c q[r,c] x[r,c],
  ///   gradient[r,c] = scale (softmax(x[r])[c] - q[r,c]), unless null.
  /// A NaN or a positive infinity among the logits of a row makes its loss NaN.
  void (*cross_entropy)(const T* logits, const std::int64_t* labels, std::int64_t classes, double smoothing,
                        double scale, T* gradient, double* loss, std::int64_t begin, std::int64_t end);
};

}  // namespace espalier::kernels
