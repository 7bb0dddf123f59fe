// Sums over positions, in parts that do not depend on the device: grad_bias, and the last step of everything that is
// summed in parts; and the padding's share of the input's gradient.
#pragma once

#include "cuda/staging.cuh"

namespace conv1d_ext::cuda {

// The block's sum of each thread's `value`, in thread 0, in an order that is always the same. scratch: kWarps numbers.
template <class Sum>
__device__ inline Sum sum_of_block(Sum value, Shared scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  if (thread_index() % 32 == 0) scratch.store<Sum>(thread_index() / 32 * int(sizeof(Sum)), value);
  sync_block();
  Sum sum = 0;
  if (thread_index() == 0) {
    for (int warp = 0; warp < kWarps; ++warp) sum += scratch.load<Sum>(warp * int(sizeof(Sum)));
  }
  sync_block();
  return sum;
}

// partials[split][out_channel] = sum of a part of each channel's grad_output.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) sum_positions(
    const int64_t batch, const int64_t out_channels, const int64_t out_length, const TensorStrides strides,
    const int64_t splits, const Global<const T> grad, const Global<Sum> partials) {
  const int64_t terms = batch * out_length;
  for (int64_t block = block_index(); block < splits * out_channels; block += block_count()) {
    const int64_t split = block / out_channels, channel = block - split * out_channels;
    const int64_t begin = terms * split / splits, end = terms * (split + 1) / splits;
    Sum sum = 0;
    for (int64_t i = begin + thread_index(); i < end; i += kThreads) {
      const int64_t n = i / out_length, t = i - n * out_length;
      sum += widen(grad.load(n * strides.batch + channel * strides.channel + t * strides.position));
    }
    sum = sum_of_block(sum, shared_memory());
    if (thread_index() == 0) partials.store(block, sum);
  }
}

// A thread for each weight, or a warp where there is much to add up.
__host__ __device__ inline int threads_of_sum(int64_t splits) { return splits > 32 ? 32 : 1; }

// result[oc, ic, k] = sum over splits of partials[split][oc][ic][k]
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) sum_partials(
    const int64_t out_channels, const int64_t in_channels, const int64_t kernel_size, const WeightStrides strides,
    const int64_t splits, const bool accumulate, const bool negate, const Global<const Sum> partials,
    const Global<T> result) {
  const int64_t count = out_channels * in_channels * kernel_size;
  const int threads = threads_of_sum(splits), first = thread_index() % threads, at_once = kThreads / threads;
  for (int64_t i = block_index() * at_once + thread_index() / threads; i < count; i += block_count() * at_once) {
    Sum sum = 0;
    for (int64_t split = first; split < splits; split += threads) sum += partials.load(split * count + i);
    for (int mask = threads / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (first != 0) continue;
    const int64_t row = i / kernel_size, k = i - row * kernel_size;
    const int64_t oc = row / in_channels, ic = row - oc * in_channels;
    const int64_t at = oc * strides.out_channel + ic * strides.in_channel + k * strides.tap;
    if (negate) sum = -sum;
    if (accumulate) sum += widen(result.load(at));
    result.store(at, narrow<T>(sum));
  }
}

// The gradient of the input from that of the padded input, [N, C, left + L + right], contiguous: each position gets the
// gradients of all that show it, from the left to the right.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) fold_padding(
    const int64_t batch, const int64_t channels, const Signal input, const bool accumulate, const bool negate,
    const Global<const Sum> padded, const Global<T> result) {
  const int64_t length = input.length, left = input.padding_left, right = input.padding_right;
  for (int64_t i = block_index() * kThreads + thread_index(); i < batch * channels * length;
       i += block_count() * kThreads) {
    const int64_t row = i / length, j = i - row * length;
    const int64_t n = row / channels, channel = row - n * channels;
    const auto gradients = padded.from(row * (left + length + right) + left);
    Sum sum = 0;
    const auto add = [&](int64_t p) {
      if (p >= -left && p < length + right) sum += gradients.load(p);
    };
    if (input.padding_mode == PaddingMode::kReflect) {
      if (j > 0) add(-j);
      add(j);
      if (j < length - 1) add(2 * (length - 1) - j);
    } else if (input.padding_mode == PaddingMode::kCircular) {
      add(j - length);
      add(j);
      add(j + length);
    } else {
      for (int64_t p = j == 0 ? -left : j; p <= (j == length - 1 ? length - 1 + right : j); ++p) add(p);
    }
    const int64_t at = n * input.strides.batch + channel * input.strides.channel + j * input.strides.position;
    if (negate) sum = -sum;
    if (accumulate) sum += widen(result.load(at));
    result.store(at, narrow<T>(sum));
  }
}

}  // namespace conv1d_ext::cuda
