// The input gradient near the ends of the input, where some taps belong to outputs that do not exist. The kernels
// multiply zeros in their place, which is right unless the weight is infinite or NaN: then they get NaN where torch has
// a number. So each NaN near the ends is computed once more, from the outputs that exist. As a rule there is none, and
// the price is a look at a few positions of each row.
#pragma once

namespace conv1d_ext {
namespace {

inline bool is_nan(float x) { return x != x; }
inline bool is_nan(double x) { return x != x; }
inline bool is_nan(BFloat16 x) { return (x.bits & 0x7fffu) > 0x7f80u; }
inline bool is_nan(Float16 x) { return (x.bits & 0x7fffu) > 0x7c00u; }

template <class Storage>
bool any_nan(const Storage* row, int64_t stride, int64_t count) {
  int found = 0;
  if (stride == 1) {  // apart, for the compiler to make vectors of it
    for (int64_t i = 0; i < count; ++i) found |= is_nan(row[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) found |= is_nan(row[i * stride]);
  }
  return found != 0;
}

// One row of grad_input: of one batch item and input channel.
template <class Storage>
struct GradInputRow {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const Storage *grad_output, *weight;  // of the batch item and the group; of the group and the input channel
  Storage* data;

  // What positions [first, last) of the padded input, counted from the input's first, get from all outputs. Stops at
  // NaN, which stays.
  T gradient(int64_t first, int64_t last) const {
    T sum = 0;
    for (int64_t k = 0; k < problem.kernel_size && !is_nan(sum); ++k) {
      const int64_t shift = problem.padding_left - k * problem.dilation;
      const int64_t end = min_of(problem.out_length, ceil_div(last + shift, problem.stride));
      for (int64_t t = max_of(0, ceil_div(first + shift, problem.stride)); t < end; ++t) {
        for (int64_t oc = 0; oc < problem.out_channels / problem.groups; ++oc) {
          sum += widen(weight[oc * problem.weight.out_channel + k * problem.weight.tap]) *
                 widen(grad_output[oc * problem.output.channel + t * problem.output.position]);
        }
      }
    }
    return sum;
  }

  // The same of a position of the input, with the padding that repeats it.
  T gradient_with_padding(int64_t position) const {
    const int64_t length = problem.in_length, begin = -problem.padding_left, end = length + problem.padding_right;
    const auto of = [&](int64_t i) { return i >= begin && i < end ? gradient(i, i + 1) : T{0}; };
    switch (problem.padding_mode) {
      case PaddingMode::kZeros:
        return of(position);
      case PaddingMode::kReflect:
        return of(position) + (position > 0 ? of(-position) : 0) +
               (position < length - 1 ? of(2 * (length - 1) - position) : 0);
      case PaddingMode::kReplicate:
        return gradient(position == 0 ? begin : position, position == length - 1 ? end : position + 1);
      case PaddingMode::kCircular:
        return of(position) + of(position - length) + of(position + length);
    }
    return T{0};
  }

  void mend(int64_t first, int64_t last) const {
    const int64_t stride = problem.input.position;
    if (first >= last || !any_nan(data + first * stride, stride, last - first)) return;
    for (int64_t i = first; i < last; ++i) {
      if (is_nan(data[i * stride])) narrow(gradient_with_padding(i), data + i * stride);
    }
  }
};

// Work units: [batch][channel].
template <class Storage>
void backward_input_ends(const Conv1dProblem& problem, const BackwardInputArgs& args, int64_t begin, int64_t end) {
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  // The padding repeats positions as far from the ends as it is wide.
  const bool repeats = problem.padding_mode != PaddingMode::kZeros;
  const int64_t repeated = repeats ? 1 + max_of(problem.padding_left, problem.padding_right) : 0;
  const int64_t head =
      min_of(problem.in_length, max_of(repeated, (problem.kernel_size - 1) * problem.dilation - problem.padding_left));
  const int64_t tail =
      max_of(head, min_of(problem.in_length - repeated, problem.out_length * problem.stride - problem.padding_left));
  if (head <= 0 && tail >= problem.in_length) return;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / problem.in_channels, channel = unit % problem.in_channels;
    const int64_t first_oc = channel / in_per_group * out_per_group;
    const GradInputRow<Storage> row{
        problem,
        static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + first_oc * problem.output.channel,
        static_cast<const Storage*>(args.weight) + first_oc * problem.weight.out_channel +
            channel % in_per_group * problem.weight.in_channel,
        static_cast<Storage*>(args.grad_input) + n * problem.input.batch + channel * problem.input.channel};
    row.mend(0, head);
    row.mend(tail, problem.in_length);
  }
}

}  // namespace
}  // namespace conv1d_ext
