// The register tile that does nearly all the arithmetic:
//   c[row][column] = sum over channel, tap of a(row, channel, tap) * b[channel][tap][column]
// a is broadcast, b is read in vectors, all sums stay in registers. The terms are added in the order of channels and,
// in each, taps, whichever tile a row or column falls into; long sums in parts, whose errors don't add up to as much.
#pragma once

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

// Rows of memory that are needed next, a part of each: while products are added up, each tile fetches a share of their
// cache lines into the L2 cache, a row after the other, and in each step no more lines than it has to, so that memory
// and FMAs are busy at once. (On a Xeon layers that wait for memory ran 1.0 to 1.7 times as fast so as where a first
// tile of rows fetched what lies behind each vector that it reads, which jumps from row to row: benchmarks/NOTES.md.)
class NextRows {
 public:
  NextRows() = default;
  // `count` elements of each of so many rows, `pitch` apart, in as many shares as there are tiles.
  template <class Storage>
  NextRows(const Storage* first, int64_t pitch, int64_t rows, int64_t count, int64_t tiles)
      : row_(reinterpret_cast<const char*>(first)),
        pitch_(pitch * int64_t{sizeof(Storage)}),
        row_bytes_(count * int64_t{sizeof(Storage)}),
        lines_left_(rows * ceil_div(row_bytes_, kLine)),
        share_(ceil_div(lines_left_, tiles)) {}

  bool any_left() const { return lines_left_ > 0; }

  // A tile's share is so many lines in each of its first steps.
  struct Share {
    int64_t lines, steps;
  };
  Share take_share(int64_t steps) {
    const int64_t lines = min_of(share_, lines_left_);
    lines_left_ -= lines;
    if (lines <= steps) return {1, lines};
    const int64_t in_a_step = ceil_div(lines, steps);
    return {in_a_step, lines / in_a_step};
  }

  __attribute__((always_inline)) void fetch(int64_t lines) {
    do {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += kLine;
      const bool at_end = at_ >= row_bytes_;
      at_ = at_end ? 0 : at_;
      row_ += at_end ? pitch_ : 0;
    } while (--lines > 0);
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_ = nullptr;
  int64_t pitch_ = 0, row_bytes_ = 0;
  int64_t lines_left_ = 0, share_ = 0;
  int64_t at_ = 0;  // in the row
};

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
  // c[row * c_row + column]; the sums are added to init[row], or to c where init is null.
  T* c;
  int64_t c_row;
  const T* init;
  int64_t columns;
  NextRows* next;  // or null; fetched by tiles of more than half the vectors of the widest
};

// What a tile fetches beside what it multiplies. A function for each case, and none of them inlined: else the loop is
// short of registers for the rows of an a that isn't packed, and 8 x 2 and 8 x 1 vectors run at 60 and 47 % of the peak
// (Zen 5), not at 97 and 68 %.
enum class Fetch { kNothing, kAheadOfA, kNextRows };

// kExact: of b, no more than the columns is read, which are one vector at most.
template <
    class T, int kRows, int kVectors, bool kPacked, int kProducts, bool kExact = false, Fetch kFetch = Fetch::kNothing>
__attribute__((noinline)) void run_tile(const Tile<T>& tile) {
  static_assert(!kExact || kVectors == 1);
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t tail = tile.columns - (kVectors - 1) * kLanes;  // columns of the last vector, 1..kLanes
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[r][v] = broadcast(T{0});
  }

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
  int64_t step = 0;
  if constexpr (kFetch == Fetch::kNextRows) {
    if constexpr (kPacked) {
      NextRows next = *tile.next;  // in registers
      const NextRows::Share share = next.take_share(tile.steps);
      for (; step < share.steps; ++step) {
        next.fetch(share.lines);
        multiply(step);
      }
      *tile.next = next;
    } else {  // the registers hold the rows' addresses
      constexpr int64_t kRun = 16, kMostLines = 8;
      const NextRows::Share share = tile.next->take_share(ceil_div(tile.steps, kRun));
      for (int64_t run = 0; run < share.steps; ++run) {
        tile.next->fetch(min_of(share.lines, kMostLines));
        for (const int64_t end = min_of(step + kRun, tile.steps); step < end; ++step) multiply(step);
      }
    }
  }
  for (; step < tile.steps; ++step) multiply(step);

#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    T* c = tile.c + r * tile.c_row;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v, c += kLanes) {
      const bool whole = v + 1 < kVectors || tail == kLanes;
      const Vec<T> before = tile.init != nullptr ? broadcast(tile.init[r]) : whole ? load(c) : load_partial(c, tail);
      const Vec<T> after = add(before, acc[r][v]);
      whole ? store(c, after) : store_partial(c, after, tail);
    }
  }
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
      if constexpr (2 * kVectors > max_vectors(kRows)) {
        if (tile.next != nullptr && tile.next->any_left()) {
          return run_tile<T, kRows, kVectors, kPacked, kProducts, false, Fetch::kNextRows>(tile);
        }
      }
      return run_tile<T, kRows, kVectors, kPacked, kProducts>(tile);
    }
    run_tile_of_width<T, kPacked, kProducts, kRows, kVectors - 1>(tile, vectors);
  }
}

// All columns of so many rows, in tiles of nearly equal width.
template <class T, bool kPacked, int kProducts, int kRows>
void run_row_tile(Tile<T> tile) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t columns = tile.columns, vectors = tile.exact ? columns / kLanes : ceil_div(columns, kLanes);
  const int64_t tiles = ceil_div(vectors, max_vectors(kRows));
  const Tile<T> first = tile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = part_begin(vectors, tiles, i), end = part_begin(vectors, tiles, i + 1);
    tile.b = first.b + begin * kLanes;
    tile.c = first.c + begin * kLanes;
    tile.columns = min_of(end * kLanes, columns) - begin * kLanes;
    run_tile_of_width<T, kPacked, kProducts, kRows, max_vectors(kRows)>(tile, end - begin);
  }
  if (vectors * kLanes < columns) {
    tile.b = first.b + vectors * kLanes;
    tile.c = first.c + vectors * kLanes;
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

// Taps of a channel in one part.
template <class T>
int64_t part_taps(const Sums<T>& sums) {
  return sums.part_channels > 1 ? sums.taps : ceil_div(sums.taps, ceil_div(sums.taps, kLongestPart));
}

// Tiles that the sums of some rows are made of, but for a last one of less than a vector.
template <class T>
int64_t tiles_of_sums(const Sums<T>& sums, int64_t rows) {
  const int64_t columns = sums.tile.columns, lanes = Vec<T>::kLanes;
  const int64_t vectors = sums.tile.exact ? columns / lanes : ceil_div(columns, lanes);
  return ceil_div(sums.channels, sums.part_channels) * ceil_div(sums.taps, part_taps(sums)) *
         max_of(1, ceil_div(vectors, max_vectors(int(rows))));
}

// Part by part: plan.part_channels channels, or at most kLongestPart of the taps of one.
template <class T, bool kPacked, int kProducts>
void run_sums(const Sums<T>& sums, int64_t rows) {
  const int64_t tap_step = part_taps(sums);
  for (int64_t channel = 0; channel < sums.channels; channel += sums.part_channels) {
    for (int64_t tap = 0; tap < sums.taps; tap += tap_step) {
      Tile<T> part = sums.tile;
      part.a = static_cast<const T*>(sums.tile.a) +
               (kPacked ? (channel * sums.taps + tap) * rows : channel * sums.a_channel);
      part.a_step += tap;
      part.b += channel * sums.b_channel;
      part.b_step += tap;
      part.steps = min_of(sums.part_channels, sums.channels - channel) * min_of(tap_step, sums.taps - tap);
      if (channel + tap > 0) part.init = nullptr;
      run_rows<T, kPacked, kProducts>(part, rows);
    }
  }
}

}  // namespace
}  // namespace conv1d_ext
