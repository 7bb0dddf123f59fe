// What a warp does as one: shuffles, loads of matrices, products of matrices, each for all 32 lanes at once.
#include <bit>

#include "machine.h"
#include "numbers.h"

namespace emulator {
namespace {

template <class T>
void shuffle(void* const* lanes) {
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& own = *static_cast<Shuffle<T>*>(lanes[lane]);
    if (own.mask < 0 || own.mask >= kWarp) fail("shuffles with mask " + std::to_string(own.mask));
    own.result = static_cast<Shuffle<T>*>(lanes[lane ^ own.mask])->value;
  }
}

template <bool kTransposed>
void load(void* const* lanes) {
  const int first = machine.thread / kWarp * kWarp;
  const char* rows[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    machine.thread = first + lane;
    const int64_t byte = static_cast<Matrices*>(lanes[lane])->byte;
    check_shared_bounds("loads matrices from", byte, 16, 16);
    read_cells<16 / kCell>(byte, kWholeWarp + first / kWarp);
    rows[lane] = machine.shared + byte;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t& result = static_cast<Matrices*>(lanes[lane])->result[matrix];
      const char* const* row = rows + 8 * matrix;
      if constexpr (kTransposed) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) std::memcpy(&pair[i], row[2 * (lane % 4) + i] + 2 * (lane / 4), 2);
        result = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      } else {
        std::memcpy(&result, row[lane / 4] + 4 * (lane % 4), 4);
      }
    }
  }
}

// sum[16 x 8] += a[16 x kDepth] * b[kDepth x 8]. Products are exact in float. `unpack` makes of a register the numbers
// in it, kDepth / 8 of them.
template <int kDepth, void (*unpack)(uint32_t, float*)>
void multiply(void* const* lanes) {
  if (machine.capability < 80) fail("multiplies matrices on a device that can't");
  constexpr int kPacked = kDepth / 8;
  float a[16][kDepth], b_columns[8][kDepth], b[kDepth][8], sum[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& own = *static_cast<Product*>(lanes[lane]);
    const int g = lane / 4, i = lane % 4;
    for (int part = 0; part < 4; ++part) {
      unpack(own.a[part], &a[g + part % 2 * 8][(i + part / 2 * 4) * kPacked]);
      sum[g + part / 2 * 8][2 * i + part % 2] = own.sum[part];
    }
    for (int part = 0; part < 2; ++part) unpack(own.b[part], &b_columns[g][(i + part * 4) * kPacked]);
  }
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < 8; ++column) b[k][column] = b_columns[column][k];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& own = *static_cast<Product*>(lanes[lane]);
    for (int part = 0; part < 4; ++part) own.sum[part] = sum[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2];
  }
}

void unpack_bfloat16(uint32_t bits, float* to) {
  to[0] = bfloat16_to_float(bits & 0xffff);
  to[1] = bfloat16_to_float(bits >> 16);
}
void unpack_float16(uint32_t bits, float* to) {
  to[0] = float16_to_float(bits & 0xffff);
  to[1] = float16_to_float(bits >> 16);
}
// Whatever the other bits are.
void unpack_tf32(uint32_t bits, float* to) { to[0] = std::bit_cast<float>(bits & ~0x1fffu); }

}  // namespace

const Operation shuffle_float = {"shuffle_xor", shuffle<float>};
const Operation shuffle_double = {"shuffle_xor", shuffle<double>};
const Operation load_matrices = {"load_matrices", load<false>};
const Operation load_matrices_transposed = {"load_matrices_transposed", load<true>};
const Operation multiply_bfloat16 = {"multiply_matrices<BFloat16>", multiply<16, unpack_bfloat16>};
const Operation multiply_float16 = {"multiply_matrices<Float16>", multiply<16, unpack_float16>};
const Operation multiply_tf32 = {"multiply_matrices<Tf32>", multiply<8, unpack_tf32>};

}  // namespace emulator
