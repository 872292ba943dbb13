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

template <class T>
void cross_entropy(const T* logits, const std::int64_t* labels, std::int64_t classes, double smoothing, double scale,
                   T* gradient, double* loss, std::int64_t begin, std::int64_t end) {
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
    Vec<T> sums{};
    each_vector_of_row<T>(classes, [&](const auto& e) {
      const Vec<T> power = exponential(load_filled(e, x, -infinity) - largest);
      sums += power;
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
    if (g == nullptr) continue;
    const T factor = static_cast<T>(scale / sum), off = static_cast<T>(scale * others);
    each_vector_of_row<T>(classes, [&](const auto& e) { e.store(g, e.load(g) * factor - off); });
    g[label] = static_cast<T>(static_cast<double>(g[label]) - scale * (1 - smoothing));
  }
}

template <class T>
constexpr CrossEntropyKernels<T> cross_entropy_kernels() {
  return {&cross_entropy<T>};
}
