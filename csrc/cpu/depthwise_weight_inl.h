// Weight gradients of depthwise layers: that of a tap is a dot product of grad_output and the row (depthwise_inl.h),
// shifted.
#pragma once

namespace conv1d_ext {
namespace {

// For each tap, a dot product of grad_output and the row.
template <class Storage>
struct DepthwiseDots {
  using T = Acc<Storage>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  static constexpr int kMostTaps = kTileAccumulators * 2 / 3;  // and half as many vectors of the row
  const Conv1dProblem& problem;
  Scratch scratch;
  DepthwiseRow<Storage> row;
  T *grad, *sums;  // a block of positions; a vector for each tap, run by run

  DepthwiseDots(const Conv1dProblem& p, const Plan& plan, void* memory)
      : problem(p),
        scratch{static_cast<char*>(memory)},
        row(plan, &scratch),
        grad(scratch.take<T>(plan.weight_elements)),
        sums(scratch.take<T>(plan.result_elements)) {
    row.set_phases(problem);
  }

  // to[tap][lane] += what falls to the lane of the sum over i < count of values[i] * src[i + tap * shift], for kTaps
  // taps; of few taps each is split, so that the FMAs' latency is hidden. kShifts: shift is 1.
  template <int kTaps, bool kShifts, class Grad, class Source>
  void add_taps(const Grad* values, const Source* src, int64_t count, T* to) const {
    constexpr int kPairs = kShifts ? kTaps / 2 : 0, kChains = kTaps < 5 ? 8 / kTaps : 1;
    Vec<T> acc[kChains][kTaps], left[kPairs + 1];
#pragma GCC unroll 16
    for (auto& chain : acc) {
#pragma GCC unroll 16
      for (auto& lanes : chain) lanes = broadcast(T{0});
    }
#pragma GCC unroll 16
    for (int pair = 0; pair < kPairs; ++pair) left[pair] = load(src + 2 * pair);
    const auto add_vector = [&](int chain, int64_t i) __attribute__((always_inline)) {
      __builtin_prefetch(values + i + kFetchAhead / int64_t{sizeof(Grad)});
      __builtin_prefetch(src + i + kFetchAhead / int64_t{sizeof(Source)});
      const Vec<T> g = load(values + i);
      if constexpr (kShifts) {
#pragma GCC unroll 16
        for (int pair = 0; pair < kPairs; ++pair) {
          const Vec<T> right = held(load(src + i + 2 * pair + kLanes));
          acc[chain][2 * pair] = fma(g, left[pair], acc[chain][2 * pair]);
          acc[chain][2 * pair + 1] = fma(g, shift_in(left[pair], right), acc[chain][2 * pair + 1]);
          left[pair] = right;
        }
      }
#pragma GCC unroll 16
      for (int tap = 2 * kPairs; tap < kTaps; ++tap) {
        acc[chain][tap] = fma(g, load(src + i + tap * row.shift), acc[chain][tap]);
      }
    };
    int64_t i = 0;
    for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
#pragma GCC unroll 16
      for (int chain = 0; chain < kChains; ++chain) add_vector(chain, i + chain * kLanes);
    }
    for (; i + kLanes <= count; i += kLanes) add_vector(0, i);
    if (i < count) {  // of both: behind the end may be infinity
      const Vec<T> g = load_partial(values + i, count - i);
#pragma GCC unroll 16
      for (int tap = 0; tap < kTaps; ++tap) {
        acc[0][tap] = fma(g, load_partial(src + i + tap * row.shift, count - i), acc[0][tap]);
      }
    }
#pragma GCC unroll 16
    for (int tap = 0; tap < kTaps; ++tap) {
#pragma GCC unroll 16
      for (int chain = 1; chain < kChains; ++chain) acc[0][tap] = add(acc[0][tap], acc[chain][tap]);
      store(to + tap * kLanes, add(load(to + tap * kLanes), acc[0][tap]));
    }
  }

  template <int kTaps, class Grad, class Source>
  void add_tile(int64_t taps, const Grad* values, const Source* src, int64_t count, T* to) const {
    if constexpr (kTaps > 0) {
      if (taps < kTaps) return add_tile<kTaps - 1>(taps, values, src, count, to);
      if (kShiftsVectors<T> && row.shift == 1) return add_taps<kTaps, kShiftsVectors<T>>(values, src, count, to);
      add_taps<kTaps, false>(values, src, count, to);
    }
  }

  // All taps, in tiles of nearly equal size.
  template <class Grad, class Source>
  void add_runs(const Grad* values, const Source* src, int64_t count) const {
    for (const TapRun* run = row.runs; run != row.runs + row.run_count; ++run) {
      const int64_t tiles = ceil_div(run->count, kMostTaps);
      for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
        const int64_t taps = (run->count - i + tiles - tile - 1) / (tiles - tile);
        add_tile<kMostTaps>(taps, values, src + run->offset + i * row.shift, count, sums + (run->first + i) * kLanes);
        i += taps;
      }
    }
  }

  // Adds outputs [t0, t1), at most a block of them; `grad_row` is where the row's grad_output begins.
  void add_block(const Storage* grad_row, int64_t t0, int64_t t1) const {
    row.for_pieces(t0, t1, [&](const auto* src, int64_t begin, int64_t end) {
      const Storage* values = grad_row + begin * problem.output.position;
      if (problem.output.position == 1) return add_runs(values, src, end - begin);
      copy_row(values, problem.output.position, end - begin, grad);
      add_runs(static_cast<const T*>(grad), src, end - begin);
    });
  }

  // Adds up the lanes and calls store_run(phase, sums, count) with the sums of taps phase, phase + phases, ...
  template <class Store>
  void store_sums(const Store& store_run) const {
    for (int64_t tap = 0; tap < problem.kernel_size; ++tap) sums[tap] = sum(load(sums + tap * kLanes));
    for (int64_t phase = 0; phase < row.phases; ++phase) {
      store_run(phase, sums + row.runs[phase].first, row.runs[phase].count);
    }
  }
};

// Work units: [chunk of the sum][output channel].
template <class Storage>
void backward_weight_depthwise(
    const Conv1dProblem& problem, const Plan& plan, const BackwardWeightArgs& args, void* memory, int64_t begin,
    int64_t end) {
  using T = Acc<Storage>;
  constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t multiplier = problem.out_channels / problem.groups, taps = problem.kernel_size;
  DepthwiseDots<Storage> dots(problem, plan, memory);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t chunk = unit / problem.out_channels, oc = unit % problem.out_channels;
    for (int64_t i = 0; i < taps * kLanes; ++i) dots.sums[i] = 0;
    const auto add_block = [&](int64_t n, int64_t, int64_t first, int64_t last) {
      dots.row.in = {
          static_cast<const Storage*>(args.input) + n * problem.input.batch + oc / multiplier * problem.input.channel,
          problem.input.position, problem.in_length, problem.padding_mode};
      dots.add_block(
          static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + oc * problem.output.channel, first,
          last);
    };
    const int64_t steps = problem.batch * plan.position_blocks, chunks = plan.reduction_chunks;
    for_row_blocks<T>(
        1, problem.out_length, plan.position_blocks, part_begin(steps, chunks, chunk),
        part_begin(steps, chunks, chunk + 1), add_block);
    dots.store_sums([&](int64_t phase, const T* sums, int64_t count) {
      const int64_t phases = dots.row.phases;
      if (plan.reduction_chunks > 1) {
        T* partial = static_cast<T*>(args.partial_sums) + (chunk * problem.out_channels + oc) * taps;
        for (int64_t i = 0; i < count; ++i) partial[phase + i * phases] = sums[i];
      } else {
        Storage* weight = static_cast<Storage*>(args.grad_weight) + oc * problem.weight.out_channel;
        store_row(problem, sums, count, weight + phase * problem.weight.tap, phases * problem.weight.tap);
      }
    });
  }
}

}  // namespace
}  // namespace conv1d_ext
