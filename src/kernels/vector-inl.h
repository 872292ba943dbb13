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
// a[j + d] or b[j], by bit d of j. Transposing takes both for d = 1, 2, 4, …; adding them instead sums across lanes.

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

/// Lane j of the result is the sum of the lanes of v[j].
template <class T, int d = 1>
inline Vec<T> sums_of(const Vec<T>* v) {
  if constexpr (d == kLanes<T>) {
    return v[0];
  } else {
    Vec<T> merged[kLanes<T> / d / 2];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T> / d / 2; ++i) {
      merged[i] = near_lanes<T, d>(v[2 * i], v[2 * i + 1], EveryLane<T>{}) +
                  far_lanes<T, d>(v[2 * i], v[2 * i + 1], EveryLane<T>{});
    }
    return sums_of<T, 2 * d>(merged);
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
