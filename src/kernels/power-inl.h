// The text of the element-wise kernels, included once by the file of each instruction set, inside its own anonymous
// namespace. That file has defined kVectorBytes and square_root() for its vectors. Vectors are the compiler's generic
// ones (vector_size): loops left to the auto-vectoriser stayed scalar here (30x slower for a general alpha).
//
// The exponent alpha - 1 decides how |phi|^(alpha-1) is formed. Multiples of 1/4 up to 4 need only products and square
// roots, exact to a few ulp; anything else goes through 2^(p log2 x) in single precision with the large product p *
// exponent kept exact. x = 0 gives 0, and infinities and NaN pass through: a diverged weight must stay visible.

inline Vec<float> magnitude(Vec<float> x) { return reinterpret<Vec<float>>(reinterpret<Lanes<float>>(x) & 0x7fffffff); }
inline Vec<double> magnitude(Vec<double> x) {
  return reinterpret<Vec<double>>(reinterpret<Lanes<double>>(x) & 0x7fffffffffffffff);
}

/// Lane j is on where bit j of `bits` is.
template <class T>
inline Lanes<T> lanes_of(std::uint32_t bits) {
  Lanes<T> lane{};
  for (int j = 0; j < kLanes<T>; ++j) lane[j] = IntegerLike<T>{1} << j;
  const Lanes<T> all = Lanes<T>{} + static_cast<IntegerLike<T>>(bits);
  return (all & lane) != 0;
}

/// x -> x^(whole + quarters/4), x >= 0.
template <class T, int whole, int quarters>
struct QuarterPower {
  explicit QuarterPower(double) {}
  Vec<T> operator()(Vec<T> x) const {
    Vec<T> y = Vec<T>{} + 1;
    if constexpr (quarters != 0) {
      const Vec<T> root = square_root(x);
      if constexpr (quarters == 1) y = square_root(root);
      if constexpr (quarters == 2) y = root;
      if constexpr (quarters == 3) y = root * square_root(root);
    }
    for (int k = 0; k < whole; ++k) y *= x;
    return y;
  }
};

#ifndef ESPALIER_HAS_SCALE
/// x 2^n for whole n, x in [1/2, 2): in two factors, as n may leave the range of exponents.
inline Vec<float> times_power_of_two(Vec<float> x, Vec<float> whole) {
  using I = Vec<std::int32_t>;
  whole = whole < -252.0f ? Vec<float>{} - 252.0f : whole;  // below, 0 is what comes out
  whole = whole > 252.0f ? Vec<float>{} + 252.0f : whole;   // above, infinity
  const I n = __builtin_convertvector(whole, I);
  const I half = n >> 1;
  return x * reinterpret<Vec<float>>((half + 127) << 23) * reinterpret<Vec<float>>((n - half + 127) << 23);
}
#endif

/// 2^f for |f| <= 1/2: relative error 2.5e-9. By Estrin's scheme: latency, not operations, is what takes time.
inline Vec<float> two_to_fraction(Vec<float> f) {
  const Vec<float> f2 = f * f;
  return (f * 0.69314720670f + 1.0f) + ((f * 5.5503272267e-2f + 0.24022650922f) +
                                        ((f * 1.3400428178e-3f + 9.6180566785e-3f) + f2 * 1.546144469e-4f) * f2) *
                                           f2;
}

/// x -> x^p, any p > 0, x >= 0.
template <class T>
struct AnyPower;

template <>
struct AnyPower<double> {
  explicit AnyPower(double power) : p(power) {}
  Vec<double> operator()(Vec<double> x) const {
    for (int j = 0; j < kLanes<double>; ++j) x[j] = __builtin_pow(x[j], p);
    return x;
  }
  double p;
};

template <>
struct AnyPower<float> {
  using V = Vec<float>;
  using I = Vec<std::int32_t>;

  explicit AnyPower(double power) {
    power = std::min(power, 8192.0);  // beyond, p times an exponent would leave what is rounded right below
    const auto single = static_cast<float>(power);
    coarse = reinterpret<float>(reinterpret<std::int32_t>(single) & ~0x3fff);  // 10 bits: exact times a 9-bit exponent
    fine = static_cast<float>(power - static_cast<double>(coarse));
    whole = single;
  }

  V operator()(V x) const {
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)); a subnormal counts as the least normal number.
    const V normal = x < 0x1p-126f ? V{} + 0x1p-126f : x;
    const I shifted = reinterpret<I>(normal) - 0x3f3504f3;  // bits of sqrt(1/2)
    const V t = reinterpret<V>((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
    const V e = __builtin_convertvector(shifted >> 23, V);
    // log2(1 + t) = t times a polynomial, fitted at Chebyshev nodes: relative error 4.7e-9. By Estrin's scheme.
    const V t2 = t * t, t4 = t2 * t2;
    const V low = (t * -0.72134735448f + 1.44269504000f) + (t * -0.36069654181f + 0.48089852032f) * t2;
    const V middle = (t * -0.23960812191f + 0.28855256144f) + (t * -0.19138837657f + 0.20485764779f) * t2;
    const V high = (t * -0.10749789418f + 0.18476033365f) * (t4 * t4);
    const V log_m = (low + (middle * t4 + high)) * t;
    // p (e + log_m) = n + f with a whole n and |f| <= 1/2; adding 1.5 2^23 rounds to whole numbers
    const V large = e * coarse;  // exact
    const V small = e * fine + log_m * whole;
    const V n = ((large + small) + 0x1.8p23f) - 0x1.8p23f;
    const V f = (large - n) + small;
    const I plain = (x > 0.0f) & (x < __builtin_inff());
    return plain ? times_power_of_two(two_to_fraction(f), n) : x;  // 0, infinity and NaN
  }

  float coarse, fine, whole;
};

/// Calls body(power) with the functor for x -> x^(alpha-1).
template <class T, class Body>
void with_power(double alpha, const Body& body) {
  const double p = alpha - 1;
  const double quarters = p * 4;
  if (p <= 4 && quarters == static_cast<double>(static_cast<int>(quarters))) {
    switch (static_cast<int>(quarters)) {
#define ESPALIER_CASE(whole, quarter) \
  case 4 * whole + quarter: return body(QuarterPower<T, whole, quarter>(p))
      ESPALIER_CASE(0, 0);
      ESPALIER_CASE(0, 1);
      ESPALIER_CASE(0, 2);
      ESPALIER_CASE(0, 3);
      ESPALIER_CASE(1, 0);
      ESPALIER_CASE(1, 1);
      ESPALIER_CASE(1, 2);
      ESPALIER_CASE(1, 3);
      ESPALIER_CASE(2, 0);
      ESPALIER_CASE(2, 1);
      ESPALIER_CASE(2, 2);
      ESPALIER_CASE(2, 3);
      ESPALIER_CASE(3, 0);
      ESPALIER_CASE(3, 1);
      ESPALIER_CASE(3, 2);
      ESPALIER_CASE(3, 3);
      ESPALIER_CASE(4, 0);
#undef ESPALIER_CASE
      default: break;
    }
  }
  body(AnyPower<T>(p));
}

/// kLanes bits of a mask from position `first` on (a multiple of kLanes, which divides 64).
template <class T>
inline std::uint32_t bits_at(const std::uint64_t* mask, std::int64_t first) {
  if (mask == nullptr) return ~std::uint32_t{0};
  return static_cast<std::uint32_t>(mask[first >> 6] >> (first & 63));
}

/// Runs element(x, y, lanes of mask a, lanes of mask b) over [begin, end), one vector at a time. x is written back, y
/// too where `writes_y`. The last, partial vector goes through a buffer.
template <bool writes_y, class T, class Element>
inline void for_each(T* x, T* y, const std::uint64_t* a, const std::uint64_t* b, std::int64_t begin, std::int64_t end,
                     Element element) {
  std::int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    Vec<T> vx = load(x + i);
    Vec<T> vy = load(y + i);
    element(vx, vy, lanes_of<T>(bits_at<T>(a, i)), lanes_of<T>(bits_at<T>(b, i)));
    store(x + i, vx);
    if constexpr (writes_y) store(y + i, vy);
  }
  const auto left = static_cast<std::size_t>(end - i);
  if (left == 0) return;
  Vec<T> vx{};
  Vec<T> vy{};
  __builtin_memcpy(&vx, x + i, left * sizeof(T));
  __builtin_memcpy(&vy, y + i, left * sizeof(T));
  element(vx, vy, lanes_of<T>(bits_at<T>(a, i)), lanes_of<T>(bits_at<T>(b, i)));
  __builtin_memcpy(x + i, &vx, left * sizeof(T));
  if constexpr (writes_y) __builtin_memcpy(y + i, &vy, left * sizeof(T));
}

template <class T>
void push(const T* phi, const std::uint64_t* forward, double alpha, T* w, std::int64_t begin, std::int64_t end) {
  with_power<T>(alpha, [&](const auto power) {
    for_each<false>(
        w, const_cast<T*>(phi), forward, nullptr, begin, end,
        [&](Vec<T>& out, const Vec<T>& p, Lanes<T> f, Lanes<T>) { out = f ? p * power(magnitude(p)) : Vec<T>{}; });
  });
}

template <class T>
void pull(const T* phi, const std::uint64_t* backward, double alpha, double decay, T* g, std::int64_t begin,
          std::int64_t end) {
  const T a = static_cast<T>(alpha);
  const T d = static_cast<T>(decay);
  with_power<T>(alpha, [&](const auto power) {
    for_each<false>(g, const_cast<T*>(phi), backward, nullptr, begin, end,
                    [&](Vec<T>& grad, const Vec<T>& p, Lanes<T> b, Lanes<T>) {
                      const Vec<T> factor = power(magnitude(p));
                      grad = b ? (grad + p * factor * d) * (factor * a) : Vec<T>{};
                    });
  });
}

/// push, and power[i] = |phi[i]|^(alpha-1) for the pull of the next step.
template <class T>
void push_keeping_power(const T* phi, const std::uint64_t* forward, double alpha, T* w, T* power_out,
                        std::int64_t begin, std::int64_t end) {
  with_power<T>(alpha, [&](const auto power) {
    for_each<true>(power_out, w, forward, nullptr, begin, end,  // vectors come in order: p walks along
                   [&, p = phi + begin](Vec<T>& kept, Vec<T>& out, Lanes<T> f, Lanes<T>) mutable {
                     Vec<T> value{};
                     const auto count = std::min<std::int64_t>(kLanes<T>, phi + end - p);
                     if (count == kLanes<T>)
                       value = load(p);
                     else
                       __builtin_memcpy(&value, p, static_cast<std::size_t>(count) * sizeof(T));
                     p += count;
                     kept = power(magnitude(value));
                     out = f ? value * kept : Vec<T>{};
                   });
  });
}

/// pull, with the powers that push_keeping_power left. psi(phi) = phi * power.
template <class T>
void pull_with_power(const T* phi, const T* power, const std::uint64_t* backward, double alpha, double decay, T* g,
                     std::int64_t begin, std::int64_t end) {
  const T a = static_cast<T>(alpha);
  const T d = static_cast<T>(decay);
  if (decay == 0) {
    for_each<false>(
        g, const_cast<T*>(power), backward, nullptr, begin, end,
        [&](Vec<T>& grad, const Vec<T>& kept, Lanes<T> b, Lanes<T>) { grad = b ? grad * (kept * a) : Vec<T>{}; });
    return;
  }
  for (std::int64_t i = begin; i < end; ++i) g[i] += d * (phi[i] * power[i]);
  pull_with_power(phi, power, backward, alpha, 0, g, begin, end);
}

template <class T>
void target(T* phi, const std::uint64_t* forward, const std::uint64_t* backward, double alpha, T* w, std::int64_t begin,
            std::int64_t end) {
  const T a = static_cast<T>(alpha);
  with_power<T>(alpha, [&](const auto power) {
    for_each<true>(w, phi, forward, backward, begin, end, [&](Vec<T>& out, Vec<T>& p, Lanes<T> f, Lanes<T> b) {
      const Vec<T> factor = power(magnitude(p));
      const Vec<T> before = f ? p * factor : Vec<T>{};
      p = b ? p + (out - before) * (factor * a) : p;
      out = f ? p * power(magnitude(p)) : Vec<T>{};
    });
  });
}

template <class T>
void keep(T* x, const std::uint64_t* mask, const T* otherwise, std::int64_t begin, std::int64_t end) {
  if (otherwise == nullptr) {
    for_each<false>(x, x, mask, nullptr, begin, end,
                    [](Vec<T>& v, const Vec<T>&, Lanes<T> k, Lanes<T>) { v = k ? v : Vec<T>{}; });
  } else {
    for_each<false>(x, const_cast<T*>(otherwise), mask, nullptr, begin, end,
                    [](Vec<T>& v, const Vec<T>& other, Lanes<T> k, Lanes<T>) { v = k ? v : other; });
  }
}

template <class T>
constexpr PowerKernels<T> power_kernels() {
  return {&push<T>, &pull<T>, &push_keeping_power<T>, &pull_with_power<T>, &target<T>, &keep<T>};
}
