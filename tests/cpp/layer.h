// One convolution with its operands in fenced buffers, and its four operators as csrc/cpu/run.cpp and run_indirect.cpp
// run them: the same passes in the same order. How a pass's work units are dealt, to threads or one by one, is the
// test's to say.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <atomic>
#include <functional>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/plans.h"
#include "cpu/scalar_inl.h"
#include "fenced.h"

namespace conv1d_ext {

struct Shape {
  int64_t batch, in_channels, in_length, out_channels, kernel_size;
  int64_t stride, padding_left, padding_right, dilation, groups;
  PaddingMode mode;
};

inline const Shape kShapes[] = {
#include "cases.inc"
};

inline Conv1dProblem make_problem(const Shape& s, bool channels_last, bool accumulate) {
  const int64_t padded = s.padding_left + s.in_length + s.padding_right;
  const int64_t out_length = (padded - s.dilation * (s.kernel_size - 1) - 1) / s.stride + 1;
  const auto strides = [&](int64_t channels, int64_t length) {
    return channels_last ? TensorStrides{channels * length, 1, channels} : TensorStrides{channels * length, length, 1};
  };
  const int64_t in_per_group = s.in_channels / s.groups;
  return {
      .batch = s.batch,
      .in_channels = s.in_channels,
      .out_channels = s.out_channels,
      .groups = s.groups,
      .in_length = s.in_length,
      .out_length = out_length,
      .kernel_size = s.kernel_size,
      .stride = s.stride,
      .dilation = s.dilation,
      .padding_left = s.padding_left,
      .padding_right = s.padding_right,
      .padding_mode = s.mode,
      .input = strides(s.in_channels, s.in_length),
      .output = strides(s.out_channels, out_length),
      .weight = {in_per_group * s.kernel_size, s.kernel_size, 1},
      .accumulate = accumulate,
      .negate = accumulate};  // complex products do either, and both at once
}

// Caches that cut even small problems into many blocks.
constexpr CacheSizes kTinyCaches{512, 2048};

// Memory that the units of a pass write to, each its own part.
struct Memory {
  char* data;
  int64_t bytes;
};

// Runs a pass: calls units(begin, end) for ranges that make up [0, count), in any order, at the same time or not.
using Units = std::function<void(int64_t begin, int64_t end)>;
using Deal = std::function<void(int64_t count, Memory shared, const Units& units)>;

// Whether this thread's arithmetic has had a denormal operand since, where the CPU tells.
class DenormalWatch {
 public:
  DenormalWatch() {
#ifdef __SSE2__
    _mm_setcsr(_mm_getcsr() & ~_MM_EXCEPT_MASK);
#endif
  }
  bool met_some() const {
#ifdef __SSE2__
    return (_mm_getcsr() & _MM_EXCEPT_DENORM) != 0;
#else
    return false;
#endif
  }
};

// What computes a layer beside the direct kernels. Toom-Cook's algorithm has forms of its own at reduced precision.
struct Indirect {
  Family family;
  bool reduced_precision = false;
};
constexpr Indirect kIndirect[] = {
    {Family::kFft}, {Family::kToomCook, false}, {Family::kToomCook, true}, {Family::kAmx}};

template <class T>
class Layer {
 public:
  Layer(const KernelSet& kernels, const TileShape& tile, const Conv1dProblem& problem, CacheSizes cache, Flush flush)
      : p(problem), cache(cache), flush(flush), kernels_(kernels), tile_(tile) {
    unsigned seed = 0;
    for (Fenced<T>* operand : {&input, &weight, &bias, &output}) randomize(*operand, ++seed);
  }

  Plan plan(Op op) const { return make_plan(op, p, kernels_.sizes, tile_, cache); }
  FftPlan fft_plan(Op op) const { return make_fft_plan(op, p, kernels_.sizes, tile_, cache, Use::kWherePossible); }
  ToomCookPlan toom_cook_plan(Op op, bool reduced_precision) const {
    return make_toom_cook_plan(op, p, kernels_.sizes, tile_, cache, Use::kWherePossible, reduced_precision);
  }

  AmxPlan amx_plan(Op op) const { return make_amx_plan(op, p, kernels_.sizes, tile_, cache, Use::kWherePossible); }

  // Whether the algorithm has the layer, and there is time for it: Fourier transforms are long beside shapes as small
  // as these, and tiny caches make hundreds of passes (tests/test_fft.py has all of them).
  bool tests(Indirect by, Op op) const {
    if (by.family == Family::kToomCook) {
      const ToomCookPlan plan = toom_cook_plan(op, by.reduced_precision);
      return plan.taps > 0 && (plan.form == ToomCookForm::kFours) == by.reduced_precision;
    }
    if (by.family == Family::kAmx) return amx_plan(op).pieces > 0;
    const FftPlan plan = fft_plan(op);
    const int64_t blocks = p.batch * plan.phases * plan.blocks, rows = plan.source_rows + plan.result_rows;
    const int64_t transforms = p.groups * (plan.source_rows * plan.result_rows + blocks * rows);
    return plan.length > 0 && transforms <= 128 && cache.l2 == CacheSizes{}.l2;
  }

  // Each fills `result`, which has the layout of the tensor of that name. With p.accumulate there is no bias, and the
  // result is added to.
  void forward(Fenced<T>& result, const Deal& deal) {
    const Plan plan = this->plan(Op::kForward);
    Fenced<Accumulator> packed(plan.packed_bytes / sizeof(Accumulator), flush);
    ForwardArgs args{input.data(), weight.data(), p.accumulate ? nullptr : bias.data(), result.data(), packed.data()};
    for_passes(plan, &args, [&] {
      pass(deal, plan.packed_bytes > 0 ? p.groups * args.tile_count : 0, packed, [&](int64_t begin, int64_t end) {
        kernels_.pack_forward(p, plan, args, begin, end);
      });
      const int64_t units = plan.units / plan.out_tiles * args.tile_count;
      pass(deal, units, result, with_scratch(kernels_.forward, plan, args));
    });
    fences_intact_ = fences_intact_ && packed.intact();
  }

  void backward_input(Fenced<T>& result, const Deal& deal) {
    fill_gaps(result);
    const Plan plan = this->plan(Op::kBackwardInput);
    Fenced<Accumulator> packed(plan.packed_bytes / sizeof(Accumulator), flush);
    BackwardInputArgs args{output.data(), weight.data(), result.data(), packed.data()};
    for_passes(plan, &args, [&] {
      pass(deal, plan.packed_bytes > 0 ? p.groups * args.tile_count : 0, packed, [&](int64_t begin, int64_t end) {
        kernels_.pack_backward_input(p, plan, args, begin, end);
      });
      const int64_t units = plan.units / plan.out_tiles * args.tile_count;
      pass(deal, units, result, with_scratch(kernels_.backward_input, plan, args));
    });
    pass(deal, plan.edge_units, result, with_scratch(kernels_.backward_input_edges, plan, args));
    pass(deal, p.batch * p.in_channels, result, [&](int64_t begin, int64_t end) {
      kernels_.backward_input_ends(p, args, begin, end);
    });
    fences_intact_ = fences_intact_ && packed.intact();
  }

  void backward_weight(Fenced<T>& result, const Deal& deal) {
    const Plan plan = this->plan(Op::kBackwardWeight);
    Fenced<Accumulator> partial_sums(plan.partial_bytes / sizeof(Accumulator), flush);
    const BackwardWeightArgs args{output.data(), input.data(), result.data(), partial_sums.data()};
    const auto units = with_scratch(kernels_.backward_weight, plan, args);
    if (plan.reduction_chunks == 1) return pass(deal, plan.units, result, units);
    pass(deal, plan.units, partial_sums, units);
    pass(deal, p.out_channels, result, [&](int64_t begin, int64_t end) {
      kernels_.backward_weight_sum(p, plan, args, begin, end);
    });
    fences_intact_ = fences_intact_ && partial_sums.intact();
  }

  void backward_bias(Fenced<T>& result, const Deal& deal) {
    const BackwardBiasArgs args{output.data(), result.data()};
    pass(
        deal, p.out_channels, result, [&](int64_t begin, int64_t end) { kernels_.backward_bias(p, args, begin, end); });
  }

  // The same by another algorithm, one that tests() has. Padding modes: not the padding's share of the input gradient.
  void indirect(Indirect by, Op op, Fenced<T>& result, const Deal& deal) {
    Operands operands{input.data(), weight.data(), bias.data(), result.data()};
    if (op == Op::kBackwardInput) {
      operands = {output.data(), weight.data(), nullptr, result.data()};
      fill_gaps(result);
    }
    if (op == Op::kBackwardWeight) operands = {input.data(), output.data(), nullptr, result.data()};
    Fenced<uint8_t> alarms(std::max<int64_t>(p.batch, 1), flush);
    std::fill(alarms.begin(), alarms.end(), uint8_t{0});
    if (by.family == Family::kFft) {
      run_fft(op, operands, alarms.data(), result, deal);
    } else if (by.family == Family::kToomCook) {
      const ToomCookPlan plan = toom_cook_plan(op, by.reduced_precision);
      run_tiled(op, p, plan, toom_cook_kernels(kernels_, plan), operands, alarms.data(), result, deal);
    } else if (op == Op::kBackwardInput && p.stride > 1) {
      run_amx_by_class(operands, alarms.data(), result, deal);
    } else {
      run_tiled(op, p, amx_plan(op), kernels_.amx, operands, alarms.data(), result, deal);
    }
    for (const uint8_t alarm : alarms) fences_intact_ = fences_intact_ && alarm == 0;
    fences_intact_ = fences_intact_ && alarms.intact();
  }

  // Whether a kernel has computed with what was in its scratch memory before: numbers that are denormal, as small
  // integers are, take CPUs 30 times as long.
  bool met_denormals() const { return met_denormals_; }

  bool intact() { return fences_intact_ && input.intact() && weight.intact() && bias.intact() && output.intact(); }

  // Standard normal numbers, the same ones each time.
  static void randomize(Fenced<T>& buffer, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<Accumulator> normal;
    for (T& element : buffer) narrow(normal(random), &element);
  }

  const Conv1dProblem p;
  const CacheSizes cache;
  const Flush flush;
  Fenced<T> input{p.batch * p.in_channels * p.in_length, flush};
  Fenced<T> weight{p.out_channels * (p.in_channels / p.groups) * p.kernel_size, flush};
  Fenced<T> bias{p.out_channels, flush};
  Fenced<T> output{p.batch * p.out_channels * p.out_length, flush};

 private:
  using Accumulator = Acc<T>;

  template <class Args, class Body>
  static void for_passes(const Plan& plan, Args* args, const Body& body) {
    for (args->first_tile = 0; args->first_tile < plan.out_tiles; args->first_tile += plan.pass_tiles) {
      args->tile_count = std::min(plan.pass_tiles, plan.out_tiles - args->first_tile);
      body();
    }
  }

  template <class U>
  static void pass(const Deal& deal, int64_t count, Fenced<U>& shared, const Units& units) {
    deal(count, {reinterpret_cast<char*>(shared.data()), shared.bytes()}, units);
  }

  void run_fft(Op op, const Operands& operands, uint8_t* alarms, Fenced<T>& result, const Deal& deal) {
    FftArgs args{};
    args.operands = operands;
    const FftPlan plan = fft_plan(op);
    const int64_t groups = (plan.fewest_groups + plan.most_groups) / 2;
    Fenced<char> spectra(groups * plan.weight_bytes, flush, 64), signals(groups * plan.signal_bytes, flush, 64);
    if constexpr (std::is_floating_point_v<T>) args.roots = fft_roots<T>(plan.length, tile_.lanes);
    args.spectra = spectra.data();
    args.signals = signals.data();
    args.alarms = alarms;
    const FftKernels& fft = kernels_.fft;
    const int64_t blocks = p.batch * plan.phases * plan.blocks;
    const auto units = [&](FftPass kernel) { return pass_units(kernel, op, p, plan, args); };
    for (args.first_group = 0; args.first_group < p.groups; args.first_group += groups) {
      args.group_count = std::min(groups, p.groups - args.first_group);
      for (args.first_row = 0; args.first_row < plan.result_rows; args.first_row += plan.row_block) {
        args.row_count = std::min(plan.row_block, plan.result_rows - args.first_row);
        const int64_t pairs = args.group_count * args.row_count * plan.source_rows;
        if (op != Op::kBackwardWeight) {
          pass(deal, pairs, spectra, units(fft.transform_weights));
          pass(deal, args.group_count * blocks, result, units(fft.multiply_blocks));
          continue;
        }
        for (args.first_block = 0; args.first_block < blocks; args.first_block += plan.block_tile) {
          args.block_count = std::min(plan.block_tile, blocks - args.first_block);
          const int64_t rows = args.group_count * (plan.source_rows + args.row_count);
          pass(deal, rows * args.block_count, signals, units(fft.transform_signals));
          pass(deal, args.group_count * (plan.length / 2 / tile_.lanes), spectra, units(fft.multiply_signals));
        }
        pass(deal, pairs, result, units(fft.store_taps));
      }
    }
    fences_intact_ = fences_intact_ && spectra.intact() && signals.intact();
  }

  template <class TiledPlan>
  void run_tiled(
      Op op, const Conv1dProblem& problem, const TiledPlan& plan, const TiledKernels<TiledPlan>& tiled,
      const Operands& operands, uint8_t* alarms, Fenced<T>& result, const Deal& deal) {
    Fenced<char> packed(plan.packed_bytes, flush, 64);
    Fenced<Accumulator> partial_sums(plan.partial_bytes / sizeof(Accumulator), flush);
    TiledArgs args{operands, packed.data(), partial_sums.data(), alarms};
    const auto units = [&](auto kernel) { return pass_units(kernel, op, problem, plan, args); };
    if (op == Op::kBackwardWeight) {
      const bool in_parts = plan.reduction_chunks > 1;
      if (in_parts) {
        pass(deal, plan.units, partial_sums, units(tiled.sum_products));
      } else {
        pass(deal, plan.units, result, units(tiled.sum_products));
      }
      Plan sum{};
      sum.reduction_chunks = plan.reduction_chunks;
      const BackwardWeightArgs sum_args{operands.weight, operands.source, operands.result, partial_sums.data()};
      pass(deal, in_parts ? problem.out_channels : 0, result, [&](int64_t begin, int64_t end) {
        kernels_.backward_weight_sum(problem, sum, sum_args, begin, end);
      });
    }
    const int64_t tiles = op == Op::kBackwardWeight ? 0 : problem.groups * plan.row_tiles;
    for (; args.first_tile < tiles; args.first_tile += plan.pass_tiles) {
      args.tile_count = std::min(plan.pass_tiles, tiles - args.first_tile);
      if (plan.packed_bytes > 0) pass(deal, args.tile_count, packed, units(tiled.pack_weights));
      pass(deal, plan.units * args.tile_count, result, units(tiled.multiply_blocks));
    }
    fences_intact_ = fences_intact_ && packed.intact() && partial_sums.intact();
  }

  void run_amx_by_class(const Operands& operands, uint8_t* alarms, Fenced<T>& result, const Deal& deal) {
    for (int64_t i = 0; i < amx_classes(p); ++i) {
      const AmxClass part = amx_class(p, i);
      if (part.problem.in_length == 0) continue;
      Operands of_class = operands;
      of_class.weight = static_cast<const T*>(operands.weight) + part.weight_offset;
      of_class.result = static_cast<T*>(operands.result) + part.result_offset;
      const AmxPlan plan =
          make_amx_plan(Op::kBackwardInput, part.problem, kernels_.sizes, tile_, cache, Use::kWherePossible);
      run_tiled(Op::kBackwardInput, part.problem, plan, kernels_.amx, of_class, alarms, result, deal);
    }
  }

  template <class Kernel, class OfPlan, class Args>
  Units pass_units(Kernel kernel, Op op, const Conv1dProblem& problem, const OfPlan& plan, const Args& args) {
    return [=, this, &problem, &plan, &args](int64_t begin, int64_t end) {
      Fenced<char> scratch(plan.scratch_bytes, flush, 64);
      kernel(op, problem, plan, args, scratch.data(), begin, end);
      if (!scratch.intact()) fences_intact_ = false;
    };
  }

  // Each range gets scratch memory of its own, which holds NaN before, or denormal numbers.
  template <class Kernel, class Args>
  Units with_scratch(Kernel kernel, const Plan& plan, const Args& args) {
    return [=, this, &plan, &args](int64_t begin, int64_t end) {
      Fenced<char> scratch(plan.scratch_bytes, flush, 64);
      if (flush == Flush::kBegin) fill_with_denormals(scratch);
      const DenormalWatch watch;
      kernel(p, plan, args, scratch.data(), begin, end);
      // Operands of float16 may be denormal themselves.
      if (!std::is_same_v<T, Float16> && watch.met_some()) met_denormals_ = true;
      if (!scratch.intact()) fences_intact_ = false;
    };
  }

  // In every floating-point type.
  static void fill_with_denormals(Fenced<char>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = i % 2 == 0 ? 1 : 0;  // 16 bits are 1
  }

  // Positions of the input gradient between the taps of all outputs are the caller's to fill with zeros.
  void fill_gaps(Fenced<T>& result) const {
    for (int64_t i = 0; i < result.size(); ++i) {
      if (!p.accumulate && !meets_tap(i / p.input.position % p.in_length)) narrow(Accumulator{0}, &result[i]);
    }
  }
  bool meets_tap(int64_t position) const {
    for (int64_t k = 0; k < p.kernel_size; ++k) {
      if ((position + p.padding_left - k * p.dilation) % p.stride == 0) return true;
    }
    return false;
  }

  const KernelSet& kernels_;
  const TileShape& tile_;
  std::atomic<bool> fences_intact_ = true, met_denormals_ = false;
};

// Calls f(kernels, tile, T{}) for each storage type T of which the instruction set has kernels that the one before it
// has not.
template <class F>
void for_each_type(Isa isa, const F& f) {
  const KernelTable& table = kernel_table(isa);
  f(table.bfloat16, table.tile_float, BFloat16{});
  if (isa == Isa::kAvx512Bf16) return;
  f(table.float32, table.tile_float, float{});
  if (isa == Isa::kAmx) return;
  f(table.float64, table.tile_double, double{});
  f(table.float16, table.tile_float, Float16{});
}

}  // namespace conv1d_ext
