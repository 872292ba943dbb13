// The text of the kernels of batch_norm.h, included once by the file of each instruction set after vector-inl.h.

constexpr int kBlockLanes = 16;
/// Sums side by side, so that additions need not wait for one another.
constexpr int kSumSets = kVectorBytes == 64 ? 2 : 1;

/// f(offset) for every block of 16 samples of a piece.
template <class F>
inline void each_block(const ChannelPiece& piece, std::int64_t channel, const F& f) {
  std::int64_t row = piece.offset + channel * piece.channel_stride;
  for (std::int64_t r = 0; r < piece.rows; ++r, row += piece.row_stride) {
    for (std::int64_t b = 0; b < piece.blocks; ++b) f(row + b * kBlockLanes);
  }
}

#ifndef ESPALIER_HAS_WIDENED
template <class Half>
inline Vec<double> widened(Half x) {
  return __builtin_convertvector(x, Vec<double>);
}
#endif

/// Half of the lanes, from `first` on, in double.
template <int first, std::size_t... j>
inline Vec<double> widened_from(Vec<float> x, std::index_sequence<j...>) {
  return widened(__builtin_shufflevector(x, x, (first + j)...));
}

/// Sums over the 16 lanes of blocks, side by side.
template <class T>
using BlockSums = Vec<T>[kSumSets][kBlockLanes / kLanes<T>];

/// The same, over many blocks, in double precision.
struct LaneTotals {
  Vec<double> sum[kBlockLanes / kLanes<double>] = {};

  void add(int v, Vec<double> x) { sum[v] += x; }
  void add(int v, Vec<float> x) {
    sum[2 * v] += widened_from<0>(x, EveryLane<double>{});
    sum[2 * v + 1] += widened_from<kLanes<double>>(x, EveryLane<double>{});
  }
  /// The sum of the first `valid` lanes.
  double total(int valid) const {
    double result = 0;
    for (int lane = 0; lane < valid; ++lane) result += sum[lane / kLanes<double>][lane % kLanes<double>];
    return result;
  }
};

/// Blocks whose sums are formed in T before they go on in double precision: widening each took as long as all the rest.
/// A sum of m terms in T is wrong by at most m / kSumSets roundings of the sum of their magnitudes.
constexpr int kFewBlocks = 32;

/// Sums of several quantities over a piece: add(sums, set, offset) adds a block to BlockSums<T> sums[quantities].
template <class T, int quantities, class F>
inline void sum_piece(const ChannelPiece& piece, std::int64_t channel, LaneTotals* totals, const F& add) {
  BlockSums<T> few[quantities] = {};
  const auto widen = [&] {
    for (int q = 0; q < quantities; ++q) {
      for (int v = 0; v < kBlockLanes / kLanes<T>; ++v) {
        Vec<T> sum = few[q][0][v];
        for (int set = 1; set < kSumSets; ++set) sum += few[q][set][v];
        totals[q].add(v, sum);
        for (int set = 0; set < kSumSets; ++set) few[q][set][v] = Vec<T>{};
      }
    }
  };
  std::int64_t held = 0;
  std::int64_t row = piece.offset + channel * piece.channel_stride;
  for (std::int64_t r = 0; r < piece.rows; ++r, row += piece.row_stride) {
    for (std::int64_t b = 0; b < piece.blocks;) {
      const std::int64_t end = std::min(piece.blocks, b + kFewBlocks - held);
      held += end - b;
      for (; b + kSumSets <= end; b += kSumSets) {
#pragma GCC unroll 2
        for (int set = 0; set < kSumSets; ++set) add(few, set, row + (b + set) * kBlockLanes);
      }
      for (; b < end; ++b) add(few, 0, row + b * kBlockLanes);
      if (held == kFewBlocks) {
        widen();
        held = 0;
      }
    }
  }
  widen();
}

/// The same over the valid samples of a channel. Full pieces share their totals.
template <class T, int quantities, class F>
inline void sum_channel(const Channel& c, double* totals, const F& add) {
  LaneTotals full[quantities];
  for (int q = 0; q < quantities; ++q) totals[q] = 0;
  for (std::int64_t i = 0; i < c.count; ++i) {
    const ChannelPiece& piece = c.pieces[i];
    if (piece.valid == kBlockLanes) {
      sum_piece<T, quantities>(piece, c.channel, full, add);
    } else {
      LaneTotals ragged[quantities];
      sum_piece<T, quantities>(piece, c.channel, ragged, add);
      for (int q = 0; q < quantities; ++q) totals[q] += ragged[q].total(piece.valid);
    }
  }
  for (int q = 0; q < quantities; ++q) totals[q] += full[q].total(kBlockLanes);
}

/// The same in every use, so that backward finds the zeros that forward made.
template <class T>
inline Vec<T> normalised(Vec<T> x, const ChannelScale<T>& by) {
  return (x - by.mean) * by.scale + by.bias;
}

template <class T, bool relu>
inline Vec<T> through_relu(Vec<T> x, Vec<T> dy, const ChannelScale<T>& by) {
  if constexpr (relu) return normalised(x, by) <= T(0) ? Vec<T>{} : dy;
  return dy;
}

/// Something near the mean: that of the middle row of the first piece.
template <class T>
inline T guessed_mean(const T* x, const Channel& channel) {
  if (channel.count == 0) return T(0);
  const ChannelPiece& piece = channel.pieces[0];
  const T* row = x + piece.offset + channel.channel * piece.channel_stride + piece.rows / 2 * piece.row_stride;
  T sum[kBlockLanes] = {};
  for (std::int64_t b = 0; b < piece.blocks; ++b) {
    for (int lane = 0; lane < piece.valid; ++lane) sum[lane] += row[b * kBlockLanes + lane];
  }
  T total = 0;
  for (const T lane : sum) total += lane;
  return total / static_cast<T>(piece.blocks * piece.valid);
}

/// One pass, over differences d from a guess: mean = guess + mean d, variance = mean d^2 - (mean d)^2. A guess farther
/// than a deviation from the mean loses digits in that difference, so then a second pass starts from the mean.
template <class T>
void channel_moments(const T* x, const Channel& channel, double* mean, double* variance) {
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    n += channel.pieces[i].rows * channel.pieces[i].blocks * channel.pieces[i].valid;
  }
  T guess = guessed_mean(x, channel);
  for (int pass = 0; pass < 2; ++pass) {
    double sums[2];
    sum_channel<T, 2>(channel, sums, [&](BlockSums<T>* few, int set, std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes / kLanes<T>; ++v) {
        const Vec<T> d = load(x + at + v * kLanes<T>) - guess;
        few[0][set][v] += d;
        few[1][set][v] += d * d;
      }
    });
    const double off = sums[0] / static_cast<double>(n), square = sums[1] / static_cast<double>(n);
    *mean = static_cast<double>(guess) + off;
    *variance = std::max(square - off * off, 0.0);  // NaN stays NaN
    if (!(off * off > *variance)) break;
    guess = static_cast<T>(*mean);
  }
}

template <class T, bool relu, bool summand>
inline void normalise_channel(const T* x, const Channel& channel, const ChannelScale<T>& scale, const T* r, T* y) {
  const ChannelScale<T> by = scale;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    each_block(channel.pieces[i], channel.channel, [&](std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes; v += kLanes<T>) {
        Vec<T> out = normalised(load(x + at + v), by);
        if constexpr (summand) out += load(r + at + v);
        store(y + at + v, relu ? (out < T(0) ? Vec<T>{} : out) : out);  // NaN stays NaN
      }
    });
  }
}
template <class T>
void normalise(const T* x, const Channel& channel, const ChannelScale<T>& by, T* y) {
  by.relu ? normalise_channel<T, true, false>(x, channel, by, nullptr, y)
          : normalise_channel<T, false, false>(x, channel, by, nullptr, y);
}
template <class T>
void normalise_add(const T* x, const Channel& channel, const ChannelScale<T>& by, const T* summand, T* y) {
  by.relu ? normalise_channel<T, true, true>(x, channel, by, summand, y)
          : normalise_channel<T, false, true>(x, channel, by, summand, y);
}

/// gradient(offset, x there) -> g
template <class T, class F>
inline void sum_gradients(const T* x, const Channel& channel, T mean, double* sum, double* product, const F& gradient) {
  double totals[2];
  sum_channel<T, 2>(channel, totals, [&](BlockSums<T>* few, int set, std::int64_t at) {
#pragma GCC unroll 8
    for (int v = 0; v < kBlockLanes / kLanes<T>; ++v) {
      const Vec<T> in = load(x + at + v * kLanes<T>);
      const Vec<T> g = gradient(at + v * kLanes<T>, in);
      few[0][set][v] += g;
      few[1][set][v] += g * (in - mean);
    }
  });
  *sum = totals[0];
  *product = totals[1];
}
template <class T>
void gradient_sums(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& scale, double* sum,
                   double* product) {
  const ChannelScale<T> by = scale;
  const auto sums = [&](auto relu) {
    sum_gradients(x, channel, by.mean, sum, product,
                  [&](std::int64_t at, Vec<T> in) { return through_relu<T, relu>(in, load(dy + at), by); });
  };
  by.relu ? sums(std::true_type{}) : sums(std::false_type{});
}
template <class T>
void masked_gradient_sums(const T* x, const T* y, const T* dy, const Channel& channel, T mean, T* g, double* sum,
                          double* product) {
  sum_gradients(x, channel, mean, sum, product, [&](std::int64_t at, Vec<T>) {
    const Vec<T> through = load(y + at) <= T(0) ? Vec<T>{} : load(dy + at);
    store(g + at, through);
    return through;
  });
}

template <class T, bool relu, bool add>
inline void channel_gradient(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& scale, T level,
                             T slope, T* dx) {
  const ChannelScale<T> by = scale;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    const ChannelPiece& piece = channel.pieces[i];
    each_block(piece, channel.channel, [&](std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes; v += kLanes<T>) {
        const Vec<T> in = load(x + at + v);
        const Vec<T> g = through_relu<T, relu>(in, load(dy + at + v), by);
        Vec<T> out = (g - level - (in - by.mean) * slope) * by.scale;
        if constexpr (add) out += load(dx + at + v);
        store(dx + at + v, out);
      }
      for (int lane = piece.valid; lane < kBlockLanes; ++lane) dx[at + lane] = 0;
    });
  }
}
template <class T>
void input_gradient(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& by, T level, T slope,
                    bool add, T* dx) {
  const auto with = [&](auto relu) {
    add ? channel_gradient<T, relu, true>(x, dy, channel, by, level, slope, dx)
        : channel_gradient<T, relu, false>(x, dy, channel, by, level, slope, dx);
  };
  by.relu ? with(std::true_type{}) : with(std::false_type{});
}

template <class T>
constexpr BatchNormKernels<T> batch_norm_kernels() {
  return {&channel_moments<T>,      &normalise<T>,     &normalise_add<T>, &gradient_sums<T>,
          &masked_gradient_sums<T>, &input_gradient<T>};
}
