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
