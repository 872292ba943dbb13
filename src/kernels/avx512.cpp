// AVX-512 F, BW, DQ and VL. This file alone is compiled with their flags: nothing but its table may leave it.
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

constexpr int kVectorBytes = 64;
#define ESPALIER_VECTOR_REGISTER "+v"
#include "kernels/vector-inl.h"

// The zero-masking form: the plain one reads an undefined register, of which gcc 12 warns.
inline Vec<float> square_root(Vec<float> x) { return (Vec<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }
inline Vec<double> square_root(Vec<double> x) { return (Vec<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x); }

#define ESPALIER_HAS_SCALE 1
inline Vec<float> times_power_of_two(Vec<float> x, Vec<float> n) {
  return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)n);
}

#define ESPALIER_HAS_WIDENED 1
/// gcc 12 makes of its own conversion two of half a vector each.
inline Vec<double> widened(__m256 half) { return (Vec<double>)_mm512_maskz_cvtps_pd(0xff, half); }

#define ESPALIER_HAS_FOUR 1
inline Vec<float> four(const float* p) { return (Vec<float>)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p)); }
inline Vec<double> four(const double* p) { return (Vec<double>)_mm512_maskz_broadcast_f64x4(0xff, _mm256_loadu_pd(p)); }

#include "kernels/table-inl.h"

bool runs_here() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}

}  // namespace

const Table k_avx512_table = make_table("avx512", &runs_here);

}  // namespace espalier::kernels
