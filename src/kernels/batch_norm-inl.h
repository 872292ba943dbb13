// The text of the kernels of batch_norm.h, included once by the file of each instruction set after vector-inl.h.

constexpr int kBlockLanes = 16;
/// Sums side by side, so that additions need not wait for one another.
constexpr int kSumSets = kVectorBytes == 64 ? 2 : 1;

/// f(set, offset) for every block of 16 samples of a piece.
template <int sets, class F>
inline void each_block(const ChannelPiece& piece, std::int64_t channel, const F& f) {
  std::int64_t row = piece.offset + channel * piece.channel_stride;
  for (std::int64_t r = 0; r < piece.rows; ++r, row += piece.row_stride) {
    std::int64_t b = 0;
    for (; b + sets <= piece.blocks; b += sets) {
#pragma GCC unroll 2
      for (int s = 0; s < sets; ++s) f(s, row + (b + s) * kBlockLanes);
    }
    for (; b < piece.blocks; ++b) f(0, row + b * kBlockLanes);
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

/// Sums of blocks of 16 lanes in double precision.
struct LaneSums {
  static constexpr int kVectors = kBlockLanes / kLanes<double>;
  Vec<double> sum[kSumSets][kVectors] = {};

  /// f(vector of doubles) -> what is added, for vector v of a block.
  template <class F>
  void add(int set, int v, Vec<double> x, const F& f) {
    sum[set][v] += f(x);
  }
  template <class F>
  void add(int set, int v, Vec<float> x, const F& f) {
    sum[set][2 * v] += f(widened_from<0>(x, EveryLane<double>{}));
    sum[set][2 * v + 1] += f(widened_from<kLanes<double>>(x, EveryLane<double>{}));
  }
  /// The sum of the first `valid` lanes.
  double total(int valid) const {
    double result = 0;
    for (int lane = 0; lane < valid; ++lane) {
      for (int set = 0; set < kSumSets; ++set) result += sum[set][lane / kLanes<double>][lane % kLanes<double>];
    }
    return result;
  }
};

/// Sums over the valid samples of a channel: add(sums, set, offset) adds a block. Full pieces share their sums.
template <int quantities, class F>
inline void sum_channel(const Channel& c, double* totals, const F& add) {
  LaneSums full[quantities];
  for (int q = 0; q < quantities; ++q) totals[q] = 0;
  for (std::int64_t i = 0; i < c.count; ++i) {
    const ChannelPiece& piece = c.pieces[i];
    if (piece.valid == kBlockLanes) {
      each_block<kSumSets>(piece, c.channel, [&](int set, std::int64_t at) { add(full, set, at); });
    } else {
      LaneSums ragged[quantities];
      each_block<kSumSets>(piece, c.channel, [&](int set, std::int64_t at) { add(ragged, set, at); });
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

template <class T>
void channel_moments(const T* x, const Channel& channel, double* mean, double* variance) {
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    n += channel.pieces[i].rows * channel.pieces[i].blocks * channel.pieces[i].valid;
  }
  const auto sum_of = [&](const auto& f) {
    double total = 0;
    sum_channel<1>(channel, &total, [&](LaneSums* sums, int set, std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes / kLanes<T>; ++v) sums[0].add(set, v, load(x + at + v * kLanes<T>), f);
    });
    return total / static_cast<double>(n);
  };
  const double m = sum_of([](Vec<double> v) { return v; });
  *mean = m;
  *variance = sum_of([m](Vec<double> v) { return (v - m) * (v - m); });
}

template <class T, bool relu>
inline void normalise_channel(const T* x, const Channel& channel, const ChannelScale<T>& scale, T* y) {
  const ChannelScale<T> by = scale;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    each_block<1>(channel.pieces[i], channel.channel, [&](int, std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes; v += kLanes<T>) {
        const Vec<T> out = normalised(load(x + at + v), by);
        store(y + at + v, relu ? (out < T(0) ? Vec<T>{} : out) : out);  // NaN stays NaN
      }
    });
  }
}
template <class T>
void normalise(const T* x, const Channel& channel, const ChannelScale<T>& by, T* y) {
  by.relu ? normalise_channel<T, true>(x, channel, by, y) : normalise_channel<T, false>(x, channel, by, y);
}

template <class T, bool relu>
inline void sum_gradients(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& scale,
                          double* totals) {
  const ChannelScale<T> by = scale;
  const auto itself = [](Vec<double> v) { return v; };
  sum_channel<2>(channel, totals, [&](LaneSums* sums, int set, std::int64_t at) {
#pragma GCC unroll 8
    for (int v = 0; v < kBlockLanes / kLanes<T>; ++v) {
      const Vec<T> in = load(x + at + v * kLanes<T>);
      const Vec<T> g = through_relu<T, relu>(in, load(dy + at + v * kLanes<T>), by);
      sums[0].add(set, v, g, itself);
      sums[1].add(set, v, g * (in - by.mean), itself);
    }
  });
}
template <class T>
void gradient_sums(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& by, double* sum,
                   double* product) {
  double totals[2];
  by.relu ? sum_gradients<T, true>(x, dy, channel, by, totals) : sum_gradients<T, false>(x, dy, channel, by, totals);
  *sum = totals[0];
  *product = totals[1];
}

template <class T, bool relu>
inline void channel_gradient(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& scale, T level,
                             T slope, T* dx) {
  const ChannelScale<T> by = scale;
  for (std::int64_t i = 0; i < channel.count; ++i) {
    const ChannelPiece& piece = channel.pieces[i];
    each_block<1>(piece, channel.channel, [&](int, std::int64_t at) {
#pragma GCC unroll 8
      for (int v = 0; v < kBlockLanes; v += kLanes<T>) {
        const Vec<T> in = load(x + at + v);
        const Vec<T> g = through_relu<T, relu>(in, load(dy + at + v), by);
        store(dx + at + v, (g - level - (in - by.mean) * slope) * by.scale);
      }
      for (int lane = piece.valid; lane < kBlockLanes; ++lane) dx[at + lane] = 0;
    });
  }
}
template <class T>
void input_gradient(const T* x, const T* dy, const Channel& channel, const ChannelScale<T>& by, T level, T slope,
                    T* dx) {
  by.relu ? channel_gradient<T, true>(x, dy, channel, by, level, slope, dx)
          : channel_gradient<T, false>(x, dy, channel, by, level, slope, dx);
}

template <class T>
constexpr BatchNormKernels<T> batch_norm_kernels() {
  return {&channel_moments<T>, &normalise<T>, &gradient_sums<T>, &input_gradient<T>};
}
