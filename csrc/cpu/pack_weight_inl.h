// Weights in the order of their use, tile by tile: dst[channel][tap][row], or, of bfloat16 where the CPU multiplies
// pairs of channels, dst[pair of channels][tap][row]. Input gradients read the same weights with channels and rows
// exchanged.
#pragma once

namespace conv1d_ext {
namespace {

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
  for (int64_t v = 0; v < vectors; ++v) {
    order[v] = pair_picks(weight, from + v * kLanes, min_of(kLanes, count - v * kLanes));
  }
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

}  // namespace
}  // namespace conv1d_ext
