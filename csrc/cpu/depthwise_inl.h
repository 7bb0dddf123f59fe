// Depthwise layers: each output row is a sum of shifted copies of one input row, and memory is the limit. Rows are read
// where they are; only the positions whose taps reach into the padding go through a copy, and those of strides, which
// splits them by phase. The gradient of the input is the same with the taps in reverse order, for each class of taps
// (tap_classes_inl.h); weight gradients: depthwise_weight_inl.h.
#pragma once

namespace conv1d_ext {
namespace {

// Where vectors fill a cache line, nearly all unaligned ones lie in two and cost two loads. Of two taps side by side
// every other vector is made of its neighbours instead (31 taps: 62 -> 79 GFLOP/s).
template <class T>
constexpr bool kShiftsVectors = Vec<T>::kLanes * sizeof(T) == 64;

// The taps of a phase, or of a class: tap first + i of those in their order meets src[offset + i * shift].
struct TapRun {
  int64_t offset, first, count;
};

template <class Storage>
struct DepthwiseRow {
  using T = Acc<Storage>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  const int64_t shift, run_count, pitch;
  TapRun* runs;
  T* window;  // what a block of positions meets, and two vectors more, phase by phase
  // Position t of a phase is t * stride + phase * phase_distance in the padded row.
  int64_t stride = 1, phases = 1, phase_distance = 0, padding_left = 0;
  int64_t halo = 0;  // positions that meet an output, but for one
  Row<Storage> in{};

  DepthwiseRow(const Plan& plan, Scratch* scratch)
      : shift(plan.phase_shift),
        run_count(plan.step_table),
        pitch(plan.panel_width),
        runs(scratch->take<TapRun>(plan.step_table)),
        window(scratch->take<T>(plan.panel_elements)) {}

  // Of the input: a run is a phase of the stride.
  void set_phases(const Conv1dProblem& problem) {
    stride = problem.stride;
    phases = run_count;
    phase_distance = problem.dilation;
    padding_left = problem.padding_left;
    for (int64_t phase = 0, first = 0; phase < phases; ++phase) {
      runs[phase] = {phase * pitch, first, ceil_div(problem.kernel_size - phase, phases)};
      first += runs[phase].count;
    }
    halo = (runs[0].count - 1) * shift;
  }

  // Of grad_output: a run is a class of taps, the last one first.
  void set_classes(const TapClasses& classes) {
    const auto begin = [&](int64_t i) { return classes.offset(i) - (classes.taps(i) - 1) * shift; };
    int64_t first_position = begin(0);
    for (int64_t i = 1; i < classes.count; ++i) first_position = min_of(first_position, begin(i));
    for (int64_t i = 0, first = 0; i < classes.count; ++i) {
      runs[i] = {begin(i) - first_position, first, classes.taps(i)};
      first += runs[i].count;
    }
    padding_left = -first_position;
    halo = classes.offset(0) - first_position;
  }

  // Calls body(src, t0, t1) for ranges that make up [t0, t1), at most a block of them, where src is what t0 meets. A
  // whole number of vectors, and one more, may be read from there for each tap.
  template <class Body>
  void for_pieces(int64_t t0, int64_t t1, const Body& body) const {
    const auto copied = [&](int64_t begin, int64_t end) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        const int64_t count = end - begin + (phases == 1 ? halo : (runs[phase].count - 1) * shift);
        pack_row(
            in, begin * stride + phase * phase_distance - padding_left, stride, count, count + 2 * kLanes,
            window + phase * pitch);
      }
      body(static_cast<const T*>(window), begin, end);
    };
    if constexpr (kStoredAsComputed<Storage>) {
      // Whole vectors of outputs, and one more, that meet no padding.
      const int64_t begin = min_of(t1, t0 + round_up(max_of(0, padding_left - t0), kLanes));
      const int64_t inside = min_of(t1, in.length + padding_left - halo - kLanes) - begin;
      const int64_t end = begin + max_of(0, floor_div(inside, kLanes)) * kLanes;
      // Pieces cost more than one copy where there is little between them: from the L1 cache both meet at 500 positions
      // for 4 taps and 1000 for 15 and 31, from memory at less.
      if (stride * in.position_stride == 1 && end - begin >= (16 + runs[0].count) * kLanes) {
        if (t0 < begin) copied(t0, begin);
        body(in.data + begin - padding_left, begin, end);
        if (end < t1) copied(end, t1);
        return;
      }
    }
    copied(t0, t1);
  }
};

// Calls body(n, channel, first, last) for the blocks [begin, end) of positions of all [batch][channel] rows. Short rows
// are over before the CPU has divided by what they share.
template <class T, class Body>
void for_row_blocks(int64_t channels, int64_t positions, int64_t blocks, int64_t begin, int64_t end, const Body& body) {
  int64_t block = begin % blocks, channel = begin / blocks % channels, n = begin / blocks / channels;
  const auto first_of = [&](int64_t i) {
    return i == 0 ? 0 : i == blocks ? positions : block_begin(positions, Vec<T>::kLanes, blocks, i);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    body(n, channel, first_of(block), first_of(block + 1));
    if (++block < blocks) continue;
    block = 0;
    if (++channel < channels) continue;
    channel = 0;
    ++n;
  }
}

// Bytes behind what is read of a row that are fetched meanwhile, of this row or, where it is short, of the next ones.
// Of rows that come from memory outputs and input gradients are 1.0 to 1.5 times as fast so, weight gradients 1.1
// to 1.7 times (five layers of float32, Zen 5). Outputs of 16-bit types, whose rows take longer to widen, lose by it,
// 10 to 20 %, and so do those of strides and of many taps, which don't wait for memory.
constexpr int64_t kFetchAhead = 4096, kMostFetchedTaps = 8;

template <class Storage>
struct DepthwiseSums {
  using T = Acc<Storage>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  static constexpr int kVectors = 8;  // independent sums, to hide the latency of the FMAs
  const Conv1dProblem& problem;
  const bool fetches = kStoredAsComputed<Storage> && problem.stride == 1 && problem.kernel_size <= kMostFetchedTaps;
  Scratch scratch;
  DepthwiseRow<Storage> row;
  T *results, *taps;  // a block of positions, for each class of taps; the taps, run by run
  T bias = 0;

  DepthwiseSums(const Conv1dProblem& p, const Plan& plan, void* memory)
      : problem(p),
        scratch{static_cast<char*>(memory)},
        row(plan, &scratch),
        results(scratch.take<T>(plan.result_elements)),
        taps(scratch.take<T>(plan.weight_elements)) {}

  // part[v] += the sum over i < count of tap[i] * src[v][i * shift]
  template <int kCount, class Source>
  void add_taps(const T* tap, int64_t count, const Source* src, Vec<T>* part) const {
    int64_t i = 0;
    if constexpr (kShiftsVectors<T>) {
      for (; row.shift == 1 && i + 2 <= count; i += 2) {
        const Vec<T> first = broadcast(tap[i]), second = broadcast(tap[i + 1]);
        Vec<T> x = held(load(src + i));
#pragma GCC unroll 8
        for (int v = 0; v + 1 < kCount; ++v) {
          const Vec<T> right = held(load(src + i + (v + 1) * kLanes));
          part[v] = fma(second, shift_in(x, right), fma(first, x, part[v]));
          x = right;
        }
        const Vec<T> last = load(src + i + (kCount - 1) * kLanes + 1);
        part[kCount - 1] = fma(second, last, fma(first, x, part[kCount - 1]));
      }
    }
    for (; i < count; ++i) {
      const Vec<T> factor = broadcast(tap[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) part[v] = fma(factor, load(src + i * row.shift + v * kLanes), part[v]);
    }
  }

  // kCount vectors of sums over the runs [run, end), of which `count` elements are stored.
  template <int kCount, class Source, class Result>
  void sum_taps(const TapRun* run, const TapRun* end, const Source* src, int64_t count, Result* dst) const {
    Vec<T> sums[kCount];
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) sums[v] = broadcast(bias);
    for (; run != end; ++run) {
      for (int64_t i = 0; i < run->count; i += kLongestPart) {
        Vec<T> part[kCount];
#pragma GCC unroll 8
        for (int v = 0; v < kCount; ++v) part[v] = broadcast(T{0});
        add_taps<kCount>(
            taps + run->first + i, min_of(kLongestPart, run->count - i), src + run->offset + i * row.shift, part);
#pragma GCC unroll 8
        for (int v = 0; v < kCount; ++v) sums[v] = add(sums[v], part[v]);
      }
    }
    constexpr int64_t kWhole = (kCount - 1) * kLanes;
#pragma GCC unroll 8
    for (int v = 0; v + 1 < kCount; ++v) store(dst + v * kLanes, sums[v]);
    if (count == kCount * kLanes) {
      store(dst + kWhole, sums[kCount - 1]);
    } else {
      store_partial(dst + kWhole, sums[kCount - 1], count - kWhole);
    }
  }

  template <int kCount, class Source, class Result>
  void sum_vectors(
      int64_t vectors, const TapRun* run, const TapRun* end, const Source* src, int64_t count, Result* dst) const {
    if constexpr (kCount > 0) {
      if (vectors == kCount) return sum_taps<kCount>(run, end, src, count, dst);
      sum_vectors<kCount - 1>(vectors, run, end, src, count, dst);
    }
  }

  // `count` outputs from src on, in tiles of nearly equal width.
  template <class Source, class Result>
  void sum_positions(const TapRun* run, const TapRun* end, const Source* src, int64_t count, Result* dst) const {
    const int64_t vectors = ceil_div(count, kLanes), tiles = ceil_div(vectors, kVectors);
    for (int64_t i = 0, first = 0; i < tiles; ++i) {
      const int64_t width = (vectors - first + tiles - i - 1) / (tiles - i), at = first * kLanes;
      for (int64_t v = 0; v < width && fetches; ++v) {
        __builtin_prefetch(src + at + v * kLanes + kFetchAhead / int64_t{sizeof(Source)});
      }
      sum_vectors<kVectors>(width, run, end, src + at, min_of(width * kLanes, count - at), dst + at);
      first += width;
    }
  }

  bool stores_directly(int64_t out_stride) const { return out_stride == 1 && !problem.accumulate && !problem.negate; }

  // Outputs [t0, t1), at most a block of them: the sums over all runs.
  void run_block(int64_t t0, int64_t t1, Storage* out, int64_t out_stride) const {
    row.for_pieces(t0, t1, [&](const auto* src, int64_t begin, int64_t end) {
      Storage* dst = out + begin * out_stride;
      if (stores_directly(out_stride)) {
        sum_positions(row.runs, row.runs + row.run_count, src, end - begin, dst);
      } else {
        sum_positions(row.runs, row.runs + row.run_count, src, end - begin, results);
        store_row(problem, results, end - begin, dst, out_stride);
      }
    });
  }
};

// dst[i * kRows + r] = rows[r][i]
template <int kRows, class Storage>
void interleave(const Acc<Storage>* const* rows, int64_t count, Storage* __restrict dst) {
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) narrow(rows[r][i], dst + i * kRows + r);
  }
}

// Work units: [batch][channel][block of positions].
template <class Storage>
void forward_depthwise(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* memory, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  const int64_t multiplier = problem.out_channels / problem.groups;
  DepthwiseSums<Storage> sums(problem, plan, memory);
  sums.row.set_phases(problem);
  const auto run_block = [&](int64_t n, int64_t oc, int64_t first, int64_t last) {
    sums.row.in = {
        static_cast<const Storage*>(args.input) + n * problem.input.batch + oc / multiplier * problem.input.channel,
        problem.input.position, problem.in_length, problem.padding_mode};
    sums.bias = args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]);
    const Storage* weight = static_cast<const Storage*>(args.weight) + oc * problem.weight.out_channel;
    T* tap = sums.taps;
    for (int64_t phase = 0; phase < sums.row.phases; ++phase) {
      for (int64_t k = phase; k < problem.kernel_size; k += sums.row.phases) {
        *tap++ = widen(weight[k * problem.weight.tap]);
      }
    }
    sums.run_block(
        first, last, static_cast<Storage*>(args.output) + n * problem.output.batch + oc * problem.output.channel,
        problem.output.position);
  };
  for_row_blocks<T>(problem.out_channels, problem.out_length, plan.position_blocks, begin, end, run_block);
}

template <class Storage>
struct BackwardInputDepthwise {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardInputArgs& args;
  const TapClasses classes{problem, plan.panel_phases};
  const GradInputEnds<Storage> ends{problem, args};
  DepthwiseSums<Storage> sums;
  int64_t residues[kMostPhases];  // of the classes

  BackwardInputDepthwise(const Conv1dProblem& p, const Plan& pl, const BackwardInputArgs& a, void* memory)
      : problem(p), plan(pl), args(a), sums(p, pl, memory) {
    sums.row.set_classes(classes);
    for (int64_t i = 0; i < classes.count; ++i) residues[i] = classes.residue(i);
  }

  T* results_of(int64_t tap_class) const { return sums.results + tap_class * plan.position_block; }

  // Sums of the classes for j in [begin, end), to positions j * stride + residue.
  void store_classes(int64_t begin, int64_t end, Storage* grad_input) const {
    const int64_t first = begin * problem.stride, last = min_of(end * problem.stride, problem.in_length);
    int64_t whole = 0;  // strides, all of whose positions are there
    if (classes.count == problem.stride && problem.stride <= 4 && sums.stores_directly(problem.input.position)) {
      const T* rows[4];
      for (int64_t i = 0; i < classes.count; ++i) rows[residues[i]] = results_of(i);
      whole = (last - first) / problem.stride;
      problem.stride == 2   ? interleave<2>(rows, whole, grad_input + first)
      : problem.stride == 3 ? interleave<3>(rows, whole, grad_input + first)
                            : interleave<4>(rows, whole, grad_input + first);
    }
    for (int64_t i = 0; i < classes.count; ++i) {
      const int64_t position = first + whole * problem.stride + residues[i];
      if (position >= last) continue;
      const int64_t count = ceil_div(last - position, problem.stride);
      store_row(
          problem, results_of(i) + whole, count, grad_input + position * problem.input.position,
          problem.stride * problem.input.position);
    }
  }

  // Positions j * stride + residue of a row, for j in [j0, j1), at most a block of them.
  void run_block(int64_t n, int64_t channel, int64_t j0, int64_t j1) {
    sums.row.in = {
        static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + channel * problem.output.channel,
        problem.output.position, problem.out_length, PaddingMode::kZeros};
    Storage* grad_input =
        static_cast<Storage*>(args.grad_input) + n * problem.input.batch + channel * problem.input.channel;
    const Storage* weight = static_cast<const Storage*>(args.weight) + channel * problem.weight.out_channel;
    T* tap = sums.taps;
    for (int64_t i = 0; i < classes.count; ++i) {
      for (int64_t k = i + (sums.row.runs[i].count - 1) * classes.period; k >= 0; k -= classes.period) {
        *tap++ = widen(weight[k * problem.weight.tap]);
      }
    }
    if (problem.stride == 1) return sums.run_block(j0, j1, grad_input, problem.input.position);
    sums.row.for_pieces(j0, j1, [&](const auto* src, int64_t begin, int64_t end) {
      for (int64_t i = 0; i < classes.count; ++i) {
        sums.sum_positions(sums.row.runs + i, sums.row.runs + i + 1, src, end - begin, results_of(i));
      }
      store_classes(begin, end, grad_input);
    });
  }
};

// Work units: [batch][channel][block of positions].
template <class Storage>
void backward_input_depthwise(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* memory, int64_t begin,
    int64_t end) {
  using T = Acc<Storage>;
  BackwardInputDepthwise<Storage> kernel(problem, plan, args, memory);
  const int64_t positions = ceil_div(problem.in_length, problem.stride);
  // Positions are `stride` of the input's each.
  const auto for_blocks = [&](const auto& body) {
    for_row_blocks<T>(problem.in_channels, positions, plan.position_blocks, begin, end, body);
  };
  const auto last_of = [&](int64_t last) { return min_of(problem.in_length, last * problem.stride); };
  Vec<T> seen = broadcast(T{0});
  for_blocks([&](int64_t n, int64_t channel, int64_t first, int64_t last) {
    kernel.run_block(n, channel, first, last);
    kernel.ends.look_at_row(n, channel, first * problem.stride, last_of(last), &seen);
  });
  if (!kernel.ends.alarming(seen)) return;
  for_blocks([&](int64_t n, int64_t channel, int64_t first, int64_t last) {
    kernel.ends.mend(n, channel, first * problem.stride, last_of(last), 1);
  });
}

}  // namespace
}  // namespace conv1d_ext
