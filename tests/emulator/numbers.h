// Conversions of 16-bit and TF32 numbers, in integers: for every value, and on every CPU alike.
#pragma once

#include <bit>
#include <cstdint>

namespace emulator {

inline constexpr uint32_t kInfinity = 0x7f800000, kSign = 0x80000000;

inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline float float16_to_float(uint16_t bits) {
  // The exponent is too small by 127 - 15: mended by a product, which is exact and makes denormals normal.
  const float magnitude = std::bit_cast<float>((bits & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t special = (bits & 0x7c00u) == 0x7c00u ? kInfinity : 0;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | special | (bits & 0x8000u) << 16);
}

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & ~kSign) > kInfinity) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint16_t float_to_float16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & ~kSign;
  if (magnitude > kInfinity) return 0x7fff;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) return sign | 0x7c00;
  if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {
    // Denormal: the sum's last bit is the denormals' unit, so the addition rounds.
    const float rounded = std::bit_cast<float>(magnitude) + 0x1p-1f;
    return sign | (std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(0x1p-1f));
  }
  return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}

// To nearest, ties away from zero.
inline uint32_t round_to_tf32(uint32_t bits) {
  if ((bits & ~kSign) > kInfinity) return 0x7fffffff;
  return (bits + 0x1000) & ~0x1fffu;
}

}  // namespace emulator
