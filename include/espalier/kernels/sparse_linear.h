/// Products with a compressed weight: y = w x, dx = w^T dy, dw = (dy x^T) at the kept entries.
///
/// Activations are batch tiles: `lanes` samples innermost, so feature f of sample s stands at tile[f * lanes + s].
/// `lanes` is a multiple of 16, at most 64; a ragged tile is padded. Vectors run over samples: each kept entry is one
/// broadcast and one fused multiply-add a vector. All sums are formed in a fixed order, whatever the split over
/// threads. Tiles are aligned to 64 bytes (unaligned ones are right, at half the speed). Nothing is checked or
/// allocated here.
#pragma once

#include <cstdint>

#include "espalier/kernels/compressed.h"

namespace espalier::kernels {

constexpr int kTileLanes = 64;  ///< samples of a full tile
constexpr int kLaneStep = 16;   ///< a ragged tile is padded to a multiple

template <class T>
struct SparseLinearKernels {
  /// y[r] = bias[r] + sum_k w[r,k] x[k], and max(0, .) of it where `relu`, for the rows and columns of a part: its
  /// first block writes bias and products, others add theirs, the last one takes the maximum. bias may be null. values:
  /// those of the forward side from the part's first entry on.
  void (*forward)(const CompressedSide& side, const SidePart& part, const T* values, const T* bias, const T* x, T* y,
                  bool relu, int lanes);

  /// Columns of chunks [chunk_begin, chunk_end): dx[c] = sum_r w[r,c] dy[r], unless dx is null; dvalues[k] (+)=
  /// <dy[r], x[c]> over the samples of `tiles` tiles, which follow one another: added where `accumulate`, else written.
  /// Where `of_relu`, x is max(0, z) and dx becomes the gradient of z: 0 where x is not positive.
  /// values, dvalues: [nnz], canonical order.
  void (*backward)(const CompressedSide& side, const T* values, const T* x, const T* dy, T* dx, T* dvalues,
                   bool accumulate, bool of_relu, int tiles, int lanes, std::int64_t chunk_begin,
                   std::int64_t chunk_end);

  /// dbias[r] (+)= sum over the samples of dy[r], rows [row_begin, row_end).
  void (*row_sums)(const T* dy, T* dbias, bool accumulate, int lanes, std::int64_t row_begin, std::int64_t row_end);

  /// dz[r] = dy[r] where y[r] > 0, else 0, and the sums of dz as above, unless dbias is null; rows [row_begin,
  /// row_end). dz may be dy.
  void (*relu_gradient)(const T* y, const T* dy, T* dz, T* dbias, bool accumulate, int lanes, std::int64_t row_begin,
                        std::int64_t row_end);

  /// Rows of a [samples, features] matrix (row stride `stride`) into a tile, and back; lanes from `samples` on are set
  /// to zero. Features [begin, end).
  void (*to_tile)(const T* rows, std::int64_t stride, int samples, T* tile, int lanes, std::int64_t begin,
                  std::int64_t end);
  void (*from_tile)(const T* tile, int lanes, T* rows, std::int64_t stride, int samples, std::int64_t begin,
                    std::int64_t end);
};

}  // namespace espalier::kernels
