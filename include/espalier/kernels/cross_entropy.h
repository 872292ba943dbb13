/// Softmax and cross-entropy of a batch, and its gradient, in one pass over each row of logits while it is in L1, or
/// over a batch tile, some classes of all its samples at a time.
#pragma once

#include <cstdint>

namespace espalier::kernels {

template <class T>
struct CrossEntropyKernels {
  /// Rows [begin, end) of logits x [rows, classes], which lie one after the other, with targets
  /// q = (1 - smoothing) onehot(label) + smoothing / classes:
  ///   loss[r] = log sum_c e^x[r,c] - sum_c q[r,c] x[r,c],
  ///   gradient[r,c] = scale (softmax(x[r])[c] - q[r,c]), unless null.
  ///   correct[r] = whether the label is the first class whose logit none exceeds, 0 or 1.
  /// A NaN or a positive infinity among the logits of a row makes its loss NaN.
  void (*cross_entropy)(const T* logits, const std::int64_t* labels, std::int64_t classes, double smoothing,
                        double scale, T* gradient, double* loss, std::uint8_t* correct, std::int64_t begin,
                        std::int64_t end);
  /// The same for lanes [begin, end) of a tile [classes, lanes] (sparse_linear.h), begin and end multiples of
  /// kLaneStep. labels, loss and correct are of its `samples`; in the lanes behind these the gradient is zero.
  void (*cross_entropy_of_tile)(const T* tile, int lanes, const std::int64_t* labels, int samples, std::int64_t classes,
                                double smoothing, double scale, T* gradient, double* loss, std::uint8_t* correct,
                                int begin, int end);
};

}  // namespace espalier::kernels
