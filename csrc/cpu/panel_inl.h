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

template <class Storage>
void copy_row(const Storage* src, int64_t src_stride, int64_t count, Acc<Storage>* dst) {
  if (src_stride == 1) {
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

// dst[(channel * taps + tap) * rows + row] = weight[row * row_stride + channel * channel_stride + tap * tap_stride]
template <class Storage>
void pack_weight(
    const Storage* weight, int64_t rows, int64_t row_stride, int64_t channels, int64_t channel_stride, int64_t taps,
    int64_t tap_stride, Acc<Storage>* dst) {
  for (int64_t row = 0; row < rows; ++row) {
    Acc<Storage>* to = dst + row;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const Storage* from = weight + row * row_stride + channel * channel_stride;
      for (int64_t tap = 0; tap < taps; ++tap, to += rows) *to = widen(from[tap * tap_stride]);
    }
  }
}

// Results to their tensor: dst[i * dst_stride] = (accumulate ? dst[...] : 0) + (negate ? -src[i] : src[i]).
template <class Storage>
void store_row(
    const Conv1dProblem& problem, const Acc<Storage>* src, int64_t count, Storage* dst, int64_t dst_stride) {
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
