// The text of the kernel of cross_entropy.h, included after power-inl.h.

/// e^x for x <= 0, within 3 ulp; NaN for NaN.
inline Vec<float> exponential(Vec<float> x) {
  using V = Vec<float>;
  constexpr float kLeast = -103.98f;  // below, 0 is nearest
  const V inside = x > kLeast ? x : V{} + kLeast;
  // x = n ln 2 + r with |r| <= ln 2 / 2; n ln 2 from a part that is exact times n, and the rest
  const V n = (inside * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  const V r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;
  const V power = times_power_of_two(two_to_fraction(r * 1.44269504f), n);
  return x > kLeast ? power : (x == x ? V{} : x);
}
inline Vec<double> exponential(Vec<double> x) {
  for (int j = 0; j < kLanes<double>; ++j) x[j] = __builtin_exp(x[j]);
  return x;
}

/// f(entries, lanes) for the vectors of a row of n: whole ones, and the part of one at its end.
template <class T, class F>
inline void each_vector_of_row(std::int64_t n, const F& f) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) f(Entries<T, true>{i, kLanes<T>});
  if (i < n) f(Entries<T, false>{i, static_cast<std::size_t>(n - i)});
}

/// Like e.load(from), with `fill` in the lanes past the end of the row.
template <class T, bool whole>
inline Vec<T> load_filled(const Entries<T, whole>& e, const T* from, T fill) {
  if constexpr (whole) return e.load(from);
  Vec<T> v = Vec<T>{} + fill;
  __builtin_memcpy(&v, from + e.at, e.count * sizeof(T));
  return v;
}

template <class T>
inline double sum_of_lanes(Vec<T> v) {
  double sum = 0;
  for (int j = 0; j < kLanes<T>; ++j) sum += static_cast<double>(v[j]);
  return sum;
}

/// Is x[label], which none exceeds, the first of `ties` classes with this logit?
template <class T>
inline bool is_first(const T* x, std::int64_t label, double ties) {
  for (std::int64_t c = 0; ties > 1 && c < label; ++c)
    if (x[c] == x[label]) return false;
  return true;
}

template <class T>
void cross_entropy(const T* logits, const std::int64_t* labels, std::int64_t classes, double smoothing, double scale,
                   T* gradient, double* loss, std::uint8_t* correct, std::int64_t begin, std::int64_t end) {
  const T infinity = static_cast<T>(__builtin_inf());
  const double others = smoothing / static_cast<double>(classes);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* const x = logits + row * classes;
    T* const g = gradient != nullptr ? gradient + row * classes : nullptr;
    Vec<T> most = Vec<T>{} - infinity;
    each_vector_of_row<T>(classes, [&](const auto& e) {
      const Vec<T> v = load_filled(e, x, -infinity);
      most = v > most ? v : most;
    });
    T largest = most[0];
    for (int j = 1; j < kLanes<T>; ++j) largest = most[j] > largest ? most[j] : largest;
    Vec<T> sums{}, ties{};
    each_vector_of_row<T>(classes, [&](const auto& e) {
      const Vec<T> v = load_filled(e, x, -infinity);
      const Vec<T> power = exponential(v - largest);
      sums += power;
      ties += v == largest ? Vec<T>{} + T(1) : Vec<T>{};
      if (g != nullptr) e.store(g, power);
    });
    const double sum = sum_of_lanes<T>(sums);
    const std::int64_t label = labels[row];
    double target = (1 - smoothing) * static_cast<double>(x[label]);
    if (smoothing != 0) {
      double all = 0;
      for (std::int64_t c = 0; c < classes; ++c) all += static_cast<double>(x[c]);
      target += others * all;
    }
    loss[row] = static_cast<double>(largest) + __builtin_log(sum) - target;
    correct[row] = x[label] == largest && is_first(x, label, sum_of_lanes<T>(ties)) ? 1 : 0;
    if (g == nullptr) continue;
    const T factor = static_cast<T>(scale / sum), off = static_cast<T>(scale * others);
    each_vector_of_row<T>(classes, [&](const auto& e) { e.store(g, e.load(g) * factor - off); });
    g[label] = static_cast<T>(static_cast<double>(g[label]) - scale * (1 - smoothing));
  }
}

/// What is known of each lane after some of the classes.
template <class T>
struct LaneSums {
  T largest[kTileLanes];   // of the logits; powers and their sums are taken against it
  T first[kTileLanes];     // class that has it, as a number of this type: exact below 2^24
  double sum[kTileLanes];  // of the powers
  double all[kTileLanes];  // of the logits, where they are smoothed
};

/// Classes [from, to) of the vector that begins at this lane. Leaves e^(logit - largest so far) in g, unless that is
/// null.
template <class T>
inline void add_classes(const T* x, T* g, int lanes, std::int64_t from, std::int64_t to, bool smooth, int lane,
                        LaneSums<T>& sums) {
  const Vec<T> none = Vec<T>{} - static_cast<T>(__builtin_inf()), one = Vec<T>{} + T(1);
  const Vec<T> before = load(sums.largest + lane);
  Vec<T> most[4] = {before, none, none, none};  // a maximum waits for the one before
  const auto raise = [&](Vec<T>& m, std::int64_t c) {
    const Vec<T> v = load(x + c * lanes + lane);
    m = v > m ? v : m;
  };
  std::int64_t c = from;
  for (; c + 4 <= to; c += 4)
    for (int i = 0; i < 4; ++i) raise(most[i], c + i);
  for (; c < to; ++c) raise(most[0], c);
  for (int i = 1; i < 4; ++i) most[0] = most[i] > most[0] ? most[i] : most[0];
  const Vec<T> largest = most[0], shift = largest == none ? Vec<T>{} : largest;
  store(sums.largest + lane, largest);
  for (c = from; smooth && c < to; ++c)
    for (int j = 0; j < kLanes<T>; ++j) sums.all[lane + j] += static_cast<double>(x[c * lanes + lane + j]);

  const Vec<T> carried = before == largest ? one : exponential(before - shift);
  for (int j = 0; j < kLanes<T>; ++j) sums.sum[lane + j] *= static_cast<double>(carried[j]);
  Vec<T> first = before == largest ? load(sums.first + lane) : -none;
  Vec<T> number = Vec<T>{} + static_cast<T>(from);
  constexpr std::int64_t kTogether = 32;  // powers that are summed in T; those sums, in double
  for (std::int64_t part = from; part < to; part += kTogether) {
    Vec<T> powers{};
    for (c = part; c < std::min(to, part + kTogether); ++c) {
      const Vec<T> v = load(x + c * lanes + lane);
      __builtin_prefetch(x + (c + to - from) * lanes + lane);  // of the next block
      const Vec<T> power = exponential(v - shift);
      powers += power;
      const Vec<T> here = v == largest ? number : -none;
      first = here < first ? here : first;
      number += one;
      if (g != nullptr) store(g + c * lanes + lane, power);
    }
    for (int j = 0; j < kLanes<T>; ++j) sums.sum[lane + j] += static_cast<double>(powers[j]);
  }
  store(sums.first + lane, first);
}

/// Powers are taken against the largest logit so far, a block of classes at a time: so each logit is read once, and the
/// last pass, over the gradient, makes good for what has become larger since.
template <class T>
void cross_entropy_of_tile(const T* tile, int lanes, const std::int64_t* labels, int samples, std::int64_t classes,
                           double smoothing, double scale, T* gradient, double* loss, std::uint8_t* correct, int begin,
                           int end) {
  const int last = std::min(samples, end);
  T of_label[kTileLanes];
  for (int j = begin; j < last; ++j) of_label[j] = tile[labels[j] * lanes + j];
  LaneSums<T> sums;
  for (int j = begin; j < end; ++j) {
    sums.largest[j] = -static_cast<T>(__builtin_inf());
    sums.first[j] = static_cast<T>(__builtin_inf());
    sums.sum[j] = sums.all[j] = 0;
  }
  constexpr std::int64_t kBlocks = 64, kClasses = 64;  // at most; classes that go through L1 together, at least
  const std::int64_t block = std::max(kClasses, (classes + kBlocks - 1) / kBlocks);
  T largest_then[kBlocks][kTileLanes];
  for (std::int64_t c = 0, b = 0; c < classes; c += block, ++b) {
    for (int first = begin; first < end; first += kLanes<T>) {
      add_classes(tile, gradient, lanes, c, std::min(classes, c + block), smoothing != 0, first, sums);
    }
    std::copy(sums.largest + begin, sums.largest + end, largest_then[b] + begin);
  }

  const double others = smoothing / static_cast<double>(classes);
  T factor[kTileLanes] = {}, off[kTileLanes] = {};  // zero behind the samples
  for (int j = begin; j < last; ++j) {
    const double target = (1 - smoothing) * static_cast<double>(of_label[j]) + others * sums.all[j];
    loss[j] = static_cast<double>(sums.largest[j]) + __builtin_log(sums.sum[j]) - target;
    correct[j] = sums.first[j] == static_cast<T>(labels[j]) ? 1 : 0;
    factor[j] = static_cast<T>(scale / sums.sum[j]);
    off[j] = static_cast<T>(scale * others);
  }
  if (gradient == nullptr) return;
  for (std::int64_t from = 0, b = 0; from < classes; from += block, ++b) {
    T of_block[kTileLanes];
    for (int j = begin; j < end; j += kLanes<T>) {
      const Vec<T> then = load(largest_then[b] + j), now = load(sums.largest + j);
      store(of_block + j, load(factor + j) * (then == now ? Vec<T>{} + T(1) : exponential(then - now)));
    }
    for (std::int64_t c = from; c < std::min(classes, from + block); ++c) {
      for (int j = begin; j < end; j += kLanes<T>) {
        T* const g = gradient + c * lanes + j;
        store(g, load(g) * load(of_block + j) - load(off + j));
      }
    }
  }
  for (int j = begin; j < last; ++j) {
    T& g = gradient[labels[j] * lanes + j];
    g = static_cast<T>(static_cast<double>(g) - scale * (1 - smoothing));
  }
}

template <class T>
constexpr CrossEntropyKernels<T> cross_entropy_kernels() {
  return {&cross_entropy<T>, &cross_entropy_of_tile<T>};
}
