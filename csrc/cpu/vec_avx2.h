// AVX2, FMA and F16C: 16 registers of 8 floats or 4 doubles.
#pragma once

#include <immintrin.h>

#include "cpu/scalar_inl.h"
#include "cpu/transpose_x86_inl.h"

namespace conv1d_ext {
namespace {

constexpr bool kMultipliesPairs = false;  // of bfloat16

// 6 rows x 2 vectors: 12 accumulators + 2 loads + 1 broadcast of 16 registers; 12 independent FMAs cover a latency of 4
// to 5 cycles on two ports.
constexpr int kTileRows = 6;
constexpr int kTileAccumulators = 12;
// Dot products: 8 sums + 2 vectors of b + 1 of a; 8 is what hides the latency.
constexpr int kDotRows = 4;
constexpr int kDotColumns = 2;
// Products of spectra, of two vectors each: 8 sums + 4 of b + 2 of a.
constexpr int kSpectrumRows = 2;
constexpr int kSpectrumColumns = 2;

struct F32 {
  static constexpr int kLanes = 8;
  __m256 v;
};
struct F64 {
  static constexpr int kLanes = 4;
  __m256d v;
};

inline F32 broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline F64 broadcast(double x) { return {_mm256_set1_pd(x)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F64 fma(F64 a, F64 b, F64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
inline F64 fnma(F64 a, F64 b, F64 c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F64 add(F64 a, F64 b) { return {_mm256_add_pd(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F64 sub(F64 a, F64 b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F64 mul(F64 a, F64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
// The elements of a and b taken turn by turn, and the reverse.
inline void split(F32 a, F32 b, F32* even, F32* odd) {
  const __m256 low = _mm256_permute2f128_ps(a.v, b.v, 0x20), high = _mm256_permute2f128_ps(a.v, b.v, 0x31);
  *even = {_mm256_shuffle_ps(low, high, 0x88)};
  *odd = {_mm256_shuffle_ps(low, high, 0xdd)};
}
inline void split(F64 a, F64 b, F64* even, F64* odd) {
  *even = {_mm256_permute4x64_pd(_mm256_unpacklo_pd(a.v, b.v), 0xd8)};
  *odd = {_mm256_permute4x64_pd(_mm256_unpackhi_pd(a.v, b.v), 0xd8)};
}
inline void zip(F32 even, F32 odd, F32* a, F32* b) {
  const __m256 low = _mm256_unpacklo_ps(even.v, odd.v), high = _mm256_unpackhi_ps(even.v, odd.v);
  *a = {_mm256_permute2f128_ps(low, high, 0x20)};
  *b = {_mm256_permute2f128_ps(low, high, 0x31)};
}
inline void zip(F64 even, F64 odd, F64* a, F64* b) {
  const __m256d low = _mm256_unpacklo_pd(even.v, odd.v), high = _mm256_unpackhi_pd(even.v, odd.v);
  *a = {_mm256_permute2f128_pd(low, high, 0x20)};
  *b = {_mm256_permute2f128_pd(low, high, 0x31)};
}
// The elements of a from the second on, then the first of b.
inline F32 shift_in(F32 a, F32 b) {
  const __m256i middle = _mm256_castps_si256(_mm256_permute2f128_ps(a.v, b.v, 0x21));
  return {_mm256_castsi256_ps(_mm256_alignr_epi8(middle, _mm256_castps_si256(a.v), 4))};
}
inline F64 shift_in(F64 a, F64 b) { return {_mm256_shuffle_pd(a.v, _mm256_permute2f128_pd(a.v, b.v, 0x21), 0x5)}; }
inline float sum(F32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline double sum(F64 a) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}

inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F64 load(const double* p) { return {_mm256_loadu_pd(p)}; }
inline F32 widen_bf16(__m128i x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))}; }
inline F32 load(const BFloat16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F32 load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

// The first n lanes, 0 <= n < kLanes; the others are zero and their memory is not touched.
inline F32 load_partial(const float* p, int64_t n) { return {_mm256_maskload_ps(p, mask32(n))}; }
inline F64 load_partial(const double* p, int64_t n) { return {_mm256_maskload_pd(p, mask64(n))}; }
template <class Half>
inline F32 load_partial(const Half* p, int64_t n) {
  Half lanes[8] = {};
  __builtin_memcpy(lanes, p, n * sizeof(Half));
  return load(lanes);
}

inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline void store(double* p, F64 a) { _mm256_storeu_pd(p, a.v); }
inline void store(BFloat16* p, F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan)), 16);
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
}
inline void store(Float16* p, F32 a) {
  const __m128i halves = _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
}
inline void store_partial(float* p, F32 a, int64_t n) { _mm256_maskstore_ps(p, mask32(n), a.v); }
inline void store_partial(double* p, F64 a, int64_t n) { _mm256_maskstore_pd(p, mask64(n), a.v); }
template <class Half>
inline void store_partial(Half* p, F32 a, int64_t n) {
  Half lanes[8];
  store(lanes, a);
  __builtin_memcpy(p, lanes, n * sizeof(Half));
}

}  // namespace
}  // namespace conv1d_ext
