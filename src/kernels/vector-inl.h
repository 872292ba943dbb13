// Vec<T>: kVectorBytes bytes of T as one of the compiler's generic vectors. A trait for each type: an attribute on a
// dependent alias is dropped when a template argument is deduced from it.

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<std::int32_t> {
  typedef std::int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<std::int64_t> {
  typedef std::int64_t type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
using IntegerLike = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
/// Integers with the lanes of Vec<T>: -1 in a lane that a mask has, else 0.
template <class T>
using Lanes = Vec<IntegerLike<T>>;

/// The same bits as another type of the same size.
template <class To, class From>
inline To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

/// v in a register from here on. Without it gcc folds the load of v into each operation that uses it, and where loads
/// are the limit, the second one costs 10 %.
template <class T>
inline Vec<T> in_register(Vec<T> v) {
#ifdef ESPALIER_VECTOR_REGISTER
  asm("" : ESPALIER_VECTOR_REGISTER(v));
#endif
  return v;
}

/// p as one register from here on. Without it gcc puts the sum that p is into each address; an operation of two
/// registers and an address of two more is split into two.
template <class T>
inline const T* in_register(const T* p) {
  asm("" : "+r"(p));
  return p;
}

/// x in every lane. (0 + x would not do: it turns -0 into 0, so the compiler must really add.)
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Two vectors merged at a distance d (a power of two): lane j of near() is a[j] or b[j - d], lane j of far() is
// a[j + d] or b[j], by bit d of j. Transposing takes both for d = 1, 2, 4, ….

template <class T, int d, std::size_t... j>
inline Vec<T> near_lanes(Vec<T> a, Vec<T> b, std::index_sequence<j...>) {
  return __builtin_shufflevector(a, b, ((j & d) == 0 ? j : kLanes<T> + j - d)...);
}
template <class T, int d, std::size_t... j>
inline Vec<T> far_lanes(Vec<T> a, Vec<T> b, std::index_sequence<j...>) {
  return __builtin_shufflevector(a, b, ((j & d) == 0 ? j + d : kLanes<T> + j)...);
}
template <class T>
using EveryLane = std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>;

// Half the way of summing a and b across lanes, each one shuffle of every instruction set: halves of a and b merged,
// which added together have half as many terms of each as a and b had.

/// Lanes of 16 bytes: the first (half = 0) or second halves of a and b, by turns.
template <class T, int half, std::size_t... j>
inline Vec<T> alternating(Vec<T> a, Vec<T> b, std::index_sequence<j...>) {
  constexpr std::size_t part = 16 / sizeof(T);
  return __builtin_shufflevector(a, b, (j % 2 * kLanes<T> + j / part * part + half * part / 2 + j % part / 2)...);
}
/// Lanes of 16 bytes: the first or second half of a, then that of b.
template <class T, int half, std::size_t... j>
inline Vec<T> halves(Vec<T> a, Vec<T> b, std::index_sequence<j...>) {
  constexpr std::size_t part = 16 / sizeof(T), n = part / 2;
  return __builtin_shufflevector(a, b, (j / n % 2 * kLanes<T> + j / part * part + half * n + j % n)...);
}
/// Every second 16 bytes of a, then of b.
template <class T, int half, std::size_t... j>
inline Vec<T> every_second(Vec<T> a, Vec<T> b, std::index_sequence<j...>) {
  constexpr std::size_t part = 16 / sizeof(T);
  return __builtin_shufflevector(a, b, (j / part * 2 * part + half * part + j % part)...);
}

/// Lane j of the result is the sum of the lanes of v[j].
template <class T, int vectors = kLanes<T>>
inline Vec<T> sums_of(const Vec<T>* v) {
  if constexpr (vectors == 1) {
    return v[0];
  } else {
    constexpr int parts = kVectorBytes / 16;
    constexpr EveryLane<T> lanes;
    Vec<T> merged[vectors / 2];
#pragma GCC unroll 8
    for (int i = 0; i < vectors / 2; ++i) {
      const Vec<T> a = v[2 * i], b = v[2 * i + 1];
      if constexpr (vectors == kLanes<T>)
        merged[i] = alternating<T, 0>(a, b, lanes) + alternating<T, 1>(a, b, lanes);
      else if constexpr (vectors > parts)
        merged[i] = halves<T, 0>(a, b, lanes) + halves<T, 1>(a, b, lanes);
      else
        merged[i] = every_second<T, 0>(a, b, lanes) + every_second<T, 1>(a, b, lanes);
    }
    return sums_of<T, vectors / 2>(merged);
  }
}

/// Lane j of v[i] becomes lane i of v[j].
template <class T, int d = 1>
inline void transpose(Vec<T>* v) {
  if constexpr (d < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & d) != 0) continue;
      const Vec<T> a = v[i], b = v[i + d];
      v[i] = near_lanes<T, d>(a, b, EveryLane<T>{});
      v[i + d] = far_lanes<T, d>(a, b, EveryLane<T>{});
    }
    transpose<T, 2 * d>(v);
  }
}

/// Value i of `four(p)`, which is p[0 .. 3] again and again, in every lane: where loads are the limit, one load and
/// four shuffles take less than four loads.
template <class T, std::size_t i, std::size_t... j>
inline Vec<T> one_of_four(Vec<T> fours, std::index_sequence<j...>) {
  return __builtin_shufflevector(fours, fours, (j / 4 * 4 + i)...);
}
