// What the matrix unit multiplies: tiles of bfloat16, and the pieces that elements are taken apart into. In memory
//   a: [row][product], 32 products in a cache line;
//   b: [pair of products][column], a pair in 32 bits.
#pragma once

namespace conv1d_ext {
namespace {

// Pieces of an element: enough for all of its bits.
template <class Storage>
constexpr int kAmxPieces = 1;
template <>
constexpr int kAmxPieces<float> = 3;

// The unit takes denormal numbers for zero. A float's last piece is some 2^-16 of it, and products of the largest
// numbers must be far above 2^-126: if these are smaller than this, the other kernels compute.
constexpr float kLeastAmxScale = 0x1p-48f;

// Tiles of 16 rows of 64 bytes. Constant data: compilers don't know that the instruction reads all of it.
struct AmxConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr AmxConfiguration kAmxConfiguration;

// c[row][column] of kRows x kColumns tiles. Distances are in elements; tiles of operands are 1 KB in a row.
struct AmxProduct {
  const uint16_t* a;
  int64_t a_tile, a_piece;  // from tile to tile, from piece to piece
  const int64_t* a_step;    // where each step begins
  const uint16_t* b;
  int64_t b_tile, b_piece, b_step;  // b_step: from step to step
  int64_t steps;
  float* c;
  int64_t c_row;
};

constexpr int64_t kAmxTile = kAmxSide * kAmxDepth;

// Tile registers: 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
template <int kRows, int kColumns>
struct AmxRegisters {
  static void load_rows(const AmxProduct& p, const uint16_t* a) {
    _tile_loadd(4, a, 64);
    if constexpr (kRows == 2) _tile_loadd(5, a + p.a_tile, 64);
  }
  static void load_columns(const AmxProduct& p, const uint16_t* b) {
    _tile_loadd(6, b, 64);
    if constexpr (kColumns == 2) _tile_loadd(7, b + p.b_tile, 64);
  }
  static void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRows == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kRows == 2 && kColumns == 2) _tile_dpbf16ps(3, 5, 7);
  }
  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  static void store(float* c, int64_t row) {
    _tile_stored(0, c, row * 4);
    if constexpr (kColumns == 2) _tile_stored(1, c + kAmxSide, row * 4);
    if constexpr (kRows == 2) _tile_stored(2, c + kAmxSide * row, row * 4);
    if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, c + kAmxSide * row + kAmxSide, row * 4);
  }
};

// Compilers don't know what tile instructions read and write.
inline void finish_memory_accesses() { asm volatile("" ::: "memory"); }

// What there is to do besides, in kAmxParts parts, goes between the first steps: the unit works on what it has been
// given while the rest of the core computes something else.
constexpr int kAmxParts = 4;

template <int kRows, int kColumns, int kPieces, class Meanwhile>
void multiply_tiles(const AmxProduct& p, const Meanwhile& meanwhile) {
  using Registers = AmxRegisters<kRows, kColumns>;
  finish_memory_accesses();
  Registers::clear();
  const auto row_tiles = [&](int64_t step) { return p.a + p.a_step[step]; };
  const auto column_tiles = [&](int64_t step) { return p.b + step * p.b_step; };
  int parts = 0;
  if constexpr (kPieces == 3) {
    // The small products first, while the sums are as small; for each the tiles of one operand are loaded.
    for (int64_t step = 0; step < p.steps; ++step) {
      const uint16_t *a = row_tiles(step), *b = column_tiles(step);
      Registers::load_rows(p, a + 2 * p.a_piece);
      Registers::load_columns(p, b);
      Registers::multiply();
      Registers::load_rows(p, a + p.a_piece);
      Registers::multiply();
      Registers::load_columns(p, b + p.b_piece);
      Registers::multiply();
      Registers::load_rows(p, a);
      Registers::multiply();
      Registers::load_columns(p, b + 2 * p.b_piece);
      Registers::multiply();
      if (parts < kAmxParts) meanwhile(parts++);
    }
  }
  for (int64_t step = 0; step < p.steps; ++step) {
    Registers::load_rows(p, row_tiles(step));
    Registers::load_columns(p, column_tiles(step));
    Registers::multiply();
    if (parts < kAmxParts) meanwhile(parts++);
  }
  while (parts < kAmxParts) meanwhile(parts++);
  Registers::store(p.c, p.c_row);
  finish_memory_accesses();
}

// For up to two tiles of rows and of columns.
template <int kPieces, class Meanwhile>
void multiply_tiles(const AmxProduct& product, int64_t rows, int64_t columns, const Meanwhile& meanwhile) {
  if (rows > kAmxSide) {
    columns > kAmxSide ? multiply_tiles<2, 2, kPieces>(product, meanwhile)
                       : multiply_tiles<2, 1, kPieces>(product, meanwhile);
  } else {
    columns > kAmxSide ? multiply_tiles<1, 2, kPieces>(product, meanwhile)
                       : multiply_tiles<1, 1, kPieces>(product, meanwhile);
  }
}

// The pieces of a vector: each in the upper halves of its lanes, the others in its remainder.
template <int kPieces>
void take_apart(F32 x, F32 (&pieces)[kPieces]) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(int32_t(0xffff0000));
#pragma GCC unroll 3
  for (int i = 0; i < kPieces; ++i) {
    if (i + 1 < kPieces) {  // to nearest; what is left of the last one are 8 bits at most
      pieces[i].v = _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x.v), half), upper));
      x = sub(x, pieces[i]);
    } else {
      pieces[i] = x;
    }
  }
}

// The upper halves of two vectors, one after the other.
inline F32 upper_halves(F32 first, F32 second) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return {_mm512_castsi512_ps(
      _mm512_permutex2var_epi16(_mm512_castps_si512(first.v), _mm512_load_si512(kOdd), _mm512_castps_si512(second.v)))};
}

// Columns become rows.
inline void transpose(F32 (&square)[16]) {
  __m512 r[16], s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    s[i] = _mm512_unpacklo_ps(square[i].v, square[i + 1].v);
    s[i + 1] = _mm512_unpackhi_ps(square[i].v, square[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours
    r[i] = _mm512_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // lanes of 128 bits: 0 and 2, 1 and 3 of eight rows, then one of all
    const __m512 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    square[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    square[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    square[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    square[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

// The bits of the largest magnitude of those seen: NaN is larger than infinity, and that than numbers.
class Largest {
 public:
  void see(F32 x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
    lanes_ = _mm512_max_epu32(lanes_, magnitude);
  }
  uint32_t bits() const { return _mm512_reduce_max_epu32(lanes_); }

 private:
  __m512i lanes_ = _mm512_setzero_si512();
};

// Whether numbers, the largest of which has these bits, are so small that the unit would take for zero what counts.
inline bool is_tiny(uint32_t bits) { return bits > 0 && bits < float_bits(kLeastAmxScale); }

}  // namespace
}  // namespace conv1d_ext
