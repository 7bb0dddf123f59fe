// Storage types and their arithmetic ("accumulation") types, one element at a time. 16-bit conversions in integer
// arithmetic, so that they are the same on every CPU: round to nearest even, NaN stays NaN.
#pragma once

#include "problem.h"

namespace conv1d_ext {
namespace {

template <class Storage>
struct AccumulateType {
  using type = Storage;
};
template <>
struct AccumulateType<BFloat16> {
  using type = float;
};
template <>
struct AccumulateType<Float16> {
  using type = float;
};
template <class Storage>
using Acc = typename AccumulateType<Storage>::type;
template <class Storage>
constexpr bool kStoredAsComputed = sizeof(Storage) == sizeof(Acc<Storage>);

inline uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_float(uint32_t{x.bits} << 16); }
inline float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude << 13));  // infinity, NaN
  // As float bits the magnitude is the value times 2^-112, denormals included.
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(double x, double* out) { *out = x; }
inline void narrow(float x, BFloat16* out) {
  const uint32_t bits = float_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = uint16_t(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(float x, Float16* out) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: denormal, rounded by the addition of 0.5
    half = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = uint16_t(sign | half);
}

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }   // b > 0
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }  // b > 0
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// `total` in the fewest blocks of at most `limit`, all but the last of one size: 3 x 320 rather than 384 + 384 + 192.
inline int64_t balanced_block(int64_t total, int64_t limit, int64_t multiple) {
  const int64_t blocks = max_of(1, ceil_div(total, max_of(1, limit)));
  return max_of(multiple, round_up(ceil_div(total, blocks), multiple));
}

// From vector to vector of so many spectra side by side: an odd number of them, so that not all lie in the same cache
// sets. In spectra; memory for so many has that factor, too.
inline int64_t spectra_stride(int64_t spectra) { return spectra | 1; }

// First index of part i when `total` things are dealt into `parts` parts whose sizes differ by one at most.
inline int64_t part_begin(int64_t total, int64_t parts, int64_t i) {
  return total / parts * i + min_of(i, total % parts);
}

// The same for positions, in whole vectors.
inline int64_t block_begin(int64_t positions, int64_t lanes, int64_t blocks, int64_t i) {
  return min_of(positions, part_begin(ceil_div(positions, lanes), blocks, i) * lanes);
}

}  // namespace
}  // namespace conv1d_ext
