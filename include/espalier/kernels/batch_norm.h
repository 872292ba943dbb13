/// Batch norm (Ioffe and Szegedy 2015) in batch tiles, one channel a call:
///
///     y = (x - mean) invstd weight + bias (+ summand),   and max(0, y) where ReLU is fused,
///
/// with mean and variance over all samples and pixels of the channel. A channel is a list of pieces, so images and
/// vectors run through the same text. Sums are formed in a fixed order, over a few dozen values a lane in T, over these
/// in double precision. Nothing is checked or allocated here.
#pragma once

#include <cstdint>

namespace espalier::kernels {

/// Rows of blocks of 16 samples, of which the first `valid` count: the others are padding.
struct ChannelPiece {
  std::int64_t offset = 0;          ///< of the first row of channel 0, in entries
  std::int64_t channel_stride = 0;  ///< from a channel to the next
  std::int64_t rows = 0, row_stride = 0;
  std::int64_t blocks = 0;  ///< of a row
  int valid = 0;
};

struct Channel {
  const ChannelPiece* pieces = nullptr;
  std::int64_t count = 0;
  std::int64_t channel = 0;
};

/// What a channel is normalised with; scale = weight * invstd.
template <class T>
struct ChannelScale {
  T mean, scale, bias;
  bool relu;
};

template <class T>
struct BatchNormKernels {
  /// mean, and the mean of the squared differences from it.
  void (*moments)(const T* x, const Channel& channel, double* mean, double* variance);

  void (*normalise)(const T* x, const Channel& channel, const ChannelScale<T>& by, T* y);

  /// The same of a sum. summand, like y: laid out as x.
  void (*normalise_add)(const T* x, const Channel& channel, const ChannelScale<T>& by, const T* summand, T* y);

  // With g = dy, or y > 0 ? dy : 0 where ReLU is fused (y is formed anew: the same bits):

  /// sum = sum g, product = sum g (x - mean)
  void (*gradient_sums)(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& by, double* sum,
                        double* product);

  /// The same sums behind the ReLU of a sum: g = y > 0 ? dy : 0, which is written, over dy if it is the same.
  void (*masked_gradient_sums)(const T* x, const T* y, const T* dy, const Channel& channel, T mean, T* g, double* sum,
                               double* product);

  /// dx = (g - level - slope (x - mean)) scale, added to what is there where `add`; zero in padding. g is dy, through
  /// the ReLU where `by` has one; dx may be dy.
  void (*input_gradient)(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& by, T level, T slope,
                         bool add, T* dx);
};

}  // namespace espalier::kernels
