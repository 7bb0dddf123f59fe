// Moving data between tensors (any strides, storage type) and the scratch memory that the register tile works on
// (contiguous, accumulation type): rows with their padding filled in, results. Weights: pack_weight_inl.h.
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

// Phases, or taps, side by side from which on pack_phases is better than a row after the other.
constexpr int64_t kManyPhases = kMostPhases + 1;

// One channel of one batch item.
template <class Storage>
struct Row {
  const Storage* data;
  int64_t position_stride, length;
  PaddingMode padding_mode;
};

// A thread's memory for the operators whose register tile runs over a panel with packed or strided weights.
template <class T>
struct PanelMemory {
  T *panel, *packed_weight, *results;
  T* odd_row;                         // of a pair
  int64_t *panel_step, *weight_step;  // Tile::b_step, Tile::a_step
  NextRows next_rows;

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

  // Positions [begin, end) of the rows of some batch items and of `channels` channels, `row` being the first.
  template <class Storage>
  static NextRows rows_between(
      const Row<Storage>& row, const TensorStrides& strides, int64_t items, int64_t channels, int64_t begin,
      int64_t end, int64_t work) {
    begin = max_of(begin, 0);
    const int64_t count = min_of(end, row.length) - begin;
    const bool evenly_apart = items == 1 || strides.batch == channels * strides.channel;
    if (row.position_stride != 1 || !evenly_apart) return {};
    return {row.data + begin, strides.channel, items * channels, count, work};
  }
};

// What a kernel reads next, so many channels at a time, after those of a block's panel before `channel_end`: the next
// of them, or, after the last and unless they are read again, those of the block `next`, if there is one.
template <class Kernel, class Block>
NextRows following_rows(
    const Kernel& kernel, const Block& block, const Block* next, int64_t channels, int64_t channel_end, bool again,
    int64_t work) {
  const int64_t first = channel_end < kernel.panel_channels ? channel_end : 0;
  const Block* following = first > 0 || again ? &block : next;
  if (following == nullptr || !kernel.plan.fetch_rows) return {};
  return kernel.rows_to_fetch(*following, first, min_of(first + channels, kernel.panel_channels), work);
}

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

template <class Storage>
void copy_element(Storage from, Acc<Storage>* to) {
  *to = widen(from);
}
inline void copy_element(BFloat16 from, BFloat16* to) { *to = from; }

// With the stride known the compiler makes vector shuffles of it.
template <int kStride, class Storage, class To>
void copy_every(const Storage* src, int64_t count, To* __restrict dst) {
  for (int64_t i = 0; i < count; ++i) copy_element(src[i * kStride], dst + i);
}

// Of other strides some CPUs have shuffles, too.
template <class Storage, class To>
int64_t copy_strided(const Storage*, int64_t, int64_t, To*) {
  return 0;
}

template <class Storage, class To>
void copy_elements(const Storage* src, int64_t src_stride, int64_t count, To* __restrict dst) {
  if (src_stride == 2) {
    copy_every<2>(src, count, dst);
  } else if (src_stride == 3) {
    copy_every<3>(src, count, dst);
  } else if (src_stride == 4) {
    copy_every<4>(src, count, dst);
  } else {
    for (int64_t i = copy_strided(src, src_stride, count, dst); i < count; ++i)
      copy_element(src[i * src_stride], dst + i);
  }
}

template <class Storage>
void copy_row(const Storage* src, int64_t src_stride, int64_t count, Acc<Storage>* __restrict dst) {
  if (src_stride != 1) return copy_elements(src, src_stride, count, dst);
  constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
  if (i < count) store_partial(dst + i, load_partial(src + i, count - i), count - i);
}

// As they are, for pairs of neighbours.
inline void copy_row(const BFloat16* src, int64_t src_stride, int64_t count, BFloat16* __restrict dst) {
  src_stride == 1 ? copy_every<1>(src, count, dst) : copy_elements(src, src_stride, count, dst);
}

// Those of the positions start + j * step, j < count, that are in [0, length): j in [begin, end).
struct Part {
  int64_t begin, end;
};
inline Part part_inside(int64_t length, int64_t start, int64_t step, int64_t count) {
  if (start >= 0 && start + (count - 1) * step < length) return {0, count};
  const int64_t begin = max_of(0, min_of(count, ceil_div(-start, step)));
  return {begin, max_of(begin, min_of(count, ceil_div(length - start, step)))};
}

// The output positions that meet input positions [begin, end).
inline Part outputs_that_meet(const Conv1dProblem& problem, int64_t begin, int64_t end) {
  const int64_t reach = (problem.kernel_size - 1) * problem.dilation;
  return part_inside(end - begin + reach, reach - problem.padding_left - begin, problem.stride, problem.out_length);
}

// Zero beyond the padding, too.
template <class Storage, class To>
void copy_padded_element(const Row<Storage>& row, int64_t position, To* to) {
  const bool inside = position >= 0 && position < row.length;
  const int64_t source = inside ? position : source_position(row.padding_mode, position, row.length);
  *to = To{};
  if (source >= 0 && source < row.length) copy_element(row.data[source * row.position_stride], to);
}

// dst[j] = padded row at position start + j * step, for j < count; zero for count <= j < width.
template <class Storage, class To>
void pack_row(
    const Row<Storage>& row, int64_t start, int64_t step, int64_t count, const Part& inside, int64_t width, To* dst) {
  const auto fill_edge = [&](int64_t begin, int64_t end) {
    if (row.padding_mode == PaddingMode::kZeros) {
      for (int64_t j = begin; j < end; ++j) dst[j] = To{};
    } else {
      for (int64_t j = begin; j < end; ++j) copy_padded_element(row, start + j * step, dst + j);
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

// dst[phase * dst_stride + j] = padded row at position start + j * step + phase, for phase < phases and j < count: the
// transpose of the input taken as [j][phase], so that elements that lie side by side are taken from each line of memory
// at once. The last positions of the last phases may lie beyond the padding. Up to kPackSlack elements behind the
// `count` of each row are written, too: rows are to be filled in their order, with room behind the last of several
// items.
template <class Storage, class To>
void pack_phases(
    const Row<Storage>& row, int64_t start, int64_t step, int64_t count, int64_t phases, To* dst, int64_t dst_stride) {
  const Part inside = part_inside(row.length - phases + 1, start, step, count);  // all phases of them
  const Storage* src = row.data + start + inside.begin * step;
  const int64_t inner = inside.end - inside.begin;
  if constexpr (sizeof(To) == sizeof(Acc<Storage>)) {
    static_assert(kSquare<To> <= kPackSlack);
    transpose(src, step, inner, phases, dst + inside.begin, dst_stride);
  } else {
    constexpr int64_t kLine = 64 / sizeof(Storage);
    for (int64_t phase = 0; phase < phases; phase += kLine) {
      const int64_t end = min_of(phase + kLine, phases);
      for (int64_t j = 0; j < inner; ++j) {
        for (int64_t i = phase; i < end; ++i) copy_element(src[j * step + i], dst + i * dst_stride + inside.begin + j);
      }
    }
  }
  const auto fill_edge = [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t i = 0; i < phases; ++i) copy_padded_element(row, start + j * step + i, dst + i * dst_stride + j);
    }
  };
  fill_edge(0, inside.begin);
  fill_edge(inside.end, count);
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

// dst[i] = src[i - begin] for begin <= i < end, zeros for the other i < width, which is whole vectors.
template <class Storage>
void copy_between_zeros(const Storage* src, int64_t begin, int64_t end, int64_t width, Acc<Storage>* dst) {
  constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
  const auto zeros = broadcast(Acc<Storage>{0});
  for (int64_t i = 0; i < begin; i += kLanes) store(dst + i, zeros);
  // What ends within a vector is stored with zeros behind; then the vectors from the next multiple on.
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes, src += kLanes) store(dst + i, load(src));
  for (int64_t zero = i / kLanes * kLanes + kLanes; zero < width; zero += kLanes) store(dst + zero, zeros);
  if (i < width) {
    const auto rest = load_partial(src, max_of(0, end - i));
    i + kLanes <= width ? store(dst + i, rest) : store_partial(dst + i, rest, width - i);
  }
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
  const bool whole = inside.begin == 0 && inside.end == count;
  if (n1 - n0 == 1 && step * row.position_stride == 1) {
    if constexpr (kPair<Storage> == 2) {
      const Storage* odd = first + 1 < channels ? row_of(n0, first + 1).data + start : nullptr;
      if (whole) return pack_pairs_of_rows(row.data + start, odd, count, plan.panel_width, dst);
    } else if (whole || row.padding_mode == PaddingMode::kZeros) {
      const Storage* src = row.data + start + inside.begin;
      return copy_between_zeros(src, inside.begin, inside.end, plan.panel_width, dst);
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
