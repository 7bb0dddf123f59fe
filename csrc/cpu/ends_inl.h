// The input gradient near the ends of the input, where some taps belong to outputs that do not exist. The kernels
// multiply zeros in their place, which is right unless the weight is infinite or NaN: then they get NaN where torch has
// a number. So each NaN near the ends is computed once more, from the outputs that exist. As a rule there is none, and
// the price is a look at a few positions of each row while they are in the cache.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct GradInputEnds {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const BackwardInputArgs& args;
  const bool repeats = problem.padding_mode != PaddingMode::kZeros;
  // The padding repeats positions as far from the ends as it is wide.
  const int64_t repeated = repeats ? 1 + max_of(problem.padding_left, problem.padding_right) : 0;
  // Positions [0, head) and [tail, in_length) meet outputs that do not exist.
  const int64_t head =
      min_of(problem.in_length, max_of(repeated, (problem.kernel_size - 1) * problem.dilation - problem.padding_left));
  const int64_t next_output = problem.out_length * problem.stride;  // where it would begin, in the padded input
  const int64_t tail = max_of(head, min_of(problem.in_length - repeated, next_output - problem.padding_left));
  // Of products that are added up, as complex ones are, NaN of the first would stay.
  const bool stored = !problem.accumulate && !problem.negate;

  // Adds zero times `count` values: NaN comes of NaN and of infinity.
  template <class Value>
  static void look(const Value* values, int64_t stride, int64_t count, Vec<T>* seen) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    if (stride == 1) {
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) *seen = fma(load(values + i), broadcast(T{0}), *seen);
      if (i < count) *seen = fma(load_partial(values + i, count - i), broadcast(T{0}), *seen);
    } else {
      T sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += widen(values[i * stride]) * 0;
      *seen = add(*seen, broadcast(sum));
    }
  }
  static bool alarming(Vec<T> seen) { return is_nan(sum(seen)); }

  // Looks at the ends among positions [first, last) of a row.
  void look_at_row(int64_t n, int64_t channel, int64_t first, int64_t last, Vec<T>* seen) const {
    if (!stored) return;
    for_ends(first, last, 1, [&](int64_t from, int64_t to) {
      look(row(n, channel) + from * problem.input.position, problem.input.position, to - from, seen);
    });
  }

  // Computes NaN at the ends among positions first, first + step, ... below `last` again.
  void mend(int64_t n, int64_t channel, int64_t first, int64_t last, int64_t step) const {
    for_ends(first, last, step, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; i += step) {
        Storage* value = row(n, channel) + i * problem.input.position;
        if (is_nan(widen(*value))) narrow(gradient_with_padding(n, channel, i), value);
      }
    });
  }

 private:
  static bool is_nan(T x) { return __builtin_isnan(x); }

  template <class Body>
  void for_ends(int64_t first, int64_t last, int64_t step, const Body& body) const {
    if (first < head) body(first, min_of(last, head));
    const int64_t to_tail = max_of(0, tail - first);
    const int64_t at_tail = first + (step == 1 ? to_tail : ceil_div(to_tail, step) * step);
    if (at_tail < last) body(at_tail, last);
  }

  Storage* row(int64_t n, int64_t channel) const {
    return static_cast<Storage*>(args.grad_input) + n * problem.input.batch + channel * problem.input.channel;
  }

  // What positions [first, last) of the padded input, counted from the input's first, get from all outputs. Stops at
  // NaN, which stays.
  T gradient(int64_t n, int64_t channel, int64_t first, int64_t last) const {
    const int64_t in_per_group = problem.in_channels / problem.groups;
    const int64_t out_per_group = problem.out_channels / problem.groups;
    const int64_t first_oc = channel / in_per_group * out_per_group;
    const Storage* grad_output =
        static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + first_oc * problem.output.channel;
    const Storage* weight = static_cast<const Storage*>(args.weight) + first_oc * problem.weight.out_channel +
                            channel % in_per_group * problem.weight.in_channel;
    T sum = 0;
    for (int64_t k = 0; k < problem.kernel_size && !is_nan(sum); ++k) {
      const int64_t shift = problem.padding_left - k * problem.dilation;
      const int64_t end = min_of(problem.out_length, ceil_div(last + shift, problem.stride));
      for (int64_t t = max_of(0, ceil_div(first + shift, problem.stride)); t < end; ++t) {
        for (int64_t oc = 0; oc < out_per_group; ++oc) {
          sum += widen(weight[oc * problem.weight.out_channel + k * problem.weight.tap]) *
                 widen(grad_output[oc * problem.output.channel + t * problem.output.position]);
        }
      }
    }
    return sum;
  }

  // The same of a position of the input, with the padding that repeats it.
  T gradient_with_padding(int64_t n, int64_t channel, int64_t position) const {
    const int64_t length = problem.in_length, begin = -problem.padding_left, end = length + problem.padding_right;
    const auto of = [&](int64_t i) { return i >= begin && i < end ? gradient(n, channel, i, i + 1) : T{0}; };
    switch (problem.padding_mode) {
      case PaddingMode::kZeros:
        return of(position);
      case PaddingMode::kReflect:
        return of(position) + (position > 0 ? of(-position) : 0) +
               (position < length - 1 ? of(2 * (length - 1) - position) : 0);
      case PaddingMode::kReplicate:
        return gradient(n, channel, position == 0 ? begin : position, position == length - 1 ? end : position + 1);
      case PaddingMode::kCircular:
        return of(position) + of(position - length) + of(position + length);
    }
    return T{0};
  }
};

// Work units: [batch][channel].
template <class Storage>
void backward_input_ends(const Conv1dProblem& problem, const BackwardInputArgs& args, int64_t begin, int64_t end) {
  const GradInputEnds<Storage> ends{problem, args};
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / problem.in_channels, channel = unit % problem.in_channels;
    Vec<Acc<Storage>> seen = broadcast(Acc<Storage>{0});
    ends.look_at_row(n, channel, 0, problem.in_length, &seen);
    if (ends.alarming(seen)) ends.mend(n, channel, 0, problem.in_length, 1);
  }
}

}  // namespace
}  // namespace conv1d_ext
