// Transposes in registers, for AVX2 and AVX-512 alike: 8 x 8 floats and 4 x 4 doubles.
#pragma once

#include <immintrin.h>

namespace conv1d_ext {
namespace {

// dst[column * dst_stride + row] = src[row * src_stride + column] for a square of kSquare, column by column; rows from
// `rows` on are zero and their memory is not touched.
template <class T>
constexpr int kSquare = 32 / sizeof(T);

inline void transpose_square(const float* src, int64_t src_stride, int64_t rows, float* dst, int64_t dst_stride) {
  __m256 r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = i < rows ? _mm256_loadu_ps(src + i * src_stride) : _mm256_setzero_ps();
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
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + (i + 4) * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

inline void transpose_square(const double* src, int64_t src_stride, int64_t rows, double* dst, int64_t dst_stride) {
  __m256d r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) r[i] = i < rows ? _mm256_loadu_pd(src + i * src_stride) : _mm256_setzero_pd();
  const __m256d s0 = _mm256_unpacklo_pd(r[0], r[1]), s1 = _mm256_unpackhi_pd(r[0], r[1]);
  const __m256d s2 = _mm256_unpacklo_pd(r[2], r[3]), s3 = _mm256_unpackhi_pd(r[2], r[3]);
  _mm256_storeu_pd(dst, _mm256_permute2f128_pd(s0, s2, 0x20));
  _mm256_storeu_pd(dst + dst_stride, _mm256_permute2f128_pd(s1, s3, 0x20));
  _mm256_storeu_pd(dst + 2 * dst_stride, _mm256_permute2f128_pd(s0, s2, 0x31));
  _mm256_storeu_pd(dst + 3 * dst_stride, _mm256_permute2f128_pd(s1, s3, 0x31));
}

}  // namespace
}  // namespace conv1d_ext
