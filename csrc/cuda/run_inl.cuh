// The launches that make up an operator, for one type of numbers: what each kernels_<type>.cu instantiates.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/correlate.cuh"
#include "cuda/launcher_inl.cuh"
#include "cuda/narrow.cuh"
#include "cuda/outer.cuh"
#include "cuda/pack.cuh"
#include "cuda/packer_inl.cuh"
#include "cuda/parts.cuh"
#include "cuda/problems.h"
#include "cuda/run.h"

namespace conv1d_ext::cuda {
namespace {

template <class Units>
UnitsShape shape_of() {
  return {
      Units::kRows,
      Units::kCols,
      Units::kPitch,
      Units::kOuterPitch,
      Units::kOuterPositions,
      Units::kScratchBytes,
      int(sizeof(typename Units::Storage)),
      Units::kBlocksPerSm};
}

// Where 32 rows would mostly be filled up with zeros.
constexpr int64_t kFewChannels = 16;

template <class Small, class Medium, class Large>
class Runner : Launcher {
  using T = typename Large::Storage;
  using Sum = typename Large::Sum;
  using Packer = SignalPacker<typename Large::Number, T>;
  static constexpr bool kHasFmaUnits = std::is_same_v<typename Large::Number, Sum>;

 public:
  Runner(const Device& device, const Choice& choice, void* workspace, CUstream_st* stream)
      : Launcher(device, workspace, stream), choice_(choice) {}

  // Each launches its kernels if there is a workspace, and counts how large it has to be.
  int64_t correlate_with(Op op, const Conv1dProblem& p, const Pointers& pointers) {
    Correlation c = correlation(op, p);
    const auto weight = global<const T>(pointers.factor);
    const WeightView view =
        c.is_backward
            ? WeightView{c.channels * p.weight.out_channel, p.weight.in_channel, p.weight.out_channel, p.weight.tap}
            : WeightView{c.rows * p.weight.out_channel, p.weight.out_channel, p.weight.in_channel, p.weight.tap};
    if (!c.is_backward || p.padding_mode == PaddingMode::kZeros) {
      correlate_to(c, view, pointers.signal, weight, pointers.bias, pointers.result);
      return workspace_.most_taken();
    }
    // The gradient of the padded input first.
    const int64_t length = p.padding_left + p.in_length + p.padding_right;
    c.padding_left = 0;
    c.result_length = to_int(length);
    c.result = {p.in_channels * length, length, 1};
    c.accumulate = c.negate = false;
    c.result_is_sum = true;
    void* padded = workspace_.take(p.batch * p.in_channels * length * int64_t{sizeof(Sum)});
    correlate_to(c, view, pointers.signal, weight, nullptr, padded);
    if (launches_) {
      launch<kThreads>(
          fold_padding<T, Sum>, grid(ceil_div(p.batch * p.in_channels * ceil_div(p.in_length, kFoldPositions), kWarps)),
          0, stream_, p.batch, p.in_channels, input_of(p), p.accumulate, p.negate, global<const Sum>(padded),
          global<T>(pointers.result));
    }
    return workspace_.most_taken();
  }

  int64_t backward_weight(const Conv1dProblem& p, const Pointers& pointers) {
    const OuterProduct o = outer_product(p);
    const auto signal = global<const T>(pointers.signal), grad = global<const T>(pointers.factor);
    if (takes_narrow(o.rows, o.channels)) {
      const NarrowOuterPlan plan = plan_narrow_outer(o, sizeof(Sum));
      const auto partials = take_partials(p, plan.splits > 1 ? plan.splits : 0);
      if (launches_) {
        launch<kThreads>(
            multiply_outer_narrow<T, Sum>, grid(plan.blocks), plan.shared_bytes, stream_, o, plan, grad, signal,
            partials, p.weight, p.accumulate, p.negate, global<T>(pointers.result));
      }
      if (plan.splits > 1) sum(p, as_weight(p), plan.splits, partials, pointers.result);
      return workspace_.most_taken();
    }
    const Correlation input = correlation(Op::kForward, p),
                      gradient = pointwise(o.batch, o.groups, o.rows, grads_of(o));
    const bool unfold = unfolds(o.channels, o.kernel_size, sizeof(T), choice_.staging);
    const Packer input_packer(*this, input, unfold, signal.data), grad_packer(*this, gradient, false, grad.data);
    const std::vector<Chunk> chunks = chunks_of(
        p.batch, p.out_length, input_packer.column_bytes() + grad_packer.column_bytes(), input_packer.halo_bytes());
    OuterProduct first = o;
    if (unfold) {
      first.channels *= first.kernel_size;
      first.kernel_size = first.stride = first.dilation = 1;
      first.padding_left = 0;
    }
    first.batch = chunks[0].items;
    first.out_length = to_int(chunks[0].columns);
    with_best_tile(
        [&]<class Units>() {
          OuterPlan plan = plan_outer(first, shape_of<Units>(), choice_.staging, 0);
          plan.blocks = plan.row_tiles * plan.column_tiles * kMultiprocessors;  // with its splits, each is for all
          return plan;
        },
        [&]<class Units>() { outer_by<Units>(p, first, chunks, input_packer, grad_packer, pointers.result); });
    return workspace_.most_taken();
  }

  int64_t backward_bias(const Conv1dProblem& p, const Pointers& pointers) {
    const int64_t splits = bias_splits(p.batch, p.out_channels, p.out_length);
    const Conv1dProblem row = as_bias(p);
    const auto partials = take_partials(row, splits);
    if (launches_) {
      constexpr int64_t kChunk = 16 / sizeof(T);
      const int64_t row_chunks = ceil_div(p.out_length, kChunk);
      const PositionsPlan plan{
          p.batch,
          to_int(p.out_channels),
          to_int(p.out_length),
          to_int(row_chunks),
          p.output,
          splits,
          ceil_div(p.batch * row_chunks, splits)};
      const auto whole = [](int64_t numbers) { return numbers % kChunk == 0; };
      const bool aligned = is_aligned(pointers.signal, 16) && whole(p.output.batch);
      const bool positions = aligned && p.output.position == 1 && whole(p.output.channel) && whole(p.out_length);
      const bool channels = aligned && p.output.channel == 1 && whole(p.output.position) && whole(p.out_channels);
      launch<kThreads>(
          positions  ? sum_positions<T, Sum, Neighbours::kPositions>
          : channels ? sum_positions<T, Sum, Neighbours::kChannels>
                     : sum_positions<T, Sum, Neighbours::kNone>,
          grid(splits * p.out_channels / (channels ? kChunk : 1)), kWarps * int(sizeof(Sum)), stream_, plan,
          global<const T>(pointers.signal), partials);
    }
    sum(row, as_weight(row), splits, partials, pointers.result);
    return workspace_.most_taken();
  }

 private:
  // grad_bias as a weight of one input channel and one tap.
  static Conv1dProblem as_bias(Conv1dProblem p) {
    p.in_channels = p.groups = p.kernel_size = 1;
    p.weight = {1, 1, 1};
    return p;
  }

  // Blocks that start early go to the multiprocessors that are free first, two to one of them and none to another,
  // which evens out only where there are more blocks than room for them.
  template <class Units>
  Stream stream_for(int64_t blocks) const {
    Stream stream = stream_;
    stream.starts_early &= !kHasFmaUnits && blocks > kMultiprocessors * Units::kBlocksPerSm;
    return stream;
  }

  // Where 32 rows would mostly be filled up with zeros, for which only matrix units have the arithmetic to spare.
  bool takes_narrow(int64_t rows, int64_t channels) const {
    if (choice_.algorithm != Choice::Algorithm::kAny) return choice_.algorithm == Choice::Algorithm::kNarrow;
    return (rows < kFewChannels && channels < kFewChannels) || (rows <= 2 && kHasFmaUnits);
  }
  // The largest of the tiles that are estimated to be fastest. For matrix units two blocks on a multiprocessor, one of
  // which computes while the other waits, take little longer than one; for FMA units twice as long. A block takes as
  // long as its tile has rows, and what a step costs besides.
  template <class PlanOf, class Use>
  void with_best_tile(const PlanOf& plan_of, const Use& use) const {
    const auto cost = [&]<class Units>(Choice::Tile tile) -> int64_t {
      const auto plan = plan_of.template operator()<Units>();
      if (plan.shared_bytes > device_.shared_bytes) return INT64_MAX;
      if (choice_.tile == tile) return 0;
      const int64_t rounds = ceil_div(plan.blocks, kMultiprocessors);
      constexpr int64_t kRows = Units::kRows * Units::kCols / 128;
      return kHasFmaUnits ? rounds * (kRows + 16) : (rounds / 2 * 5 + rounds % 2 * 4) * (kRows + 64);
    };
    const int64_t large = cost.template operator()<Large>(Choice::Tile::kLarge);
    const int64_t medium = cost.template operator()<Medium>(Choice::Tile::kMedium);
    const int64_t small = cost.template operator()<Small>(Choice::Tile::kSmall);
    if (large <= medium && large <= small) {
      use.template operator()<Large>();
    } else if (medium <= small) {
      use.template operator()<Medium>();
    } else {
      use.template operator()<Small>();
    }
  }

  void correlate_to(
      const Correlation& c, const WeightView& view, const void* signal, Global<const T> weight, const void* bias,
      void* result) {
    if (adds_taps(c, view)) {
      correlate_by_taps(c, view, signal, weight, result);
      return;
    }
    if (takes_narrow(c.rows, c.channels)) {
      const NarrowPlan plan = plan_narrow(c, sizeof(Sum));
      if (launches_) {
        const auto kernel = plan.slides ? correlate_narrow<T, Sum, true> : correlate_narrow<T, Sum, false>;
        launch<kThreads>(
            kernel, grid(plan.blocks), plan.shared_bytes, stream_, c, plan, view, global<const T>(signal), weight,
            global<const T>(bias), global<T>(result));
      }
      return;
    }
    const bool unfold =
        (!c.is_backward || c.stride == 1) && unfolds(c.channels, c.kernel_size, sizeof(T), choice_.staging);
    const int splits = channel_splits(c, unfold ? c.kernel_size : 1, sizeof(T));
    if (splits == 1) {
      correlate_in_tiles(c, unfold, view, signal, weight, bias, result);
      return;
    }
    const int64_t row_numbers = c.groups * c.rows * c.result_length;
    for_items(
        c, splits * row_numbers * int64_t{sizeof(Sum)}, result, [&](const Correlation& part, int64_t n, void* to) {
          Correlation split = part;
          split.result = {row_numbers, c.result_length, 1};
          split.splits = splits;
          split.split_step = part.batch * row_numbers;
          split.result_is_sum = true;
          split.accumulate = split.negate = false;
          void* partials = workspace_.take(splits * split.split_step * int64_t{sizeof(Sum)});
          correlate_in_tiles(split, unfold, view, item_of(c, signal, n), weight, nullptr, partials);
          if (launches_) {
            launch<kThreads>(
                add_channels<T, Sum>, grid_of_results(part), 0, stream_, part, splits, split.split_step,
                global<const Sum>(partials), global<const T>(bias), global<T>(to));
          }
        });
  }

  // Whether the taps of an input's gradient are rows of a pointwise problem, whose results add_taps adds up. Few rows
  // would leave most of a tile unused, for each tap again.
  bool adds_taps(const Correlation& c, const WeightView& view) const {
    constexpr int64_t kMostBytes = 256 << 20;  // of a batch item's products
    return c.is_backward && c.kernel_size > 1 && c.rows <= kFewChannels && c.channels >= kFewChannels &&
           choice_.staging == Choice::Staging::kAny && choice_.algorithm != Choice::Algorithm::kNarrow &&
           (c.rows == 1 || view.row == c.kernel_size * view.tap) && tap_numbers(c) * int64_t{sizeof(Sum)} <= kMostBytes;
  }
  static int64_t tap_numbers(const Correlation& c) { return c.groups * c.rows * c.kernel_size * c.signal.length; }

  void correlate_by_taps(
      const Correlation& c, const WeightView& view, const void* signal, Global<const T> weight, void* result) {
    const int64_t numbers = tap_numbers(c);
    for_items(c, numbers * int64_t{sizeof(Sum)}, result, [&](const Correlation& part, int64_t n, void* to) {
      Correlation taps = pointwise(part.batch, c.groups, c.channels, c.signal);
      taps.rows = c.rows * c.kernel_size;
      taps.result = {numbers, c.signal.length, 1};
      taps.result_is_sum = true;
      void* products = workspace_.take(part.batch * numbers * int64_t{sizeof(Sum)});
      const WeightView rows{view.group, view.tap, view.channel, 1};
      correlate_to(taps, rows, item_of(c, signal, n), weight, nullptr, products);
      if (launches_) {
        launch<kThreads>(
            add_taps<T, Sum>, grid_of_results(part), 0, stream_, part, global<const Sum>(products), global<T>(to));
      }
    });
  }

  // Calls use(part, first item, where its result begins) for some batch items at a time, so that what each takes of the
  // workspace, item_bytes, stays bounded. What is taken for a part is given back after it.
  template <class Use>
  void for_items(const Correlation& c, int64_t item_bytes, void* result, const Use& use) {
    constexpr int64_t kBytes = 64 << 20;
    const int64_t items = std::clamp<int64_t>(kBytes / item_bytes, 1, c.batch), mark = workspace_.mark();
    for (int64_t n = 0; n < c.batch; n += items) {
      Correlation part = c;
      part.batch = std::min(items, c.batch - n);
      use(part, n, result_at(c, result, n * c.result.batch));
      workspace_.give_back_to(mark);
    }
  }
  static void* result_at(const Correlation& c, void* result, int64_t numbers) {
    return static_cast<char*>(result) + numbers * int64_t{c.result_is_sum ? sizeof(Sum) : sizeof(T)};
  }
  static const void* item_of(const Correlation& c, const void* signal, int64_t n) {
    return static_cast<const T*>(signal) + n * c.signal.strides.batch;
  }
  int64_t grid_of_results(const Correlation& c) const {
    return grid(c.batch * c.groups * c.rows * ceil_div(c.result_length, kThreads));
  }

  void correlate_in_tiles(
      const Correlation& c, bool unfold, const WeightView& view, const void* signal, Global<const T> weight,
      const void* bias, void* result) {
    const Packer packer(*this, c, unfold, signal);
    const std::vector<Chunk> chunks = chunks_of(c.batch, packer.columns(), packer.column_bytes(), packer.halo_bytes());
    const Correlation first = packer.part_of(chunks[0]);
    with_best_tile(
        [&]<class Units>() {
          return plan_correlation(first, shape_of<Units>(), choice_.staging, device_.shared_bytes);
        },
        [&]<class Units>() { correlate_by<Units>(c, chunks, packer, view, weight, bias, result); });
  }

  template <class Units>
  void correlate_by(
      const Correlation& c, const std::vector<Chunk>& chunks, const Packer& packer, WeightView view,
      Global<const T> weight, const void* bias, void* result) {
    const auto plan_of = [&](const Correlation& part) {
      return plan_correlation(part, shape_of<Units>(), choice_.staging, device_.shared_bytes);
    };
    const Correlation first = packer.part_of(chunks[0]);
    const CorrelatePlan first_plan = plan_of(first);
    void* packed = workspace_.take(first_plan.packed_elements * int64_t{sizeof(T)});
    void* rows = packer.take(chunks);
    if (!launches_) return;
    view.taps = packer.taps();
    const PackPlan pack = plan_packing<Units>(first, first_plan, view, weight.data);
    launch<kThreads>(
        pack_weights<Units>, grid(pack.tiles), pack.shared_bytes, stream_, pack, weight, global<T>(packed));
    for (const Chunk& chunk : chunks) {
      const auto [signal_view, signal] = packer.pack(chunk, rows);
      const Correlation part = packer.part_of(chunk);
      const CorrelatePlan plan = plan_of(part);
      void* to = result_at(c, result, packer.result_offset(chunk));
      launch<kThreads>(
          correlate<Units>, grid(plan.blocks), plan.shared_bytes, stream_for<Units>(plan.blocks), part, plan,
          signal_view, signal, global<const T>(packed), global<const T>(bias), global<T>(to));
    }
  }

  template <class Units>
  void outer_by(
      const Conv1dProblem& p, const OuterProduct& first, const std::vector<Chunk>& chunks, const Packer& input,
      const Packer& gradient, void* result) {
    const int64_t splits = plan_outer(first, shape_of<Units>(), choice_.staging, 0).splits;
    const auto partials = take_partials(p, splits);
    void *grad_rows = gradient.take(chunks), *input_rows = input.take(chunks);
    if (launches_) {
      for (const Chunk& chunk : chunks) {
        const auto [grad_view, grads] = gradient.pack(chunk, grad_rows);
        const auto [input_view, inputs] = input.pack(chunk, input_rows);
        OuterProduct part = first;
        part.batch = chunk.items;
        part.out_length = to_int(chunk.columns);
        part.first_column = to_int(chunk.first_column);
        const OuterPlan plan = plan_outer(part, shape_of<Units>(), choice_.staging, splits);
        launch<kThreads>(
            multiply_outer<Units>, grid(plan.blocks), plan.shared_bytes, stream_for<Units>(plan.blocks), part, plan,
            grad_view, input_view, grads, inputs, &chunk != &chunks[0], partials);
      }
    }
    sum(p, input.taps() == 1 ? by_taps(p) : as_weight(p), splits, partials, result);
  }

  static int64_t weights(const Conv1dProblem& p) { return p.out_channels * (p.in_channels / p.groups) * p.kernel_size; }
  Global<Sum> take_partials(const Conv1dProblem& p, int64_t splits) {
    return global<Sum>(workspace_.take(splits * weights(p) * int64_t{sizeof(Sum)}));
  }
  // Partial sums as a contiguous weight; by taps first, as multiply_outer has them.
  static SumLayout as_weight(const Conv1dProblem& p) {
    return {{p.in_channels / p.groups, p.kernel_size}, {p.weight.out_channel, p.weight.in_channel, p.weight.tap}};
  }
  static SumLayout by_taps(const Conv1dProblem& p) {
    return {{p.out_channels, p.in_channels / p.groups}, {p.weight.tap, p.weight.out_channel, p.weight.in_channel}};
  }
  void sum(const Conv1dProblem& p, const SumLayout& layout, int64_t splits, Global<Sum> partials, void* result) const {
    if (!launches_) return;
    constexpr int kWidth = 16 / sizeof(Sum);
    const int64_t count = weights(p);
    const bool vectors = count % kWidth == 0;
    const int width = vectors ? kWidth : 1, parts = parts_of_sum(count, splits);
    const bool in_order =
        layout.strides[2] == 1 && layout.strides[1] == layout.sizes[1] &&
        (layout.strides[0] == layout.sizes[0] * layout.sizes[1] || count == layout.sizes[0] * layout.sizes[1]) &&
        is_aligned(result, width * sizeof(T));
    launch<kThreads>(
        vectors ? sum_partials<T, Sum, kWidth> : sum_partials<T, Sum, 1>,
        grid(ceil_div(count * parts, kThreads * width)), kThreads * width * int(sizeof(Sum)), stream_, count, layout,
        in_order, to_int(splits), parts, p.accumulate, p.negate, Global<const Sum>{partials.data}, global<T>(result));
  }

  Choice choice_;
};

template <class Small, class Medium, class Large>
int64_t run_with(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice) {
  Runner<Small, Medium, Large> runner(device, choice, workspace, stream);
  if (op == Op::kBackwardWeight) return runner.backward_weight(problem, pointers);
  if (op == Op::kBackwardBias) return runner.backward_bias(problem, pointers);
  return runner.correlate_with(op, problem, pointers);
}

}  // namespace
}  // namespace conv1d_ext::cuda
