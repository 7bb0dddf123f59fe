// From tensors of any strides to shared memory: tiles whose rows are 64 bytes of channels at one position. A tap is
// then another row, whatever the stride and the dilation, and the matrix units find aligned operands in each.
#pragma once

#include "cuda/device.cuh"
#include "cuda/plan.h"

namespace conv1d_ext::cuda {

constexpr int kWarps = kThreads / 32;
// Of kernels that take little more than an element at a time, which memory limits: half of all the threads there can
// be.
constexpr int kPlainBlocksPerSm = 4;
template <class T>
constexpr int kRowChannels = kRowBytes / int(sizeof(T));

// Where in a row of the tensor position p of the padded signal is found; -1 where it is zero, and beyond the padding.
__device__ inline int64_t shown_at(const Signal& signal, int p) {
  const int length = signal.length;
  if (p < -signal.padding_left || p >= length + signal.padding_right) return -1;
  if (p < 0 || p >= length) {
    if (signal.padding_mode == PaddingMode::kZeros) return -1;
    if (signal.padding_mode == PaddingMode::kReflect) p = p < 0 ? -p : 2 * (length - 1) - p;
    if (signal.padding_mode == PaddingMode::kReplicate) p = p < 0 ? 0 : length - 1;
    if (signal.padding_mode == PaddingMode::kCircular) p = p < 0 ? p + length : p - length;
  }
  return p * signal.strides.position;
}

// Most indices fit into 32 bits, in which a division takes a fraction of the time.
__device__ inline int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// A thread's part in copying rows into a tile. Words of 4 and 8 bytes are copied in the background. There are no such
// copies of 16-bit numbers: their loads are started by `start`, two channels to a word, and stored by `finish`, with
// the arithmetic of a step in between; kHeldRows of them, those before are waited for.
//
// Of 8 consecutive lanes each takes another row, so that a warp reads 8 neighbouring positions of 4 channels (a sector
// of 32 bytes each, in float32) and writes to 32 different banks (rows lie 20 or 24 words apart).
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

  // Rows [first, last) of the tile. shows(row, channel): which element of `signal` is there, -1 for zero.
  template <class Shows>
  __device__ void start(Shared tile, int first, int last, Global<const T> signal, const Shows& shows) {
    if constexpr (kInBackground) {
      for (int row = first + row_; row < last; row += kRowsPerPass) {
        const int64_t i = shows(row, word_);
        copy_async<kWordBytes>(tile, row * kPitch + word_ * kWordBytes, signal, i < 0 ? 0 : i, i >= 0);
      }
    } else {
      for (; last - first > kHeldRows; first += kHeldRows) {
        fetch(first, first + kHeldRows, signal, shows);
        finish(tile);
      }
      fetch(first, last, signal, shows);
    }
  }

  __device__ void finish(Shared tile) {
    if constexpr (!kInBackground) {
#pragma unroll
      for (int pass = 0; pass < kHeld; ++pass) {
        const int row = first_ + row_ + pass * kRowsPerPass;
        if (row < last_) {
          tile.store<uint32_t>(row * kPitch + word_ * kWordBytes, held_[pass][0] | uint32_t{held_[pass][1]} << 16);
        }
      }
      last_ = 0;
    }
  }

 private:
  template <class Shows>
  __device__ void fetch(int first, int last, Global<const T> signal, const Shows& shows) {
    first_ = first;
    last_ = last;
#pragma unroll
    for (int pass = 0; pass < kHeld; ++pass) {
      const int row = first + row_ + pass * kRowsPerPass;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t i = row < last ? shows(row, 2 * word_ + half) : -1;
        held_[pass][half] = i < 0 ? uint16_t{0} : signal.load(i).bits;
      }
    }
  }

  int row_, word_;
  int first_ = 0, last_ = 0;
  uint16_t held_[kHeld][2];
};

// For tensors whose channels are neighbours (channels-last): 16 bytes at a time, in the background for all types.
// shows(row, channel): as above, for the first of 16 bytes of channels, of which all or none are there.
template <class T, int kPitch, class Shows>
__device__ inline void copy_vectors(Shared tile, int first, int last, Global<const T> signal, const Shows& shows) {
  constexpr int kChunks = kRowBytes / 16;
  const int chunk = thread_index() % kChunks;
  for (int row = first + thread_index() / kChunks; row < last; row += kThreads / kChunks) {
    const int64_t i = shows(row, chunk * (16 / int(sizeof(T))));
    copy_async<16>(tile, row * kPitch + chunk * 16, signal, i < 0 ? 0 : i, i >= 0);
  }
}

}  // namespace conv1d_ext::cuda
