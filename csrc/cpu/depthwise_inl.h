// Depthwise layers of stride 1: each output row is a sum of shifted copies of one input row, and memory is the limit.
// Rows are read where they are; only the positions whose taps reach into the padding go through a copy. The gradient
// of the input is the same with the taps in reverse order.
#pragma once

namespace conv1d_ext {
namespace {

// out[t] = bias + sum over k of taps[k] * padded[t + k * dilation], for rows of which `padding_left` positions are
// added in front.
template <class Storage>
struct DepthwiseRow {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;  // for accumulate and negate
  const int64_t padding_left, dilation = problem.dilation, kernel_size = problem.kernel_size;
  Row<Storage> in{};
  Storage* out = nullptr;
  int64_t out_stride = 0;
  T bias = 0;
  T *window, *results, *taps;  // scratch: a block of positions and the halo; a block of positions; the taps

  DepthwiseRow(const Conv1dProblem& p, const Plan& plan, int64_t left, void* memory) : problem(p), padding_left(left) {
    Scratch scratch{static_cast<char*>(memory)};
    window = scratch.take<T>(plan.panel_elements);
    results = scratch.take<T>(plan.result_elements);
    taps = scratch.take<T>(plan.weight_elements);
  }

  int64_t halo() const { return (kernel_size - 1) * dilation; }

  // kVectors vectors of sums over src[i + k * dilation].
  template <int kVectors, class Source>
  void sum_taps(const Source* src, Vec<T>* sums) const {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] = broadcast(bias);
    for (int64_t first = 0; first < kernel_size; first += kLongestPart) {
      Vec<T> part[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) part[v] = broadcast(T{0});
      for (int64_t k = first; k < min_of(first + kLongestPart, kernel_size); ++k) {
        const Vec<T> tap = broadcast(taps[k]);
        const Source* at = src + k * dilation;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) part[v] = fma(tap, load(at + v * Vec<T>::kLanes), part[v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] = add(sums[v], part[v]);
    }
  }

  // `count` outputs from src on; whole vectors of src are read, and no more than `count` are written.
  template <class Source, class Result>
  void sum_positions(const Source* src, int64_t count, Result* dst) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    constexpr int kVectors = 8;  // independent sums, to hide the latency of the FMAs
    int64_t i = 0;
    Vec<T> sums[kVectors];
    for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) {
      sum_taps<kVectors>(src + i, sums);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(dst + i + v * kLanes, sums[v]);
    }
    for (; i + kLanes <= count; i += kLanes) {
      sum_taps<1>(src + i, sums);
      store(dst + i, sums[0]);
    }
    if (i < count) {
      sum_taps<1>(src + i, sums);
      store_partial(dst + i, sums[0], count - i);
    }
  }

  template <class Source>
  void run(const Source* src, int64_t t0, int64_t t1) const {
    Storage* dst = out + t0 * out_stride;
    if (out_stride == 1 && !problem.accumulate && !problem.negate) {
      sum_positions(src, t1 - t0, dst);
    } else {
      sum_positions(src, t1 - t0, results);
      store_row(problem, results, t1 - t0, dst, out_stride);
    }
  }

  // Outputs [t0, t1), at most a block of them, through a copy of what they meet.
  void run_copied(int64_t t0, int64_t t1) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t count = t1 - t0 + halo();
    pack_row(in, t0 - padding_left, 1, count, count + kLanes, window);
    run(window, t0, t1);
  }

  // Outputs [t0, t1), at most a block of them.
  void run_block(int64_t t0, int64_t t1) const {
    // Positions whose vectors lie inside the row.
    const int64_t begin = max_of(t0, min_of(t1, padding_left));
    const int64_t whole = (in.length - halo() + padding_left - begin) / Vec<T>::kLanes * Vec<T>::kLanes;
    const int64_t end = min_of(t1, begin + whole);
    if (in.position_stride != 1 || end - begin < Vec<T>::kLanes) return run_copied(t0, t1);
    if (t0 < begin) run_copied(t0, begin);
    run(in.data + begin - padding_left, begin, end);
    if (end < t1) run_copied(end, t1);
  }
};

// Work units: [batch][channel][block of positions].
template <class Storage>
void forward_depthwise(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* memory, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  const int64_t multiplier = problem.out_channels / problem.groups;
  DepthwiseRow<Storage> row(problem, plan, problem.padding_left, memory);
  row.out_stride = problem.output.position;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t index = unit / plan.position_blocks, block = unit % plan.position_blocks;
    const int64_t n = index / problem.out_channels, oc = index % problem.out_channels;
    row.in = {
        static_cast<const Storage*>(args.input) + n * problem.input.batch + oc / multiplier * problem.input.channel,
        problem.input.position, problem.in_length, problem.padding_mode};
    row.out = static_cast<Storage*>(args.output) + n * problem.output.batch + oc * problem.output.channel;
    row.bias = args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]);
    const Storage* weight = static_cast<const Storage*>(args.weight) + oc * problem.weight.out_channel;
    for (int64_t k = 0; k < problem.kernel_size; ++k) row.taps[k] = widen(weight[k * problem.weight.tap]);
    row.run_block(
        block_begin(problem.out_length, Vec<T>::kLanes, plan.position_blocks, block),
        block_begin(problem.out_length, Vec<T>::kLanes, plan.position_blocks, block + 1));
  }
}

// Work units: [batch][channel][block of positions].
template <class Storage>
void backward_input_depthwise(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* memory, int64_t begin,
    int64_t end) {
  using T = Acc<Storage>;
  const int64_t padding_left = (problem.kernel_size - 1) * problem.dilation - problem.padding_left;
  DepthwiseRow<Storage> row(problem, plan, padding_left, memory);
  row.out_stride = problem.input.position;
  // Calls body(n, channel, first, last) for the rows and positions of the units.
  const auto for_blocks = [&](const auto& body) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t index = unit / plan.position_blocks, block = unit % plan.position_blocks;
      body(
          index / problem.in_channels, index % problem.in_channels,
          block_begin(problem.in_length, Vec<T>::kLanes, plan.position_blocks, block),
          block_begin(problem.in_length, Vec<T>::kLanes, plan.position_blocks, block + 1));
    }
  };
  const GradInputEnds<Storage> ends{problem, args};
  Vec<T> seen = broadcast(T{0});
  for_blocks([&](int64_t n, int64_t channel, int64_t first, int64_t last) {
    row.in = {
        static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + channel * problem.output.channel,
        problem.output.position, problem.out_length, PaddingMode::kZeros};
    row.out = static_cast<Storage*>(args.grad_input) + n * problem.input.batch + channel * problem.input.channel;
    const Storage* weight = static_cast<const Storage*>(args.weight) + channel * problem.weight.out_channel;
    for (int64_t k = 0; k < problem.kernel_size; ++k) {
      row.taps[problem.kernel_size - 1 - k] = widen(weight[k * problem.weight.tap]);
    }
    row.run_block(first, last);
    ends.look_at_row(n, channel, first, last, &seen);
  });
  if (!ends.alarming(seen)) return;
  for_blocks([&](int64_t n, int64_t channel, int64_t first, int64_t last) { ends.mend(n, channel, first, last, 1); });
}

}  // namespace
}  // namespace conv1d_ext
