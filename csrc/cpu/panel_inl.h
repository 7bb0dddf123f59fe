// Moving data between tensors (any strides, storage type) and the scratch memory that the register tile works on
// (contiguous, accumulation type): rows with their padding filled in, weights in the order of their use, results.
#pragma once

namespace conv1d_ext {
namespace {

// Deals scratch memory out, in cache lines, in the order in which the plan has counted it.
struct Scratch {
  char* next;

  template <class T>
  T* take(int64_t elements) {
    T* taken = reinterpret_cast<T*>(next);
    next += round_up(elements * int64_t{sizeof(T)}, 64);
    return taken;
  }
};

// A thread's memory for the operators whose register tile runs over a panel with packed or strided weights.
template <class T>
struct PanelMemory {
  T *panel, *packed_weight, *results;
  T* odd_row;                         // of a pair
  int64_t *panel_step, *weight_step;  // Tile::b_step, Tile::a_step

  PanelMemory(const Plan& plan, void* memory) {
    Scratch scratch{static_cast<char*>(memory)};
    panel = scratch.take<T>(plan.panel_elements);
    packed_weight = scratch.take<T>(plan.weight_elements);
    results = scratch.take<T>(plan.result_elements);
    odd_row = scratch.take<T>(plan.panel_width);
    panel_step = scratch.take<int64_t>(plan.step_table);
    weight_step = scratch.take<int64_t>(plan.step_table);
  }

  // For sums over channels and taps, a channel being so many elements of the panel and of the weights.
  // panel_tap(tap), weight_tap(tap): the offsets of the taps.
  template <class PanelTap, class WeightTap>
  void set_steps(
      const Plan& plan, int64_t channels, int64_t taps, int64_t panel_channel, int64_t weight_channel,
      const PanelTap& panel_tap, const WeightTap& weight_tap) {
    const int64_t steps = min_of(channels * taps, plan.step_table);
    for (int64_t step = 0, channel = 0; step < steps; ++channel) {
      for (int64_t tap = 0; tap < taps && step < steps; ++tap, ++step) {
        panel_step[step] = channel * panel_channel + panel_tap(tap);
        weight_step[step] = channel * weight_channel + weight_tap(tap);
      }
    }
  }

  // Rows that are read where they lie come from memory: while a block of `columns` is computed, the next one is
  // fetched, by the first of the tiles of rows, a vector of each tile's columns by each, so that it takes its time.
  static void prefetch_ahead(Tile<T>* tile, bool in_place, int64_t index, int64_t tiles, int64_t columns) {
    constexpr int64_t kLanes = Vec<T>::kLanes, kVectors = kTileColumns<T> / kLanes;
    const bool one_by_one = tiles >= kVectors, now = in_place && index < (one_by_one ? kVectors : 1);
    tile->ahead = now ? columns + index * kLanes : 0;
    tile->ahead_vector = now && !one_by_one ? kLanes : 0;
  }
};

// Of work units [begin, end), which are [block][tile] with `count` tiles from `first` on, calls body(block, tile0,
// tile1) for the tiles of one block after the other, so that a thread lays out a block once for all of its tiles.
template <class Body>
void for_blocks_of_tiles(int64_t begin, int64_t end, int64_t first, int64_t count, const Body& body) {
  while (begin < end) {
    const int64_t tile = begin % count, tiles = min_of(count - tile, end - begin);
    body(begin / count, first + tile, first + tile + tiles);
    begin += tiles;
  }
}

// One channel of one batch item.
template <class Storage>
struct Row {
  const Storage* data;
  int64_t position_stride, length;
  PaddingMode padding_mode;
};

// The position in [0, length) whose value a position outside repeats, or -1 where it is zero. Callers have checked that
// reflect and circular wrap once at most.
inline int64_t source_position(PaddingMode mode, int64_t position, int64_t length) {
  switch (mode) {
    case PaddingMode::kZeros:
      return -1;
    case PaddingMode::kReflect:
      return position < 0 ? -position : 2 * (length - 1) - position;
    case PaddingMode::kReplicate:
      return position < 0 ? 0 : length - 1;
    case PaddingMode::kCircular:
      return position < 0 ? position + length : position - length;
  }
  return -1;
}

// With the stride known the compiler makes vector shuffles of it.
template <class Storage>
void copy_element(Storage from, Acc<Storage>* to) {
  *to = widen(from);
}
inline void copy_element(BFloat16 from, BFloat16* to) { *to = from; }

template <int kStride, class Storage, class To>
void copy_every(const Storage* src, int64_t count, To* __restrict dst) {
  for (int64_t i = 0; i < count; ++i) copy_element(src[i * kStride], dst + i);
}

template <class Storage>
void copy_row(const Storage* src, int64_t src_stride, int64_t count, Acc<Storage>* __restrict dst) {
  if (src_stride == 2) {
    copy_every<2>(src, count, dst);
  } else if (src_stride == 3) {
    copy_every<3>(src, count, dst);
  } else if (src_stride == 4) {
    copy_every<4>(src, count, dst);
  } else if (src_stride == 1) {
    constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
    if (i < count) store_partial(dst + i, load_partial(src + i, count - i), count - i);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = widen(src[i * src_stride]);
  }
}

// As they are, for pairs of neighbours.
inline void copy_row(const BFloat16* src, int64_t src_stride, int64_t count, BFloat16* __restrict dst) {
  if (src_stride == 1) {
    copy_every<1>(src, count, dst);
  } else if (src_stride == 2) {
    copy_every<2>(src, count, dst);
  } else if (src_stride == 3) {
    copy_every<3>(src, count, dst);
  } else if (src_stride == 4) {
    copy_every<4>(src, count, dst);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = src[i * src_stride];
  }
}

// Those of the positions start + j * step, j < count, that are in [0, length): j in [begin, end).
struct Part {
  int64_t begin, end;
};
inline Part part_inside(int64_t length, int64_t start, int64_t step, int64_t count) {
  const int64_t begin = max_of(0, min_of(count, ceil_div(-start, step)));
  return {begin, max_of(begin, min_of(count, ceil_div(length - start, step)))};
}

// dst[j] = padded row at position start + j * step, for j < count; zero for count <= j < width.
template <class Storage, class To>
void pack_row(
    const Row<Storage>& row, int64_t start, int64_t step, int64_t count, const Part& inside, int64_t width, To* dst) {
  const auto fill_edge = [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t source = source_position(row.padding_mode, start + j * step, row.length);
      dst[j] = To{};
      if (source >= 0) copy_element(row.data[source * row.position_stride], dst + j);
    }
  };
  fill_edge(0, inside.begin);
  if (inside.begin < inside.end) {
    const Storage* first = row.data + (start + inside.begin * step) * row.position_stride;
    copy_row(first, step * row.position_stride, inside.end - inside.begin, dst + inside.begin);
  }
  fill_edge(inside.end, count);
  for (int64_t j = count; j < width; ++j) dst[j] = To{};
}
template <class Storage, class To>
void pack_row(const Row<Storage>& row, int64_t start, int64_t step, int64_t count, int64_t width, To* dst) {
  pack_row(row, start, step, count, part_inside(row.length, start, step, count), width, dst);
}

// dst[column * dst_stride + row] = src[row * src_stride + column], for row < rows and column < columns, in squares.
// From a tensor: along the rows of src, so that few of its pages are in use at a time, two squares side by side, which
// fill a cache line of dst. What a square writes too much lies where a later one writes: at the start of the next
// column, or past the end of dst, by up to kSquare elements.
template <class Storage>
void transpose(
    const Storage* src, int64_t src_stride, int64_t rows, int64_t columns, Acc<Storage>* dst, int64_t dst_stride) {
  using T = Acc<Storage>;
  constexpr int64_t kSide = kSquare<T>;
  const auto transpose_at = [&](int64_t row, int64_t column) __attribute__((always_inline)) {
    const int64_t height = min_of(kSide, rows - row), width = min_of(kSide, columns - column);
    const Storage* from = src + row * src_stride + column;
    T* to = dst + column * dst_stride + row;
    if constexpr (kStoredAsComputed<Storage>) {
      transpose_square(from, src_stride, height, width, to, dst_stride);
    } else {
      T staged[kSide * kSide];
      for (int64_t r = 0; r < height; ++r) copy_row(from + r * src_stride, 1, width, staged + r * kSide);
      transpose_square(staged, kSide, height, width, to, dst_stride);
    }
  };
  for (int64_t row = (rows - 1) / (2 * kSide) * (2 * kSide); row >= 0; row -= 2 * kSide) {
    for (int64_t column = 0; column < columns; column += kSide) {
      if (row + kSide < rows) transpose_at(row + kSide, column);
      transpose_at(row, column);
    }
  }
}

// The same for pairs of neighbours, which lie side by side in a row of src: dst has an element for each pair.
inline void transpose_pairs(
    const BFloat16* src, int64_t src_stride, int64_t rows, int64_t pairs, float* dst, int64_t dst_stride) {
  if (src_stride % 2 == 0) {
    return transpose(reinterpret_cast<const float*>(src), src_stride / 2, rows, pairs, dst, dst_stride);
  }
  constexpr int64_t kSide = kSquare<float>;
  for (int64_t row = (rows - 1) / kSide * kSide; row >= 0; row -= kSide) {
    const int64_t height = min_of(kSide, rows - row);
    for (int64_t pair = 0; pair < pairs; pair += kSide) {
      const int64_t width = min_of(kSide, pairs - pair);
      BFloat16 staged[2 * kSide * kSide];
      for (int64_t r = 0; r < height; ++r) {
        copy_row(src + (row + r) * src_stride + 2 * pair, 1, 2 * width, staged + 2 * kSide * r);
      }
      const float* from = reinterpret_cast<const float*>(staged);
      transpose_square(from, kSide, height, width, dst + pair * dst_stride + row, dst_stride);
    }
  }
}

// The same into a tensor: along the rows of dst, and nothing else is written.
template <class T>
void transpose_exactly(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  constexpr int64_t kSide = kSquare<T>;
  for (int64_t column = 0; column < columns; column += kSide) {
    const int64_t width = min_of(kSide, columns - column);
    T* to = dst + column * dst_stride;
    int64_t row = 0;
    for (; row + kSide <= rows; row += kSide) {
      transpose_square(src + row * src_stride + column, src_stride, kSide, width, to + row, dst_stride);
    }
    for (; row < rows; ++row) {
      for (int64_t c = 0; c < width; ++c) to[c * dst_stride + row] = src[row * src_stride + column + c];
    }
  }
}

// dst[i] = the pair even[i], odd[i]; dst may be even. odd: null for zeros.
template <class T>
void pair_rows(const T* even, const T* odd, int64_t count, T* dst) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t i = 0; i < count; i += kLanes) {
    const bool whole = count - i >= kLanes;
    const auto load_at = [&](const T* row) {
      return row == nullptr ? broadcast(T{0}) : whole ? load(row + i) : load_partial(row + i, count - i);
    };
    const Vec<T> pairs = make_pairs(load_at(even), load_at(odd));
    whole ? store(dst + i, pairs) : store_partial(dst + i, pairs, count - i);
  }
}

// dst[i] = the pair even[i], odd[i] for i < count, zeros for count <= i < width. odd: null for zeros.
template <class Storage>
void pack_pairs_of_rows(const Storage* even, const Storage* odd, int64_t count, int64_t width, float* dst) {
  constexpr int64_t kLanes = Vec<float>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(dst + i, make_pairs(load(even + i), odd == nullptr ? broadcast(0.0f) : load(odd + i)));
  }
  if (i < count) {
    const int64_t rest = count - i;
    const auto last_odd = odd == nullptr ? broadcast(0.0f) : load_partial(odd + i, rest);
    store_partial(dst + i, make_pairs(load_partial(even + i, rest), last_odd), rest);
  }
  for (i = count; i < width; ++i) dst[i] = 0;
}

// A row of a panel: of batch items [n0, n1), `count` positions from `start` on, `step` apart, then zeros, since rows
// are read in whole vectors. row_of(n, channel) is where they are; a channel of the panel is kPair<Storage> of those.
template <class Storage, class RowOf>
void fill_panel_row(
    const Plan& plan, int64_t n0, int64_t n1, const RowOf& row_of, int64_t panel_channel, int64_t channels,
    int64_t start, int64_t step, int64_t count, Acc<Storage>* dst, Acc<Storage>* odd_row) {
  const int64_t first = panel_channel * kPair<Storage>;
  const Row<Storage> row = row_of(n0, first);
  const Part inside = part_inside(row.length, start, step, count);
  if constexpr (kPair<Storage> == 2) {
    const bool whole = n1 - n0 == 1 && inside.begin == 0 && inside.end == count;
    if (whole && step * row.position_stride == 1) {
      const Storage* odd = first + 1 < channels ? row_of(n0, first + 1).data + start : nullptr;
      return pack_pairs_of_rows(row.data + start, odd, count, plan.panel_width, dst);
    }
  }
  const auto fill = [&](int64_t channel, Acc<Storage>* to) {
    for (int64_t n = n0; n < n1; ++n, to += plan.item_pitch) {
      const int64_t width = n + 1 < n1 ? plan.item_pitch : plan.panel_width - (n - n0) * plan.item_pitch;
      pack_row<Storage>(row_of(n, channel), start, step, count, inside, width, to);
    }
  };
  fill(first, dst);
  if constexpr (kPair<Storage> == 2) {
    const bool has_odd = first + 1 < channels;
    if (has_odd) fill(first + 1, odd_row);
    pair_rows(dst, has_odd ? odd_row : nullptr, plan.panel_width, dst);
  }
}

// The weights of one register tile: weight[row_offset[row] + channel * channel_stride + tap * tap_stride].
struct WeightTile {
  int64_t row_offset[kTileRows];
  int64_t rows;
};

struct WeightSteps {
  int64_t channels, channel_stride, taps, tap_stride;
};

// The same distance from row to row, or 0 where there is none.
inline int64_t row_stride(const WeightTile& tile) {
  const int64_t stride = tile.rows > 1 ? tile.row_offset[1] - tile.row_offset[0] : 1;
  for (int64_t row = 2; row < tile.rows; ++row) {
    if (tile.row_offset[row] - tile.row_offset[row - 1] != stride) return 0;
  }
  return stride;
}

// dst[tile][(channel * taps + tap) * rows + row], for a few tiles whose rows lie side by side; up to kSquare elements
// behind are written, too.
template <class Storage>
void pack_weight_singly(
    const Storage* weight, const WeightTile* tiles, int64_t tile_count, const WeightSteps& steps, Acc<Storage>* dst,
    int64_t dst_tile) {
  int64_t strides[kMostPackTiles];
  for (int64_t i = 0; i < tile_count; ++i) strides[i] = row_stride(tiles[i]);
  if (tile_count == 1 && strides[0] != 0 && steps.tap_stride == 1 &&
      (steps.channel_stride == steps.taps || steps.channels == 1)) {  // rows are contiguous
    transpose(
        weight + tiles[0].row_offset[0], strides[0], tiles[0].rows, steps.channels * steps.taps, dst, tiles[0].rows);
    return;
  }
  // A channel is one short piece of memory, or one for each tap, far from the next channel's: too far for the CPU to
  // see them coming.
  constexpr int64_t kAhead = 8, kLine = 64 / sizeof(Storage), kLongestPiece = 1024;
  const WeightTile& last = tiles[tile_count - 1];
  const bool one_piece = steps.tap_stride <= kLine;
  const int64_t pieces = one_piece ? 1 : steps.taps;
  const int64_t piece = last.row_offset[last.rows - 1] - tiles[0].row_offset[0] + 1 +
                        (one_piece ? (steps.taps - 1) * steps.tap_stride : 0);
  for (int64_t channel = 0; channel < steps.channels; ++channel, weight += steps.channel_stride) {
    const Storage* ahead =
        weight + tiles[0].row_offset[0] + min_of(kAhead, steps.channels - 1 - channel) * steps.channel_stride;
    for (int64_t tap = 0; tap < pieces && piece <= kLongestPiece; ++tap) {
      for (int64_t i = 0; i < piece; i += kLine) __builtin_prefetch(ahead + tap * steps.tap_stride + i);
    }
    for (int64_t i = 0; i < tile_count; ++i) {
      const WeightTile& tile = tiles[i];
      const Storage* first = weight + tile.row_offset[0];
      Acc<Storage>* to = dst + i * dst_tile + channel * steps.taps * tile.rows;
      if (strides[i] == 1) {
        for (int64_t tap = 0; tap < steps.taps; ++tap) {
          copy_row(first + tap * steps.tap_stride, 1, tile.rows, to + tap * tile.rows);
        }
      } else if (strides[i] != 0 && steps.tap_stride == 1) {
        transpose(first, strides[i], tile.rows, steps.taps, to, tile.rows);
      } else {
        for (int64_t tap = 0; tap < steps.taps; ++tap) {
          for (int64_t row = 0; row < tile.rows; ++row) {
            *to++ = widen(weight[tile.row_offset[row] + tap * steps.tap_stride]);
          }
        }
      }
    }
  }
}

// The weights of a tile whose rows lie in memory as they are, in pairs of channels:
// dst[(channel / 2 * taps + tap) * rows + row], and up to kSquare elements behind.
template <class Storage>
void pack_pairs(const Storage* weight, int64_t row_stride, int64_t rows, int64_t channels, int64_t taps, float* dst) {
  constexpr int64_t kSide = kSquare<float>, kLanes = Vec<float>::kLanes;
  static_assert(kTileRows <= kSide);
  // A vector for each row: of all taps of a few channels, read at once and put in order, or of some taps of two. (To
  // put the vectors together in memory, one overlapping the other, is slower: it is read before it is written.)
  const int64_t together = max_of(1, kLanes / taps);
  const auto order = pair_order(Storage{}, together, taps);
  float pairs[kSide * kLanes];
  for (int64_t channel = 0; channel < channels; channel += 2 * together) {
    const int64_t count = min_of(2 * together, channels - channel);
    for (int64_t tap = 0; tap < taps; tap += kLanes) {
      const int64_t width = min_of(kLanes, taps - tap), columns = ceil_div(count, 2) * width;
      const Storage* from = weight + channel * taps + tap;
      for (int64_t row = 0; row < rows; ++row, from += row_stride) {
        __builtin_prefetch(from + rows * row_stride, 0, 2);  // of the next tile: often the weights are the traffic
        auto vector = broadcast(0.0f);
        if (taps > kLanes) {
          const auto load_at = [&](const Storage* p) { return width < kLanes ? load_partial(p, width) : load(p); };
          vector = make_pairs(load_at(from), count == 2 ? load_at(from + taps) : broadcast(0.0f));
        } else {
          const int64_t elements = count * taps;
          vector = elements < 2 * kLanes ? load_pairs_partial(from, elements) : load_pairs(from);
          if (taps > 1) vector = permute(vector, order);
        }
        store(pairs + row * kLanes, vector);
      }
      for (int64_t column = 0; column < columns; column += kSide) {
        transpose_square(
            pairs + column, kLanes, rows, min_of(kSide, columns - column),
            dst + (channel / 2 * taps + tap + column) * rows, rows);
      }
    }
  }
}

// The same of a tile whose weights for one channel lie within two vectors, in whatever order: they are read at once and
// put in theirs. False for others.
template <class Storage>
bool pack_near_pairs(const Storage* weight, const WeightTile& tile, const WeightSteps& steps, float* dst) {
  constexpr int64_t kLanes = Vec<float>::kLanes, kElements = 2 * kLanes, kMost = 2 * kElements, kAhead = 8;
  const int64_t count = tile.rows * steps.taps, vectors = ceil_div(count, kLanes);
  if (count > kMost) return false;
  uint16_t from[kMost];
  int64_t span = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = i % tile.rows, tap = i / tile.rows;
    const int64_t offset = tile.row_offset[row] - tile.row_offset[0] + tap * steps.tap_stride;
    if (offset < 0 || offset >= kMost) return false;
    from[i] = uint16_t(offset);
    span = max_of(span, offset + 1);
  }
  using Order = decltype(pair_picks(weight, from, count));
  Order order[kMost / kLanes];
  for (int64_t v = 0; v < vectors; ++v)
    order[v] = pair_picks(weight, from + v * kLanes, min_of(kLanes, count - v * kLanes));
  weight += tile.row_offset[0];
  const auto load_at = [&](const Storage* p, int64_t first) {
    return span >= first + kElements ? load_pairs(p + first)
           : span > first            ? load_pairs_partial(p + first, span - first)
                                     : broadcast(0.0f);
  };
  for (int64_t channel = 0; channel < steps.channels; channel += 2, weight += 2 * steps.channel_stride) {
    const bool has_odd = channel + 1 < steps.channels;
    for (int64_t i = 0; i < 2 && channel + kAhead + i < steps.channels; ++i) {
      const Storage* ahead = weight + (kAhead + i) * steps.channel_stride;
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + span - 1);
    }
    const auto even = load_at(weight, 0), more_even = load_at(weight, kElements);
    const auto odd = has_odd ? load_at(weight + steps.channel_stride, 0) : broadcast(0.0f);
    const auto more_odd = has_odd ? load_at(weight + steps.channel_stride, kElements) : broadcast(0.0f);
    for (int64_t v = 0; v < vectors; ++v, dst += kLanes) {
      const auto pairs = pick_pairs(even, more_even, odd, more_odd, order[v]);
      const int64_t rest = count - v * kLanes;
      rest >= kLanes ? store(dst, pairs) : store_partial(dst, pairs, rest);
    }
    dst += count - vectors * kLanes;
  }
  return true;
}

// As pack_weight_singly, with pairs of channels where kPair<Storage> is 2. `dst` has room for the channels one by one.
template <class Storage>
void pack_weight(
    const Storage* weight, const WeightTile* tiles, int64_t tile_count, const WeightSteps& steps, Acc<Storage>* dst,
    int64_t dst_tile) {
  if constexpr (kPair<Storage> == 2) {
    const int64_t stride = row_stride(tiles[0]);
    const bool rows_as_they_are = steps.tap_stride == 1 && (steps.channel_stride == steps.taps || steps.channels == 1);
    if (tile_count == 1 && stride != 0 && rows_as_they_are) {
      return pack_pairs(weight + tiles[0].row_offset[0], stride, tiles[0].rows, steps.channels, steps.taps, dst);
    }
    int64_t packed = 0;
    while (packed < tile_count && pack_near_pairs(weight, tiles[packed], steps, dst + packed * dst_tile)) ++packed;
    if (packed == tile_count) return;
  }
  pack_weight_singly(weight, tiles, tile_count, steps, dst, dst_tile);
  if constexpr (kPair<Storage> == 2) {
    for (int64_t i = 0; i < tile_count; ++i) {
      Acc<Storage>* tile = dst + i * dst_tile;
      const int64_t count = steps.taps * tiles[i].rows;
      for (int64_t channel = 0; channel < steps.channels; channel += 2) {
        const Acc<Storage>* even = tile + channel * count;
        pair_rows(even, channel + 1 < steps.channels ? even + count : nullptr, count, tile + channel / 2 * count);
      }
    }
  }
}

// Results to their tensor: dst[i * dst_stride] = (accumulate ? dst[...] : 0) + (negate ? -src[i] : src[i]).
template <class Storage>
void store_row(const Conv1dProblem& problem, const Acc<Storage>* src, int64_t count, Storage* dst, int64_t dst_stride) {
  if (problem.accumulate || problem.negate) {
    for (int64_t i = 0; i < count; ++i) {
      const Acc<Storage> base = problem.accumulate ? widen(dst[i * dst_stride]) : Acc<Storage>{0};
      narrow(problem.negate ? base - src[i] : base + src[i], dst + i * dst_stride);
    }
  } else if (dst_stride == 1) {
    constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
    if (i < count) store_partial(dst + i, load_partial(src + i, count - i), count - i);
  } else {
    for (int64_t i = 0; i < count; ++i) narrow(src[i], dst + i * dst_stride);
  }
}

}  // namespace
}  // namespace conv1d_ext
