// The launches that make up an operator, for one type of numbers: what each kernels_<type>.cu instantiates.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>

#include "cuda/correlate.cuh"
#include "cuda/narrow.cuh"
#include "cuda/outer.cuh"
#include "cuda/pack.cuh"
#include "cuda/run.h"

namespace conv1d_ext::cuda {
namespace {

template <class T, class P>
Global<T> global(P* pointer) {
  return {static_cast<T*>(pointer)};
}

// Memory handed out piece by piece; without a beginning it only counts.
class Workspace {
 public:
  explicit Workspace(void* begin) : begin_(static_cast<char*>(begin)) {}
  void* take(int64_t bytes) {
    void* piece = begin_ == nullptr ? nullptr : begin_ + taken_;
    taken_ += (bytes + 15) / 16 * 16;
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  char* begin_;
  int64_t taken_ = 0;
};

template <class Units>
UnitsShape shape_of() {
  return {
      Units::kRows,
      Units::kCols,
      Units::kPitch,
      Units::kOuterPitch,
      Units::kOuterPositions,
      Units::kScratchBytes,
      int(sizeof(typename Units::Storage))};
}

// What `fits` has seen to.
int to_int(int64_t size) { return static_cast<int>(size); }

Signal input_of(const Conv1dProblem& p) {
  return {p.input, to_int(p.in_length), to_int(p.padding_left), to_int(p.padding_right), p.padding_mode};
}

// The x below n with a * x = 1 modulo n, by Euclid's algorithm; a and n have no common divisor.
int inverse_modulo(int64_t a, int64_t n) {
  int64_t r = n, next_r = a % n, x = 0, next_x = 1;
  while (next_r != 0) {
    const int64_t quotient = r / next_r;
    r = std::exchange(next_r, r - quotient * next_r);
    x = std::exchange(next_x, x - quotient * next_x);
  }
  return to_int(n == 1 ? 0 : (x % n + n) % n);
}

// forward, or backward_input with the result a plain [N, C_in, L_in].
Correlation correlation(Op op, const Conv1dProblem& p) {
  Correlation c{};
  c.is_backward = op == Op::kBackwardInput;
  c.batch = p.batch;
  c.groups = p.groups;
  c.kernel_size = to_int(p.kernel_size);
  c.stride = to_int(p.stride);
  c.dilation = to_int(p.dilation);
  c.padding_left = to_int(p.padding_left);
  c.gcd = 1;
  c.accumulate = p.accumulate;
  c.negate = p.negate;
  const int64_t in_channels = p.in_channels / p.groups, out_channels = p.out_channels / p.groups;
  if (c.is_backward) {
    c.rows = in_channels;
    c.channels = out_channels;
    c.signal = {p.output, to_int(p.out_length), 0, 0, PaddingMode::kZeros};
    c.result = p.input;
    c.result_length = to_int(p.in_length);
    c.gcd = std::gcd(c.stride, c.dilation);
    c.inverse = inverse_modulo(p.dilation / c.gcd, p.stride / c.gcd);
  } else {
    c.rows = out_channels;
    c.channels = in_channels;
    c.signal = input_of(p);
    c.result = p.output;
    c.result_length = to_int(p.out_length);
  }
  return c;
}

OuterProduct outer_product(const Conv1dProblem& p) {
  return {p.batch,          p.groups,          p.out_channels / p.groups, p.in_channels / p.groups,
          p.output,         input_of(p),       to_int(p.out_length),      to_int(p.kernel_size),
          to_int(p.stride), to_int(p.dilation)};
}

// A tile of 128 rows and more is for groups that have so many, and for problems that keep a GPU busy with it.
constexpr int64_t kFewChannels = 16, kSmallRows = 64, kFewBlocks = 132;

template <class Small, class Large>
class Runner {
  using T = typename Large::Storage;
  using Sum = typename Large::Sum;

 public:
  Runner(const Device& device, const Choice& choice, void* workspace, Stream stream)
      : device_(device), choice_(choice), launches_(workspace != nullptr), workspace_(workspace), stream_(stream) {}

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
      return workspace_.taken();
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
          fold_padding<T, Sum>, grid_of_elements(p.batch * p.in_channels * p.in_length), 0, stream_, p.batch,
          p.in_channels, input_of(p), p.accumulate, p.negate, global<const Sum>(padded), global<T>(pointers.result));
    }
    return workspace_.taken();
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
      if (plan.splits > 1) sum(p, plan.splits, partials, pointers.result);
      return workspace_.taken();
    }
    const OuterPlan large = plan_outer(o, shape_of<Large>(), choice_.staging, grad.data, signal.data);
    const OuterPlan small = plan_outer(o, shape_of<Small>(), choice_.staging, grad.data, signal.data);
    if (takes_large(o.rows, large.blocks, large.shared_bytes)) {
      outer_to<Large>(p, o, large, grad, signal, pointers.result);
    } else {
      outer_to<Small>(p, o, small, grad, signal, pointers.result);
    }
    return workspace_.taken();
  }

  int64_t backward_bias(const Conv1dProblem& p, const Pointers& pointers) {
    const int64_t splits = bias_splits(p.batch, p.out_channels, p.out_length);
    const Conv1dProblem row = as_bias(p);
    const auto partials = take_partials(row, splits);
    if (launches_) {
      launch<kThreads>(
          sum_positions<T, Sum>, grid(splits * p.out_channels), kWarps * int(sizeof(Sum)), stream_, p.batch,
          p.out_channels, p.out_length, p.output, splits, global<const T>(pointers.signal), partials);
    }
    sum(row, splits, partials, pointers.result);
    return workspace_.taken();
  }

 private:
  // grad_bias as a weight of one input channel and one tap.
  static Conv1dProblem as_bias(Conv1dProblem p) {
    p.in_channels = p.groups = p.kernel_size = 1;
    p.weight = {1, 1, 1};
    return p;
  }

  // Blocks take more than one part of the work where there are more parts than a launch may have blocks.
  int64_t grid(int64_t parts) const { return std::min(parts, device_.most_blocks); }
  // Of kernels whose threads take one element at a time.
  int64_t grid_of_elements(int64_t elements) const { return grid((elements + kThreads - 1) / kThreads); }

  // Where 32 rows would mostly be filled up with zeros, for which only matrix units have the arithmetic to spare.
  bool takes_narrow(int64_t rows, int64_t channels) const {
    if (choice_.algorithm != Choice::Algorithm::kAny) return choice_.algorithm == Choice::Algorithm::kNarrow;
    constexpr bool kHasFmaUnits = std::is_same_v<typename Large::Number, Sum>;
    return (rows < kFewChannels && channels < kFewChannels) || (rows <= 2 && kHasFmaUnits);
  }
  bool takes_large(int64_t rows, int64_t blocks, int shared_bytes) const {
    if (shared_bytes > device_.shared_bytes || choice_.tile == Choice::Tile::kSmall) return false;
    return choice_.tile == Choice::Tile::kLarge || (rows > kSmallRows && blocks >= kFewBlocks);
  }

  void correlate_to(
      const Correlation& c, const WeightView& view, const void* signal, Global<const T> weight, const void* bias,
      void* result) {
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
    const CorrelatePlan large = plan_correlation(c, shape_of<Large>(), choice_.staging, signal, device_.shared_bytes);
    const CorrelatePlan small = plan_correlation(c, shape_of<Small>(), choice_.staging, signal, device_.shared_bytes);
    if (takes_large(c.rows, large.blocks, large.shared_bytes)) {
      correlate_by<Large>(c, large, view, signal, weight, bias, result);
    } else {
      correlate_by<Small>(c, small, view, signal, weight, bias, result);
    }
  }

  template <class Units>
  void correlate_by(
      const Correlation& c, const CorrelatePlan& plan, const WeightView& view, const void* signal,
      Global<const T> weight, const void* bias, void* result) {
    void* packed = workspace_.take(plan.packed_elements * int64_t{sizeof(T)});
    if (!launches_) return;
    launch<kThreads>(
        pack_weights<Units>, grid_of_elements(plan.packed_elements), 0, stream_, c, plan, view, weight,
        global<T>(packed));
    launch<kThreads>(
        correlate<Units>, grid(plan.blocks), plan.shared_bytes, stream_, c, plan, global<const T>(signal),
        global<const T>(packed), global<const T>(bias), global<T>(result));
  }

  template <class Units>
  void outer_to(
      const Conv1dProblem& p, const OuterProduct& o, const OuterPlan& plan, Global<const T> grad,
      Global<const T> signal, void* result) {
    const auto partials = take_partials(p, plan.splits);
    if (launches_) {
      launch<kThreads>(
          multiply_outer<Units>, grid(plan.blocks), plan.shared_bytes, stream_, o, plan, grad, signal, partials);
    }
    sum(p, plan.splits, partials, result);
  }

  static int64_t weights(const Conv1dProblem& p) { return p.out_channels * (p.in_channels / p.groups) * p.kernel_size; }
  Global<Sum> take_partials(const Conv1dProblem& p, int64_t splits) {
    return global<Sum>(workspace_.take(splits * weights(p) * int64_t{sizeof(Sum)}));
  }
  void sum(const Conv1dProblem& p, int64_t splits, Global<Sum> partials, void* result) const {
    if (!launches_) return;
    launch<kThreads>(
        sum_partials<T, Sum>, grid_of_elements(weights(p) * threads_of_sum(splits)), 0, stream_, p.out_channels,
        p.in_channels / p.groups, p.kernel_size, p.weight, splits, p.accumulate, p.negate,
        Global<const Sum>{partials.data}, global<T>(result));
  }

  Device device_;
  Choice choice_;
  bool launches_;
  Workspace workspace_;
  Stream stream_;
};

template <class Small, class Large>
int64_t run_with(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace, Stream stream,
    const Choice& choice) {
  Runner<Small, Large> runner(device, choice, workspace, stream);
  if (op == Op::kBackwardWeight) return runner.backward_weight(problem, pointers);
  if (op == Op::kBackwardBias) return runner.backward_bias(problem, pointers);
  return runner.correlate_with(op, problem, pointers);
}

}  // namespace
}  // namespace conv1d_ext::cuda
