// The portable table: generic 16-byte vectors, which every compiler turns into what the target offers.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/tables.h"

namespace espalier::kernels {
namespace {

constexpr int kVectorBytes = 16;
#include "kernels/vector-inl.h"

template <class V>
inline V roots(V x) {
  for (std::size_t j = 0; j < sizeof(V) / sizeof(x[0]); ++j) x[j] = std::sqrt(x[j]);
  return x;
}
inline Vec<float> square_root(Vec<float> x) { return roots(x); }
inline Vec<double> square_root(Vec<double> x) { return roots(x); }

#include "kernels/table-inl.h"

bool runs_here() { return true; }

}  // namespace

const Table k_scalar_table = make_table("scalar", &runs_here);

}  // namespace espalier::kernels
