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
  int64_t *panel_tap, *weight_tap;  // offsets by tap: Tile::b_tap, Tile::a_tap

  PanelMemory(const Plan& plan, void* memory) {
    Scratch scratch{static_cast<char*>(memory)};
    panel = scratch.take<T>(plan.panel_elements);
    packed_weight = scratch.take<T>(plan.weight_elements);
    results = scratch.take<T>(plan.result_elements);
    panel_tap = scratch.take<int64_t>(plan.tap_block);
    weight_tap = scratch.take<int64_t>(plan.tap_block);
  }
};

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
template <int kStride, class Storage>
void copy_every(const Storage* src, int64_t count, Acc<Storage>* __restrict dst) {
  for (int64_t i = 0; i < count; ++i) dst[i] = widen(src[i * kStride]);
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

// dst[j] = padded row at position start + j * step, for j < count; zero for count <= j < width.
template <class Storage>
void pack_row(const Row<Storage>& row, int64_t start, int64_t step, int64_t count, int64_t width, Acc<Storage>* dst) {
  const int64_t inside = max_of(0, min_of(count, ceil_div(-start, step)));
  const int64_t after = max_of(inside, min_of(count, ceil_div(row.length - start, step)));
  const auto fill_edge = [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t source = source_position(row.padding_mode, start + j * step, row.length);
      dst[j] = source < 0 ? 0 : widen(row.data[source * row.position_stride]);
    }
  };
  fill_edge(0, inside);
  if (inside < after) {
    const Storage* first = row.data + (start + inside * step) * row.position_stride;
    copy_row(first, step * row.position_stride, after - inside, dst + inside);
  }
  fill_edge(after, count);
  for (int64_t j = count; j < width; ++j) dst[j] = 0;
}

// dst[column * dst_stride + row] = src[row * src_stride + column], for row < rows and column < columns, in squares.
// What a square writes too much of lies where a later one writes: at the start of the next column, or past the end of
// dst, by up to kSquare elements. `kExact` writes nothing else, one by one where rows don't fill a square.
template <bool kExact = false, class Storage>
void transpose(
    const Storage* src, int64_t src_stride, int64_t rows, int64_t columns, Acc<Storage>* dst, int64_t dst_stride) {
  using T = Acc<Storage>;
  constexpr int64_t kSide = kSquare<T>;
  const int64_t whole = columns / kSide * kSide;
  for (int64_t column = 0; column < whole; column += kSide) {
    for (int64_t row = (rows - 1) / kSide * kSide; row >= 0; row -= kSide) {
      const int64_t band = min_of(kSide, rows - row);
      T* to = dst + column * dst_stride + row;
      if (kExact && band < kSide) {
        for (int64_t i = 0; i < band * kSide; ++i) {
          to[i / band * dst_stride + i % band] = widen(src[(row + i % band) * src_stride + column + i / band]);
        }
      } else if constexpr (kStoredAsComputed<Storage>) {
        transpose_square(src + row * src_stride + column, src_stride, band, to, dst_stride);
      } else {
        T staged[kSide * kSide];
        for (int64_t r = 0; r < band; ++r) {
          copy_row(src + (row + r) * src_stride + column, 1, kSide, staged + r * kSide);
        }
        transpose_square(staged, kSide, band, to, dst_stride);
      }
    }
  }
  for (int64_t column = whole; column < columns; ++column) {
    for (int64_t row = 0; row < rows; ++row) dst[column * dst_stride + row] = widen(src[row * src_stride + column]);
  }
}

// dst[(channel * taps + tap) * rows + row] = weight[row_offset[row] + channel * channel_stride + tap * tap_stride]; up
// to kSquare elements behind are written, too.
template <class Storage>
void pack_weight(
    const Storage* weight, const int64_t* row_offset, int64_t rows, int64_t channels, int64_t channel_stride,
    int64_t taps, int64_t tap_stride, Acc<Storage>* dst) {
  const int64_t row_stride = rows > 1 ? row_offset[1] - row_offset[0] : 0;
  bool even = tap_stride == 1 && (channel_stride == taps || channels == 1);  // a row is contiguous
  for (int64_t row = 1; row < rows; ++row) even = even && row_offset[row] - row_offset[row - 1] == row_stride;
  if (even) {
    transpose(weight + row_offset[0], row_stride, rows, channels * taps, dst, rows);
    return;
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t row = 0; row < rows; ++row) {
      const Storage* from = weight + row_offset[row] + channel * channel_stride;
      Acc<Storage>* to = dst + channel * taps * rows + row;
      for (int64_t tap = 0; tap < taps; ++tap) to[tap * rows] = widen(from[tap * tap_stride]);
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
