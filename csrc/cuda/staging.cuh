// From tensors of any strides to shared memory: tiles whose rows are 64 bytes of channels at one position. A tap is
// then another row, whatever the stride and the dilation, and the matrix units find aligned operands in each.
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

// What a word of a row shows: a channel, by its offset (-1: none), and by how many positions it is shifted.
struct Channel {
  int64_t offset;
  int shift;
};

// A thread's part in copying rows into a tile. Words of 4 and 8 bytes are copied in the background. There are no such
// copies of 16-bit numbers: their loads are started by `start`, two channels to a word, and stored by `finish`, with
// the arithmetic of a step in between; kHeldRows of them, those before are waited for.
//
// An element is found in two parts, of which the first is mostly the same for all rows, and the second for all
// channels: channel_at(row, word), and row_at(row, shift), the offset of the row's position, or -1.
//
// Of 8 consecutive lanes each takes another row, so that a warp reads 8 neighbouring positions of 4 words and writes to
// 32 different banks where rows lie 20 words apart.
template <class T, int kPitch, int kHeldRows>
class Copier {
  static constexpr bool kInBackground = sizeof(T) >= 4;
  static constexpr int kWordBytes = kInBackground ? sizeof(T) : 4;
  static constexpr int kWordGroups = kRowBytes / kWordBytes / 4;  // of 4 words, a warp each
  static constexpr int kRowsPerPass = kWarps / kWordGroups * 8;
  static constexpr int kHeld = kInBackground ? 1 : kHeldRows / kRowsPerPass;

 public:
  __device__ Copier()
      : row_(thread_index() / 32 / kWordGroups * 8 + thread_index() % 8),
        word_(thread_index() / 32 % kWordGroups * 4 + thread_index() % 32 / 8) {}

  // Rows [first, last) of the tile.
  template <class ChannelAt, class RowAt>
  __device__ void start(
      Shared tile, int first, int last, Global<const T> signal, const ChannelAt& channel_at, const RowAt& row_at) {
    if constexpr (kInBackground) {
#pragma unroll 2
      for (int row = first + row_; row < last; row += kRowsPerPass) {
        const Channel channel = channel_at(row, word_);
        const int64_t at = channel.offset < 0 ? -1 : row_at(row, channel.shift);
        copy_async<kWordBytes>(
            tile, row * kPitch + word_ * kWordBytes, signal, at < 0 ? 0 : at + channel.offset, at >= 0);
      }
    } else {
      for (; last - first > kHeldRows; first += kHeldRows) {
        fetch(first, first + kHeldRows, signal, channel_at, row_at);
        finish(tile);
      }
      fetch(first, last, signal, channel_at, row_at);
    }
  }

  __device__ void finish(Shared tile) {
    if constexpr (!kInBackground) {
#pragma unroll
      for (int pass = 0; pass < kHeld; ++pass) {
        const int row = first_ + row_ + pass * kRowsPerPass;
        arrive(held_[pass][0], held_[pass][1]);
        if (row < last_) {
          tile.store<uint32_t>(row * kPitch + word_ * kWordBytes, held_[pass][0] | held_[pass][1] << 16);
        }
      }
      last_ = 0;
    }
  }

 private:
  template <class ChannelAt, class RowAt>
  __device__ void fetch(int first, int last, Global<const T> signal, const ChannelAt& channel_at, const RowAt& row_at) {
    first_ = first;
    last_ = last;
#pragma unroll
    for (int pass = 0; pass < kHeld; ++pass) {
      const int row = first + row_ + pass * kRowsPerPass;
      held_[pass][0] = held_[pass][1] = 0;
      if (row < last) {
        const Channel low = channel_at(row, 2 * word_), high = channel_at(row, 2 * word_ + 1);
        const int64_t low_at = row_at(row, low.shift);
        const int64_t high_at = high.shift == low.shift ? low_at : row_at(row, high.shift);
        if (low.offset >= 0 && low_at >= 0) held_[pass][0] = signal.load(low_at + low.offset).bits;
        if (high.offset >= 0 && high_at >= 0) held_[pass][1] = signal.load(high_at + high.offset).bits;
      }
    }
  }

  int row_, word_;
  int first_ = 0, last_ = 0;
  uint32_t held_[kHeld][2];
};

// For tensors whose channels are neighbours (channels-last): 16 bytes at a time, in the background for all types. Of a
// chunk's channels all or none are there.
template <class T, int kPitch, class ChannelAt, class RowAt>
__device__ inline void copy_vectors(
    Shared tile, int first, int last, Global<const T> signal, const ChannelAt& channel_at, const RowAt& row_at) {
  constexpr int kChunks = kRowBytes / 16;
  const int chunk = thread_index() % kChunks;
  for (int row = first + thread_index() / kChunks; row < last; row += kThreads / kChunks) {
    const Channel channel = channel_at(row, chunk * (16 / int(sizeof(T))));
    const int64_t at = channel.offset < 0 ? -1 : row_at(row, channel.shift);
    copy_async<16>(tile, row * kPitch + chunk * 16, signal, at < 0 ? 0 : at + channel.offset, at >= 0);
  }
}

}  // namespace conv1d_ext::cuda
