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

// Of which numbers 16 bytes lie side by side in memory, aligned.
enum class Neighbours { kNone, kPositions, kChannels };

// How sum_positions shares its work. A row of grad_output is cut into chunks of 16 bytes, whether they lie together or
// not, so that layouts do not show in the sums; a split has the same number of them, of as many rows as it takes.
struct PositionsPlan {
  int64_t batch;
  int channels, length, row_chunks;
  TensorStrides strides;
  int64_t splits, split_chunks;
};

// partials[split][out_channel] = sum of a part of each channel's grad_output. A block takes one channel, or those that
// are neighbours.
template <class T, class Sum, Neighbours kNeighbours>
__global__ void __launch_bounds__(kThreads, kNeighbours == Neighbours::kChannels ? 2 : kPlainBlocksPerSm)
    sum_positions(const PositionsPlan plan, const Global<const T> grad, const Global<Sum> partials) {
  wait_for_earlier_kernels();
  constexpr int kChunk = 16 / int(sizeof(T)), kChannels = kNeighbours == Neighbours::kChannels ? kChunk : 1;
  const int64_t chunks = plan.batch * plan.row_chunks, chunk_step = kChunk * plan.strides.position;
  // From a thread's chunk to its next one.
  const int items = kThreads / plan.row_chunks, more_chunks = kThreads % plan.row_chunks;
  const int64_t step = items * plan.strides.batch + more_chunks * chunk_step;
  const int64_t to_next_item = plan.strides.batch - plan.row_chunks * chunk_step;
  const int channel_blocks = plan.channels / kChannels;
  for (int64_t block = block_index(); block < plan.splits * channel_blocks; block += block_count()) {
    const int64_t split = block / channel_blocks, channel = (block - split * channel_blocks) * kChannels;
    const int64_t begin = split * plan.split_chunks + thread_index(), split_end = (split + 1) * plan.split_chunks;
    const int64_t end = split_end < chunks ? split_end : chunks, item = begin / plan.row_chunks;
    int chunk = static_cast<int>(begin - item * plan.row_chunks);
    int64_t at = item * plan.strides.batch + channel * plan.strides.channel + chunk * chunk_step;
    Sum sums[kChannels] = {};
#pragma unroll(kNeighbours == Neighbours::kPositions ? 4 : 1)
    for (int64_t i = begin; i < end; i += kThreads) {
      if constexpr (kNeighbours == Neighbours::kPositions) {
        const auto values = grad.template load_pack<kChunk>(at);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) sums[0] += widen(values.at[e]);
      } else {
        Pack<T, kChannels> values[kChunk] = {};
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
          if (chunk * kChunk + e < plan.length) {
            values[e] = grad.template load_pack<kChannels>(at + e * plan.strides.position);
          }
        }
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
#pragma unroll
          for (int k = 0; k < kChannels; ++k) sums[k] += widen(values[e].at[k]);
        }
      }
      at += step;
      chunk += more_chunks;
      if (chunk >= plan.row_chunks) {
        chunk -= plan.row_chunks;
        at += to_next_item;
      }
    }
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const Sum sum = sum_of_block(sums[k], shared_memory());
      if (thread_index() == 0) partials.store(split * plan.channels + channel + k, sum);
    }
  }
}

// Threads that add up a weight's splits, a part of them each: several where there are many splits of few weights. By
// the sizes alone, so that a sum has one order.
inline int parts_of_sum(int64_t count, int64_t splits) {
  constexpr int64_t kFewestSplits = 8, kEnough = 1 << 18;
  int parts = 1;
  while (parts < kThreads && splits >= 2 * parts * kFewestSplits && count * parts < kEnough) parts *= 2;
  return parts;
}

// The dimensions of a split of partial sums, [..., sizes[0], sizes[1]], and the result's strides along them.
struct SumLayout {
  int64_t sizes[2], strides[3];
};

// Most numbers are small, and their division takes a fifth of the instructions then.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  const bool small = ((a | b) >> 32) == 0;
  return small ? static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b)) : a / b;
}

// result = sum over splits of partials[split], kWidth neighbours a thread. in_order: the result lies in memory as a
// split does, aligned to kWidth numbers.
template <class T, class Sum, int kWidth>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) sum_partials(
    const int64_t count, const SumLayout layout, const bool in_order, const int splits, const int parts,
    const bool accumulate, const bool negate, const Global<const Sum> partials, const Global<T> result) {
  wait_for_earlier_kernels();
  using Sums = Pack<Sum, kWidth>;
  constexpr int kSumsBytes = sizeof(Sums), kAtOnce = 8;  // splits whose loads are on their way
  const int64_t step = parts * count;
  const int lanes = kThreads / parts, part = thread_index() / lanes, lane = thread_index() % lanes;
  const Shared scratch = shared_memory().from(thread_index() * kSumsBytes);
  const int64_t block_weights = lanes * kWidth;
  for (int64_t first = block_index() * block_weights; first < count; first += block_count() * block_weights) {
    const int64_t i = first + lane * kWidth;
    Sums sums{};
    const auto add = [&](const Sums& terms) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sums.at[e] += terms.at[e];
    };
    if (i < count) {
      auto from = partials.from(part * count + i);
#pragma unroll 1
      for (int split = part; split < splits; split += kAtOnce * parts) {
        Sums terms[kAtOnce] = {};
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (split + k * parts < splits) terms[k] = from.template load_pack<kWidth>(0);
          from = from.from(step);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) add(terms[k]);
      }
    }
    for (int half = parts / 2; half > 0; half /= 2) {
      scratch.store(0, sums);
      sync_block();
      if (part < half) add(scratch.load<Sums>(half * lanes * kSumsBytes));
      sync_block();
    }
    if (part > 0 || i >= count) continue;

    int64_t at[kWidth];
    Pack<T, kWidth> values{};
    if (in_order) {
      if (accumulate) values = result.template load_pack<kWidth>(i);
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const int64_t row = quotient(i + e, layout.sizes[1]), matrix = quotient(row, layout.sizes[0]);
        at[e] = matrix * layout.strides[0] + (row - matrix * layout.sizes[0]) * layout.strides[1] +
                (i + e - row * layout.sizes[1]) * layout.strides[2];
        if (accumulate) values.at[e] = result.load(at[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      Sum sum = negate ? -sums.at[e] : sums.at[e];
      if (accumulate) sum += widen(values.at[e]);
      values.at[e] = narrow<T>(sum);
    }
    if (in_order) {
      result.store_pack(i, values);
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) result.store(at[e], values.at[e]);
    }
  }
}

constexpr int kFoldPositions = 256;  // of a row, that a warp takes at a time

// The gradient of the input from that of the padded input, [N, C, left + L + right], contiguous: each position gets the
// gradients of all that show it, from the left to the right.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) fold_padding(
    const int64_t batch, const int64_t channels, const Signal input, const bool accumulate, const bool negate,
    const Global<const Sum> padded, const Global<T> result) {
  wait_for_earlier_kernels();
  const int length = input.length, left = input.padding_left, right = input.padding_right;
  const int row_parts = (length + kFoldPositions - 1) / kFoldPositions, widest = left > right ? left : right;
  for (int64_t i = block_index() * kWarps + thread_index() / 32; i < batch * channels * row_parts;
       i += block_count() * kWarps) {
    const int64_t row = i / row_parts, n = row / channels, channel = row - n * channels;
    const int first = static_cast<int>(i - row * row_parts) * kFoldPositions, mine = first + thread_index() % 32;
    const auto gradients = padded.from(row * (left + length + right) + left);
    const auto to = result.from(n * input.strides.batch + channel * input.strides.channel);
    const auto store = [&](int j, Sum sum) {
      const int64_t at = j * input.strides.position;
      if (negate) sum = -sum;
      if (accumulate) sum += widen(to.load(at));
      to.store(at, narrow<T>(sum));
    };
    if (first > widest && first + kFoldPositions < length - widest) {  // no padding shows any of these
      Sum sums[kFoldPositions / 32];
#pragma unroll
      for (int k = 0; k < kFoldPositions / 32; ++k) sums[k] = gradients.load(mine + 32 * k);
#pragma unroll
      for (int k = 0; k < kFoldPositions / 32; ++k) store(mine + 32 * k, sums[k]);
      continue;
    }
    const auto sum_at = [&](int j) {
      Sum sum = 0;
      const auto add = [&](int p) {
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
        for (int p = j == 0 ? -left : j; p <= (j == length - 1 ? length - 1 + right : j); ++p) add(p);
      }
      return sum;
    };
#pragma unroll 1
    for (int j = mine; j < first + kFoldPositions && j < length; j += 32) store(j, sum_at(j));
  }
}

}  // namespace conv1d_ext::cuda
