// Transposes in registers, for AVX2 and AVX-512 alike: 8 x 8 floats and 4 x 4 doubles.
#pragma once

#include <immintrin.h>

namespace conv1d_ext {
namespace {

// A window of these tables is a mask for the first n lanes.
alignas(64) constexpr int32_t kMask32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(64) constexpr int64_t kMask64[8] = {-1, -1, -1, -1};
inline __m256i mask32(int64_t n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask32 + 8 - n)); }
inline __m256i mask64(int64_t n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask64 + 4 - n)); }

// dst[column * dst_stride + row] = src[row * src_stride + column] for a square of kSquare, column by column. Rows from
// `rows` on are zero, columns from `columns` on are not written; neither is read.
template <class T>
constexpr int kSquare = 32 / sizeof(T);

inline void transpose_square(
    const float* src, int64_t src_stride, int64_t rows, int64_t columns, float* dst, int64_t dst_stride) {
  __m256 r[8], s[8];
  if (columns == 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = i < rows ? _mm256_loadu_ps(src + i * src_stride) : _mm256_setzero_ps();
  } else {
    const __m256i mask = mask32(columns);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = i < rows ? _mm256_maskload_ps(src + i * src_stride, mask) : _mm256_setzero_ps();
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {  // pairs of rows
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // fours
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if (i < columns) {
      const __m256 column = i < 4 ? _mm256_permute2f128_ps(r[i % 4], r[i % 4 + 4], 0x20)
                                  : _mm256_permute2f128_ps(r[i % 4], r[i % 4 + 4], 0x31);
      _mm256_storeu_ps(dst + i * dst_stride, column);
    }
  }
}

inline void transpose_square(
    const double* src, int64_t src_stride, int64_t rows, int64_t columns, double* dst, int64_t dst_stride) {
  __m256d r[4];
  const __m256i mask = mask64(columns);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = i >= rows      ? _mm256_setzero_pd()
           : columns == 4 ? _mm256_loadu_pd(src + i * src_stride)
                          : _mm256_maskload_pd(src + i * src_stride, mask);
  }
  const __m256d s[4] = {
      _mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]), _mm256_unpacklo_pd(r[2], r[3]),
      _mm256_unpackhi_pd(r[2], r[3])};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (i < columns) {
      const __m256d column = i < 2 ? _mm256_permute2f128_pd(s[i % 2], s[i % 2 + 2], 0x20)
                                   : _mm256_permute2f128_pd(s[i % 2], s[i % 2 + 2], 0x31);
      _mm256_storeu_pd(dst + i * dst_stride, column);
    }
  }
}

}  // namespace
}  // namespace conv1d_ext
