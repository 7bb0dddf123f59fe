// Which positions of the signal a result of forward or backward_input is the sum of, and how it is stored: what the
// kernels of correlate.cuh and narrow.cuh share.
#pragma once

#include "cuda/staging.cuh"

namespace conv1d_ext::cuda {

// One residue of a problem.
struct Residue {
  int columns;                    // results of each row of the batch item: at residue + column * column_step
  int first, step, distance;      // positions of the signal: of column 0 and tap 0, from column to column, tap to tap
  int taps, first_tap, tap_step;  // tap i is the kernel's tap first_tap + i * tap_step
};

__device__ inline int residues(const Correlation& c) {
  return !c.is_backward ? 1 : c.stride < c.result_length ? c.stride : c.result_length;
}
__device__ inline int column_step(const Correlation& c) { return c.is_backward ? c.stride : 1; }

__device__ inline Residue residue_of(const Correlation& c, int residue) {
  if (!c.is_backward) {
    const int first = c.first_column * c.stride - c.padding_left;
    return {c.result_length, first, c.stride, c.dilation, c.kernel_size, 0, 1};
  }
  if (c.stride == 1) {  // what the following comes to, without its divisions
    const int first = c.first_column + c.padding_left - (c.kernel_size - 1) * c.dilation;
    return {c.result_length, first, 1, c.dilation, c.kernel_size, c.kernel_size - 1, -1};
  }
  // Input position j meets output position t in tap k where j + padding_left == t * stride + k * dilation.
  Residue r{};
  r.columns = residue < c.result_length ? (c.result_length - residue - 1) / c.stride + 1 : 0;
  r.step = 1;
  r.distance = c.dilation / c.gcd;
  const int padded = residue + c.padding_left, tap_step = c.stride / c.gcd;
  if (padded % c.gcd != 0) return r;  // no tap meets any of these
  const int lowest = static_cast<int>(int64_t{padded / c.gcd % tap_step} * c.inverse % tap_step);
  if (lowest >= c.kernel_size) return r;
  r.taps = (c.kernel_size - 1 - lowest) / tap_step + 1;
  // From the last tap to the first, so that positions grow.
  r.first_tap = lowest + (r.taps - 1) * tap_step;
  r.tap_step = -tap_step;
  r.first = c.first_column + static_cast<int>((padded - int64_t{r.first_tap} * c.dilation) / c.stride);
  return r;
}

template <class T, class Sum>
__device__ inline void store_sum(
    const Correlation& c, Sum sum, int64_t channel, int64_t at, Global<const T> bias, Global<T> result) {
  if (c.negate) sum = -sum;
  if (c.result_is_sum) {
    Global<Sum>{reinterpret_cast<Sum*>(result.data)}.store(at, sum);
    return;
  }
  if (c.accumulate) {
    sum += widen(result.load(at));
  } else if (!bias.is_null()) {
    sum += widen(bias.load(channel));
  }
  result.store(at, narrow<T>(sum));
}

// Where weight[row, channel, tap] of a group is. Unfolded, the channels are pairs of a channel and one of `taps` taps.
struct WeightView {
  int64_t group, row, channel, tap;
  int taps = 1;
};

}  // namespace conv1d_ext::cuda
