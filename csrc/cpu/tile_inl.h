// The register tile that does nearly all the arithmetic:
//   c[row][column] = sum over channel, tap of a(row, channel, tap) * b[channel][tap][column]
// a is broadcast, b is read in vectors, all sums stay in registers. The terms are added in the order of channels and,
// in each, taps, whichever tile a row or column falls into; long sums in parts, whose errors don't add up to as much.
#pragma once

#include "cpu/next_rows_inl.h"

namespace conv1d_ext {
namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = F32;
};
template <>
struct VectorOf<double> {
  using type = F64;
};
template <class T>
using Vec = typename VectorOf<T>::type;

// Columns of the widest tile of kTileRows rows.
template <class T>
constexpr int64_t kTileColumns = kTileAccumulators / kTileRows * Vec<T>::kLanes;

// Channels of a sum in one element of a and b: of bfloat16, where the CPU multiplies pairs of them, two, in the bits of
// a float; an odd last channel is paired with zeros.
template <class Storage>
constexpr int kPair = 1;
template <>
constexpr int kPair<BFloat16> = kMultipliesPairs ? 2 : 1;

template <int kProducts, class V>
V multiply_add(V a, V b, V c) {
  if constexpr (kProducts == 2) {
    return fma_pairs(a, b, c);
  } else {
    return fma(a, b, c);
  }
}

// What a is made of where it isn't packed: pairs of bfloat16 lie side by side in memory, wherever a pair may begin.
template <class T, int kProducts>
struct UnpackedElement {
  using type = T;
};
template <class T>
struct UnpackedElement<T, 2> {
  using type = BFloat16;
};
inline float load_element(const float* p) { return *p; }
inline double load_element(const double* p) { return *p; }
inline float load_element(const BFloat16* p) {
  float pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return pair;
}

template <class T>
struct Tile {
  // Steps number the products of a sum: the pairs (channel, tap), taps first.
  // a(row, step) = a[step * rows + row] where packed, else a[a_row[row] + a_step[step]], in UnpackedElements.
  const void* a;
  const int64_t* a_row;
  const int64_t* a_step;
  int64_t a_ahead;  // where a isn't packed, prefetches what lies so far behind what is read; 0: nothing
  // b(step, column) = b[b_step[step] + column]; whole vectors are read, unless `exact`.
  const T* b;
  const int64_t* b_step;
  bool exact;
  int64_t steps;
  // Of a packed a: so many steps are added up by themselves at a time; 0: all of them.
  int64_t part_steps;
  // c[row * c_row + column]; the sums are added to init[row], or to c where init is null.
  T* c;
  int64_t c_row;
  const T* init;
  int64_t columns;
  NextRows* next;  // or null; its work is counted in vectors that are multiplied and added
};

// What a tile fetches beside what it multiplies. A function for each case, and none of them inlined: else the loop is
// short of registers for the rows of an a that isn't packed, and 8 x 2 and 8 x 1 vectors run at 60 and 47 % of the peak
// (Zen 5), not at 97 and 68 %.
enum class Fetch { kNothing, kAheadOfA, kNextRows };

// Where a isn't packed, the next rows are fetched after every so many steps. With runs of 8, 16, 32 and 64 steps, the
// end of which is not always foreseen, weight gradients ran 0.89 to 1.33, 0.93 to 1.40, 0.95 to 1.44 and 0.91 to 1.36
// times as fast as without; with no limit to a run's lines some 0.9.
constexpr int64_t kFetchRun = 32, kMostFetchedLines = 16;

// Adds a tile's sums to init or c; of the last vector of a row, where it isn't whole, `tail` lanes. A function for each
// case: with branches for every vector AVX2's tiles of 64 steps took a tenth longer.
template <bool kFromInit, bool kWhole, class T, int kRows, int kVectors>
__attribute__((always_inline)) inline void add_sums(
    const Tile<T>& tile, const Vec<T> (&sums)[kRows][kVectors], int64_t tail, const T* init) {
  T* c = tile.c;
  const int64_t c_row = tile.c_row;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r, c += c_row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const bool whole = kWhole || v + 1 < kVectors;
      T* to = c + v * Vec<T>::kLanes;
      const Vec<T> before = kFromInit ? broadcast(init[r]) : whole ? load(to) : load_partial(to, tail);
      const Vec<T> after = add(before, sums[r][v]);
      whole ? store(to, after) : store_partial(to, after, tail);
    }
  }
}

// kExact: of b, no more than the columns is read, which are one vector at most.
template <
    class T, int kRows, int kVectors, bool kPacked, int kProducts, bool kExact = false, Fetch kFetch = Fetch::kNothing>
__attribute__((noinline)) void run_tile(const Tile<T>& tile) {
  static_assert(!kExact || kVectors == 1);
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t tail = tile.columns - (kVectors - 1) * kLanes;  // columns of the last vector, 1..kLanes
  Vec<T> acc[kRows][kVectors];

  // The sums come and go: they are fetched while the products are added up.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(tile.c + r * tile.c_row + v * kLanes, 1);
  }

  using Unpacked = typename UnpackedElement<T, kProducts>::type;
  const T* a_packed = static_cast<const T*>(tile.a);
  const Unpacked* a_row[kRows];
  if constexpr (!kPacked) {
    for (int r = 0; r < kRows; ++r) a_row[r] = static_cast<const Unpacked*>(tile.a) + tile.a_row[r];
  }
  const auto multiply = [&](int64_t step) __attribute__((always_inline)) {
    const T* b = tile.b + tile.b_step[step];
    const int64_t a_index = kPacked ? 0 : tile.a_step[step];
    if constexpr (kFetch == Fetch::kAheadOfA) {
      // A row at a time, each once in as many steps as a line may hold.
      constexpr int64_t kLine = 64 / sizeof(T);
      if (step % kLine < kRows) {
        __builtin_prefetch(a_row[step % kLine] + a_index + tile.a_ahead, 0, 2);
      }
    }
    Vec<T> b_vector[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) b_vector[v] = kExact ? load_partial(b, tail) : load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> a = broadcast(kPacked ? a_packed[r] : load_element(a_row[r] + a_index));
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[r][v] = multiply_add<kProducts>(a, b_vector[v], acc[r][v]);
    }
    if (kPacked) a_packed += kRows;
  };
  NextRows next;  // in registers, where a is packed; else those hold the rows' addresses
  NextRows::Share share{};
  if constexpr (kFetch == Fetch::kNextRows) {
    const int64_t work = kRows * kVectors * tile.steps;
    if constexpr (kPacked) {
      next = *tile.next;
      share = next.take_share(work, tile.steps, tile.steps);
    } else {
      share = tile.next->take_share(work, ceil_div(tile.steps, kFetchRun), kMostFetchedLines);
    }
  }
  const bool whole = tail == kLanes;
  const T* init = tile.init;
  for (int64_t step = 0;;) {
    const int64_t end = kPacked && tile.part_steps > 0 ? min_of(step + tile.part_steps, tile.steps) : tile.steps;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[r][v] = broadcast(T{0});
    }
    if constexpr (kFetch == Fetch::kNextRows && kPacked) {
      for (const int64_t last = min_of(share.steps, end); step < last; ++step) {
        next.fetch(share.lines);
        multiply(step);
      }
    } else if constexpr (kFetch == Fetch::kNextRows) {
      for (int64_t run = 0; run < share.steps; ++run) {
        tile.next->fetch(share.lines);
        for (const int64_t last = min_of(step + kFetchRun, end); step < last; ++step) multiply(step);
      }
    }
    for (; step < end; ++step) multiply(step);
    if (init != nullptr) {
      whole ? add_sums<true, true>(tile, acc, tail, init) : add_sums<true, false>(tile, acc, tail, init);
    } else {
      whole ? add_sums<false, true>(tile, acc, tail, init) : add_sums<false, false>(tile, acc, tail, init);
    }
    if (!kPacked || step == tile.steps) break;
    init = nullptr;
  }
  if constexpr (kFetch == Fetch::kNextRows && kPacked) *tile.next = next;
}

// The widest tile of so many rows. 12 vectors suffice to hide the latency of the FMAs where there is a single row.
constexpr int max_vectors(int rows) { return kTileAccumulators / rows < 12 ? kTileAccumulators / rows : 12; }

template <class T, bool kPacked, int kProducts, int kRows, int kVectors>
void run_tile_of_width(const Tile<T>& tile, int64_t vectors) {
  if constexpr (kVectors > 0) {
    if (vectors == kVectors) {
      if constexpr (!kPacked) {
        if (tile.a_ahead != 0) return run_tile<T, kRows, kVectors, kPacked, kProducts, false, Fetch::kAheadOfA>(tile);
      }
      if (tile.next != nullptr && tile.next->any_left()) {
        // Of others there are few, and code for each of them.
        if constexpr (2 * kVectors >= max_vectors(kRows)) {
          return run_tile<T, kRows, kVectors, kPacked, kProducts, false, Fetch::kNextRows>(tile);
        }
        tile.next->pass(kRows * kVectors * tile.steps);
      }
      return run_tile<T, kRows, kVectors, kPacked, kProducts>(tile);
    }
    run_tile_of_width<T, kPacked, kProducts, kRows, kVectors - 1>(tile, vectors);
  }
}

// All columns of so many rows, in tiles of nearly equal width. A single one is not copied: loads of what was written in
// other pieces a moment ago have to wait.
template <class T, bool kPacked, int kProducts, int kRows>
void run_row_tile(const Tile<T>& row_tile) {
  constexpr int64_t kLanes = Vec<T>::kLanes, kMost = max_vectors(kRows);
  const int64_t columns = row_tile.columns, vectors = row_tile.exact ? columns / kLanes : ceil_div(columns, kLanes);
  if (vectors <= kMost && vectors * kLanes >= columns) {
    return run_tile_of_width<T, kPacked, kProducts, kRows, kMost>(row_tile, vectors);
  }
  Tile<T> tile = row_tile;
  const int64_t tiles = ceil_div(vectors, kMost);
  for (int64_t i = 0, begin = 0; i < tiles; ++i) {
    const int64_t end = part_begin(vectors, tiles, i + 1);
    tile.b = row_tile.b + begin * kLanes;
    tile.c = row_tile.c + begin * kLanes;
    tile.columns = min_of(end * kLanes, columns) - begin * kLanes;
    run_tile_of_width<T, kPacked, kProducts, kRows, kMost>(tile, end - begin);
    begin = end;
  }
  if (vectors * kLanes < columns) {
    tile.b = row_tile.b + vectors * kLanes;
    tile.c = row_tile.c + vectors * kLanes;
    tile.columns = columns - vectors * kLanes;
    run_tile<T, kRows, 1, kPacked, kProducts, true>(tile);
  }
}

template <class T, bool kPacked, int kProducts, int kRows = kTileRows>
void run_rows(const Tile<T>& tile, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return run_row_tile<T, kPacked, kProducts, kRows>(tile);
    run_rows<T, kPacked, kProducts, kRows - 1>(tile, rows);
  }
}

// Sums over channels and taps, which may be more than the tables of `tile` have steps.
template <class T>
struct Sums {
  Tile<T> tile{};
  int64_t channels, taps;
  int64_t part_channels;         // channels in one part of the sum
  int64_t a_channel, b_channel;  // from channel to channel; of a, where it isn't packed
};

// Part by part: plan.part_channels channels, or at most kLongestPart of the taps of one.
template <class T, bool kPacked, int kProducts>
void run_sums(const Sums<T>& sums, int64_t rows) {
  const int64_t tap_step = sums.part_channels > 1 ? sums.taps : ceil_div(sums.taps, ceil_div(sums.taps, kLongestPart));
  Tile<T> part = sums.tile;
  for (int64_t channel = 0; channel < sums.channels; channel += sums.part_channels) {
    for (int64_t tap = 0; tap < sums.taps; tap += tap_step) {
      part.a = static_cast<const T*>(sums.tile.a) +
               (kPacked ? (channel * sums.taps + tap) * rows : channel * sums.a_channel);
      part.a_step = sums.tile.a_step + tap;
      part.b = sums.tile.b + channel * sums.b_channel;
      part.b_step = sums.tile.b_step + tap;
      part.steps = min_of(sums.part_channels, sums.channels - channel) * min_of(tap_step, sums.taps - tap);
      if (channel + tap > 0) part.init = nullptr;
      run_rows<T, kPacked, kProducts>(part, rows);
    }
  }
}

}  // namespace
}  // namespace conv1d_ext
