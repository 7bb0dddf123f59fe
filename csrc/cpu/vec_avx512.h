// AVX-512 (F, BW, VL, DQ): 32 registers of 16 floats or 8 doubles; with BF16, dot products of pairs of bfloat16.
#pragma once

#include <immintrin.h>

// GCC 12 warns of its own intrinsics: their "undefined" vectors are initialised with themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "cpu/scalar_inl.h"
#include "cpu/transpose_x86_inl.h"

namespace conv1d_ext {
namespace {

// 8 rows x 3 vectors: 24 accumulators + 3 loads + 1 broadcast of 32 registers. 24 independent FMAs cover a latency of 4
// cycles on two ports three times over; per step 3 loads and 8 broadcasts feed 24 FMAs.
constexpr int kTileRows = 8;
constexpr int kTileAccumulators = 24;
// Dot products: 24 sums + 4 vectors of b + 1 of a.
constexpr int kDotRows = 6;
constexpr int kDotColumns = 4;
// Products of spectra, of two vectors each: 18 sums + 6 of b + 2 of a.
constexpr int kSpectrumRows = 3;
constexpr int kSpectrumColumns = 3;

struct F32 {
  static constexpr int kLanes = 16;
  __m512 v;
};
struct F64 {
  static constexpr int kLanes = 8;
  __m512d v;
};

inline __mmask16 first16(int64_t n) { return __mmask16((1u << n) - 1u); }
inline __mmask8 first8(int64_t n) { return __mmask8((1u << n) - 1u); }

inline F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F64 broadcast(double x) { return {_mm512_set1_pd(x)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F64 fma(F64 a, F64 b, F64 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
inline F64 fnma(F64 a, F64 b, F64 c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
#ifdef __AVX512BF16__
constexpr bool kMultipliesPairs = true;
// Each lane of a and b holds two bfloat16: c + a0 * b0 + a1 * b1.
inline F32 fma_pairs(F32 a, F32 b, F32 c) {
  return {_mm512_dpbf16_ps(c.v, __m512bh(_mm512_castps_si512(a.v)), __m512bh(_mm512_castps_si512(b.v)))};
}
// The upper halves of two rows of floats, as pairs.
inline F32 make_pairs(F32 even, F32 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
  return {_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_castps_si512(odd.v)))};
}
// Elements that lie side by side, as pairs; the first n < 2 * kLanes of them, and zeros.
inline F32 load_pairs(const BFloat16* p) { return {_mm512_castsi512_ps(_mm512_loadu_si512(p))}; }
inline F32 load_pairs_partial(const BFloat16* p, int64_t n) {
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(__mmask32((1u << n) - 1u), p))};
}
// The order that makes pairs of `pairs` x 2 runs of `taps` elements, side by side: element by element of two runs.
struct PairOrder {
  __m512i v;
};
inline PairOrder pair_order(BFloat16, int64_t pairs, int64_t taps) {
  alignas(64) uint16_t from[2 * F32::kLanes] = {};
  for (int64_t i = 0; i < pairs * taps && i < F32::kLanes; ++i) {
    const int64_t even = i / taps * 2 * taps + i % taps;
    from[2 * i] = uint16_t(even);
    from[2 * i + 1] = uint16_t(even + taps);
  }
  return {_mm512_load_si512(from)};
}
inline F32 permute(F32 pairs, PairOrder order) {
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order.v, _mm512_castps_si512(pairs.v)))};
}
// For each lane one of 64 elements, which two vectors hold: of even channels and of odd ones.
struct PairPicks {
  __m512i v;
};
inline PairPicks pair_picks(const BFloat16*, const uint16_t* from, int64_t n) {
  const __m512i elements = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1u), from));
  return {_mm512_or_si512(elements, _mm512_slli_epi32(elements, 16))};
}
inline F32 pick_pairs(F32 even, F32 more_even, F32 odd, F32 more_odd, PairPicks picks) {
  const auto pick = [&](F32 low, F32 high) {
    return _mm512_permutex2var_epi16(_mm512_castps_si512(low.v), picks.v, _mm512_castps_si512(high.v));
  };
  return {_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, pick(even, more_even), pick(odd, more_odd)))};
}
#else
constexpr bool kMultipliesPairs = false;
#endif
inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F64 add(F64 a, F64 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F64 sub(F64 a, F64 b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F64 mul(F64 a, F64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
// The elements of a and b taken turn by turn, and the reverse.
inline void split(F32 a, F32 b, F32* even, F32* odd) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *even = {_mm512_permutex2var_ps(a.v, first, b.v)};
  *odd = {_mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b.v)};
}
inline void split(F64 a, F64 b, F64* even, F64* odd) {
  const __m512i first = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  *even = {_mm512_permutex2var_pd(a.v, first, b.v)};
  *odd = {_mm512_permutex2var_pd(a.v, _mm512_add_epi64(first, _mm512_set1_epi64(1)), b.v)};
}
inline void zip(F32 even, F32 odd, F32* a, F32* b) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *a = {_mm512_permutex2var_ps(even.v, first, odd.v)};
  *b = {_mm512_permutex2var_ps(even.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd.v)};
}
inline void zip(F64 even, F64 odd, F64* a, F64* b) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  *a = {_mm512_permutex2var_pd(even.v, first, odd.v)};
  *b = {_mm512_permutex2var_pd(even.v, _mm512_add_epi64(first, _mm512_set1_epi64(4)), odd.v)};
}
// The elements of a from the second on, then the first of b.
inline F32 shift_in(F32 a, F32 b) {
  const __m512i from_second = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
  return {_mm512_permutex2var_ps(a.v, from_second, b.v)};
}
inline F64 shift_in(F64 a, F64 b) {
  return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(1, 2, 3, 4, 5, 6, 7, 8), b.v)};
}
// Keeps a vector in its register, where compilers would rather load it again for each use.
inline F32 held(F32 a) {
  asm("" : "+v"(a.v));
  return a;
}
inline F64 held(F64 a) {
  asm("" : "+v"(a.v));
  return a;
}
inline float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
inline double sum(F64 a) { return _mm512_reduce_add_pd(a.v); }

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F64 load(const double* p) { return {_mm512_loadu_pd(p)}; }
inline F32 widen_bf16(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }
inline F32 load(const BFloat16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F32 load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

// The first n lanes, 0 <= n < kLanes; the others are zero and their memory is not touched.
inline F32 load_partial(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first16(n), p)}; }
inline F64 load_partial(const double* p, int64_t n) { return {_mm512_maskz_loadu_pd(first8(n), p)}; }
inline F32 load_partial(const BFloat16* p, int64_t n) { return widen_bf16(_mm256_maskz_loadu_epi16(first16(n), p)); }
inline F32 load_partial(const Float16* p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(n), p))};
}

// dst[i] = src[i * stride] for as many i < count as come in whole vectors, of which nothing is read behind the last
// element; returns how many. For each vector of dst, `stride` vectors of src are permuted: 2.5 times as fast as one by
// one with stride 5, 1.6 times with stride 8.
inline int64_t copy_strided(const float* src, int64_t stride, int64_t count, float* dst) {
  if (stride < 2 || stride > 8) return 0;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i from = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int32_t(stride)));
  __mmask16 lanes[8];  // that come from each of the vectors
  for (int v = 0; v < 8; ++v) lanes[v] = _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(from, 4), _mm512_set1_epi32(v));
  int64_t i = 0;
  for (; i + 16 < count; i += 16, src += 16 * stride) {
    __m512 elements = _mm512_permutexvar_ps(from, _mm512_loadu_ps(src));
    for (int64_t v = 1; v < stride; ++v) {
      elements = _mm512_mask_permutexvar_ps(elements, lanes[v], from, _mm512_loadu_ps(src + 16 * v));
    }
    _mm512_storeu_ps(dst + i, elements);
  }
  return i;
}

inline __m256i narrow_bf16(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
inline __m256i narrow_fp16(F32 a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline void store(double* p, F64 a) { _mm512_storeu_pd(p, a.v); }
inline void store(BFloat16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a)); }
inline void store(Float16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_fp16(a)); }
inline void store_partial(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, first16(n), a.v); }
inline void store_partial(double* p, F64 a, int64_t n) { _mm512_mask_storeu_pd(p, first8(n), a.v); }
inline void store_partial(BFloat16* p, F32 a, int64_t n) { _mm256_mask_storeu_epi16(p, first16(n), narrow_bf16(a)); }
inline void store_partial(Float16* p, F32 a, int64_t n) { _mm256_mask_storeu_epi16(p, first16(n), narrow_fp16(a)); }

}  // namespace
}  // namespace conv1d_ext
