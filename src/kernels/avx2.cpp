// AVX2 and FMA. This file alone is compiled with their flags: nothing but its table may leave it.
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/tables.h"

namespace espalier::kernels {
namespace {

constexpr int kVectorBytes = 32;
#define ESPALIER_VECTOR_REGISTER "+x"
#include "kernels/vector-inl.h"

inline Vec<float> square_root(Vec<float> x) { return (Vec<float>)_mm256_sqrt_ps((__m256)x); }
inline Vec<double> square_root(Vec<double> x) { return (Vec<double>)_mm256_sqrt_pd((__m256d)x); }

#define ESPALIER_HAS_FOUR 1
inline Vec<float> four(const float* p) { return (Vec<float>)_mm256_broadcast_ps((const __m128*)p); }
inline Vec<double> four(const double* p) { return load(p); }

#include "kernels/table-inl.h"

bool runs_here() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
         __builtin_cpu_supports("bmi2") != 0;
}

}  // namespace

const Table k_avx2_table = make_table("avx2", &runs_here);

}  // namespace espalier::kernels
