// From tensors of any strides to rows of kRowBytes of channels at one position. A tap is then another row, whatever the
// stride and the dilation, and the matrix units find aligned operands in each.
#pragma once

#include "cuda/device.cuh"
#include "cuda/plan.h"

namespace conv1d_ext::cuda {

constexpr int kWarps = kThreads / 32;
// Of kernels that take little more than an element at a time, which memory limits: half of a multiprocessor's threads.
constexpr int kPlainBlocksPerSm = 4;
template <class T>
constexpr bool kIs16Bit = sizeof(T) == 2;
template <class T>
constexpr int kRowChannels = kRowBytes / int(sizeof(T));
template <class T>
constexpr int kStepChannels = kStepBytes / int(sizeof(T));

// As a number is stored that the matrix units will multiply.
template <class Number, class T>
__device__ inline T rounded(T value) {
  if constexpr (std::is_same_v<Number, Tf32>) {
    return bits_to_float(round_to_tf32(float_to_bits(value)));
  } else {
    return value;
  }
}

// Where in a row of the tensor position p of the padded signal is found; -1 where it is zero, and beyond the padding.
__device__ inline int64_t shown_at(const Signal& signal, int p) {
  const int length = signal.length;
  if (static_cast<unsigned>(p) >= static_cast<unsigned>(length)) {
    if (signal.padding_mode == PaddingMode::kZeros) return -1;
    if (p < -signal.padding_left || p >= length + signal.padding_right) return -1;
    if (signal.padding_mode == PaddingMode::kReflect) p = p < 0 ? -p : 2 * (length - 1) - p;
    if (signal.padding_mode == PaddingMode::kReplicate) p = p < 0 ? 0 : length - 1;
    if (signal.padding_mode == PaddingMode::kCircular) p = p < 0 ? p + length : p - length;
  }
  return p * signal.strides.position;
}

// Copies of 16 bytes to rows of kBytes: a thread copies the same chunk of every kLines-th row.
template <class T, int kBytes>
struct ChunkCopy {
  static constexpr int kChunks = kBytes / 16, kLines = kThreads / kChunks, kNumbers = 16 / int(sizeof(T));
  int line = thread_index() / kChunks, chunk = thread_index() % kChunks;
};

constexpr int kPackedRows = 16 * kWarps;  // of a block of pack_signal

// The rows that SignalPacking describes: [item][group][block][row][kRowBytes of channels], channels filled up with
// zeros. Of a warp 16 lanes take neighbouring rows, since most signals have neighbouring positions side by side, and
// two lanes write to the same row, 32 bytes of it. Number: as which they will be multiplied.
template <class Number, class T>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm)
    pack_signal(const SignalPacking p, const Signal signal, const Global<const T> from, const Global<T> packed) {
  wait_for_earlier_kernels();
  constexpr int kCount = 16 / int(sizeof(T));
  const uint32_t row_tiles = (p.rows + kPackedRows - 1) / kPackedRows;
  const int64_t tiles = p.items * p.groups * p.blocks * row_tiles;
  for (int64_t tile = block_index(); tile < tiles; tile += block_count()) {
    const auto index = static_cast<uint32_t>(tile);
    const uint32_t slab = index / row_tiles, item_group = slab / p.blocks;
    const auto groups = static_cast<uint32_t>(p.groups);
    const uint32_t n = item_group / groups, group = item_group - n * groups;
    const int block = static_cast<int>(slab - item_group * p.blocks);
    const int row =
        static_cast<int>(index - slab * row_tiles) * kPackedRows + thread_index() / 32 * 16 + thread_index() % 16;
    if (row >= p.rows) continue;
    const auto source = from.from(n * signal.strides.batch + int64_t{group} * p.channels * signal.strides.channel);
    const auto to = packed.from((int64_t{slab} * p.rows + row) * kRowChannels<T>);
    const int position = p.first + row * p.step;
    constexpr int kPairs = kRowBytes / 32;
    const auto first_of = [&](int pair) { return (2 * pair + thread_index() % 32 / 16) * kCount; };
    Pack<T, kCount> chunks[kPairs] = {};  // all of them are on their way before the first is waited for
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int both = block * kRowChannels<T> + first_of(pair);
      int channel = both / p.taps, tap = both - channel * p.taps;
      int64_t shown = shown_at(signal, position + tap * p.distance);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        if (channel < p.channels && shown >= 0) {
          chunks[pair].at[e] = source.load(channel * signal.strides.channel + shown);
        }
        if (++tap == p.taps) {
          tap = 0;
          ++channel;
        }
        if (p.taps > 1) shown = shown_at(signal, position + tap * p.distance);
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) chunks[pair].at[e] = rounded<Number>(chunks[pair].at[e]);
      to.store_pack(first_of(pair), chunks[pair]);
    }
  }
}

}  // namespace conv1d_ext::cuda
