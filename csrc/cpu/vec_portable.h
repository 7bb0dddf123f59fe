// Vectors of 16 bytes in the compiler's own vector extension: SSE2 on x86-64, NEON on Arm, scalar code elsewhere.
#pragma once

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

constexpr bool kMultipliesPairs = false;  // of bfloat16

// 4 rows x 2 vectors: 8 accumulators + 2 loads + 1 broadcast of the 16 registers that SSE2 has; a multiplication and an
// addition need a register between them.
constexpr int kTileRows = 4;
constexpr int kTileAccumulators = 8;
// Dot products: 8 sums + 2 vectors of b + 1 of a.
constexpr int kDotRows = 4;
constexpr int kDotColumns = 2;
// Products of spectra, of two vectors each: 4 sums + 2 of b + 2 of a, and the products.
constexpr int kSpectrumRows = 2;
constexpr int kSpectrumColumns = 1;

typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));

struct F32 {
  static constexpr int kLanes = 4;
  Floats v;
};
struct F64 {
  static constexpr int kLanes = 2;
  Doubles v;
};

inline F32 broadcast(float x) { return {Floats{x, x, x, x}}; }
inline F64 broadcast(double x) { return {Doubles{x, x}}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
inline F64 fma(F64 a, F64 b, F64 c) { return {a.v * b.v + c.v}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {c.v - a.v * b.v}; }  // c - a * b
inline F64 fnma(F64 a, F64 b, F64 c) { return {c.v - a.v * b.v}; }
inline F32 add(F32 a, F32 b) { return {a.v + b.v}; }
inline F64 add(F64 a, F64 b) { return {a.v + b.v}; }
inline F32 sub(F32 a, F32 b) { return {a.v - b.v}; }
inline F64 sub(F64 a, F64 b) { return {a.v - b.v}; }
inline F32 mul(F32 a, F32 b) { return {a.v * b.v}; }
inline F64 mul(F64 a, F64 b) { return {a.v * b.v}; }
// The elements of a and b taken turn by turn, and the reverse.
inline void split(F32 a, F32 b, F32* even, F32* odd) {
  *even = {Floats{a.v[0], a.v[2], b.v[0], b.v[2]}};
  *odd = {Floats{a.v[1], a.v[3], b.v[1], b.v[3]}};
}
inline void split(F64 a, F64 b, F64* even, F64* odd) {
  *even = {Doubles{a.v[0], b.v[0]}};
  *odd = {Doubles{a.v[1], b.v[1]}};
}
inline void zip(F32 even, F32 odd, F32* a, F32* b) {
  *a = {Floats{even.v[0], odd.v[0], even.v[1], odd.v[1]}};
  *b = {Floats{even.v[2], odd.v[2], even.v[3], odd.v[3]}};
}
inline void zip(F64 even, F64 odd, F64* a, F64* b) {
  *a = {Doubles{even.v[0], odd.v[0]}};
  *b = {Doubles{even.v[1], odd.v[1]}};
}
// The elements of a from the second on, then the first of b.
inline F32 shift_in(F32 a, F32 b) { return {Floats{a.v[1], a.v[2], a.v[3], b.v[0]}}; }
inline F64 shift_in(F64 a, F64 b) { return {Doubles{a.v[1], b.v[0]}}; }
inline float sum(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline double sum(F64 a) { return a.v[0] + a.v[1]; }

inline F32 load(const float* p) {
  F32 a;
  __builtin_memcpy(&a.v, p, sizeof a.v);
  return a;
}
inline F64 load(const double* p) {
  F64 a;
  __builtin_memcpy(&a.v, p, sizeof a.v);
  return a;
}
template <class Half>
inline F32 load(const Half* p) {
  return {Floats{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
}

// The first n lanes, 0 <= n < kLanes; the others are zero and their memory is not touched.
template <class T>
inline auto load_partial(const T* p, int64_t n) {
  T lanes[4] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

inline void store(float* p, F32 a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
inline void store(double* p, F64 a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
template <class Half>
inline void store(Half* p, F32 a) {
  for (int i = 0; i < 4; ++i) narrow(a.v[i], p + i);
}
template <class T, class V>
inline void store_partial(T* p, V a, int64_t n) {
  T lanes[V::kLanes];
  store(lanes, a);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

// dst[column * dst_stride + row] = src[row * src_stride + column] for a square of kSquare, column by column. Rows from
// `rows` on are zero, columns from `columns` on are not written; neither is read.
template <class T>
constexpr int kSquare = 4;

template <class T>
void transpose_square(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  for (int column = 0; column < columns; ++column) {
    for (int row = 0; row < 4; ++row) {
      dst[column * dst_stride + row] = row < rows ? src[row * src_stride + column] : T{0};
    }
  }
}

}  // namespace
}  // namespace conv1d_ext
