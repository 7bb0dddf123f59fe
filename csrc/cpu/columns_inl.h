// Columns, of which conv1d and its gradients make use where outputs are few positions long. An output position is a
// column: the inputs that it meets are laid out as [in_channel][tap], just as a row of the weights is. Vectors lie
// along those and are full whatever the length, and the weights, which are the traffic here, are read once and in their
// order.
#pragma once

namespace conv1d_ext {
namespace {

template <class Column, class Storage>
Column as_column(Storage x) {
  if constexpr (sizeof(Column) == sizeof(Storage)) {
    return x;
  } else {
    return widen(x);
  }
}

// dst[(q - q0) * pitch + (ic - ic0) * taps + k]: input channels [ic0, ic1) of a group for columns [q0, q1), which are
// numbered n * out_length + t.
template <class Storage, class Column>
void fill_columns(
    const Conv1dProblem& problem, const void* input, int64_t group, int64_t q0, int64_t q1, int64_t ic0, int64_t ic1,
    Column* columns, int64_t pitch) {
  constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
  const int64_t taps = problem.kernel_size, first = group * (problem.in_channels / problem.groups);
  const int64_t step = problem.dilation * problem.input.position;
  for (int64_t q = q0; q < q1; ++q) {
    const int64_t n = q / problem.out_length, start = q % problem.out_length * problem.stride - problem.padding_left;
    const auto position = [&](int64_t k) { return start + k * problem.dilation; };
    int64_t begin = 0, end = taps;  // the taps that don't meet the padding
    while (begin < taps && position(begin) < 0) ++begin;
    while (end > begin && position(end - 1) >= problem.in_length) --end;
    const Storage* row =
        static_cast<const Storage*>(input) + n * problem.input.batch + (first + ic0) * problem.input.channel;
    Column* dst = columns + (q - q0) * pitch;
    if constexpr (sizeof(Column) == sizeof(Acc<Storage>)) {
      // A vector for each channel, whose zeros behind the taps are the padding and overwritten by the next channel.
      if (step == 1 && taps <= kLanes && (problem.padding_mode == PaddingMode::kZeros || end - begin == taps)) {
        const int64_t count = end - begin;
        row += position(begin) * problem.input.position;
        for (int64_t ic = ic0; ic < ic1; ++ic, row += problem.input.channel, dst += taps) {
          if (begin > 0) store(dst, broadcast(Column{0}));
          store(dst + begin, load_partial(row, count));
        }
        continue;
      }
    }
    for (int64_t ic = ic0; ic < ic1; ++ic, row += problem.input.channel, dst += taps) {
      const auto fill_edge = [&](int64_t k0, int64_t k1) {
        for (int64_t k = k0; k < k1; ++k) {
          const int64_t source = source_position(problem.padding_mode, position(k), problem.in_length);
          dst[k] = source < 0 ? Column{} : as_column<Column>(row[source * problem.input.position]);
        }
      };
      fill_edge(0, begin);
      fill_edge(end, taps);
      const Storage* src = row + position(begin) * problem.input.position;
      const int64_t count = end - begin;
      if constexpr (sizeof(Column) == sizeof(Acc<Storage>)) {
        copy_row(src, step, count, dst + begin);
      } else {
        for (int64_t k = 0; k < count; ++k) dst[begin + k] = as_column<Column>(src[k * step]);
      }
    }
  }
}

}  // namespace
}  // namespace conv1d_ext
