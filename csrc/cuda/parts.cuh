// Results of correlations that were computed in parts: by themselves the parts of a sum, they are added up here, always
// in the same order.
#pragma once

#include "cuda/correlation.cuh"

namespace conv1d_ext::cuda {

// A thread's result: its row among those of all batch items, and its position. Calls `use` for all of the results.
template <class Use>
__device__ inline void for_each_result(const Correlation& c, const Use& use) {
  const int64_t row_parts = (c.result_length + kThreads - 1) / kThreads,
                parts = c.batch * c.groups * c.rows * row_parts;
  for (int64_t part = block_index(); part < parts; part += block_count()) {
    const int64_t row = part / row_parts;
    const int position = static_cast<int>(part - row * row_parts) * kThreads + thread_index();
    if (position < c.result_length) use(row, position);
  }
}

template <class T, class Sum>
__device__ inline void store_result(
    const Correlation& c, int64_t row, int position, Sum sum, Global<const T> bias, Global<T> result) {
  const int64_t n = row / (c.groups * c.rows), channel = row - n * c.groups * c.rows;
  const int64_t at = n * c.result.batch + channel * c.result.channel + position * c.result.position;
  store_sum<T>(c, sum, channel, at, bias, result);
}

// From the sums of some channels each: partials[split][n][row][position].
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) add_channels(
    const Correlation c, const int splits, const int64_t split_step, const Global<const Sum> partials,
    const Global<const T> bias, const Global<T> result) {
  wait_for_earlier_kernels();
  for_each_result(c, [&](int64_t row, int position) {
    auto from = partials.from(row * c.result_length + position);
    Sum sum = 0;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
      sum += from.load(0);
      from = from.from(split_step);
    }
    store_result<T>(c, row, position, sum, bias, result);
  });
}

// The input's gradient from the products of single taps: products[n][row][tap][position of grad_output].
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm)
    add_taps(const Correlation c, const Global<const Sum> products, const Global<T> result) {
  wait_for_earlier_kernels();
  const int length = c.signal.length;
  for_each_result(c, [&](int64_t row, int position) {
    const int column = position / c.stride;
    const Residue residue = residue_of(c, position - column * c.stride);
    const int64_t tap_step = int64_t{residue.tap_step} * length + residue.distance;
    int at = residue.first + column;
    auto from = products.from((row * c.kernel_size + residue.first_tap) * length + at);
    Sum sum = 0;
#pragma unroll 4
    for (int tap = 0; tap < residue.taps; ++tap) {
      if (at >= 0 && at < length) sum += from.load(0);
      at += residue.distance;
      from = from.from(tap_step);
    }
    store_result<T>(c, row, position, sum, Global<const T>{nullptr}, result);
  });
}

}  // namespace conv1d_ext::cuda
