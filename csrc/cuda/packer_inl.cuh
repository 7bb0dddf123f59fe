// The signal of a problem as rows of channels: what it takes, and the launches.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/launcher_inl.cuh"
#include "cuda/problems.h"
#include "cuda/staging.cuh"

namespace conv1d_ext::cuda {
namespace {

template <class Number, class T>
class SignalPacker {
 public:
  SignalPacker(Launcher& launcher, const Correlation& c, bool unfold, const void* signal)
      : launcher_(launcher), c_(c), unfold_(unfold), signal_(signal) {}

  // Channels-last tensors are read as they are, if 16 bytes of channels lie side by side and aligned.
  bool is_needed() const {
    const TensorStrides& strides = c_.signal.strides;
    const auto aligned = [&](int64_t stride) { return stride % (16 / int(sizeof(T))) == 0; };
    return unfold_ || std::is_same_v<Number, Tf32> || c_.signal.padding_mode != PaddingMode::kZeros ||
           strides.channel != 1 || !aligned(strides.batch) || !aligned(strides.position) || !aligned(c_.channels) ||
           !is_aligned(signal_, 16) || strides.position > INT32_MAX || c_.batch * c_.signal.length > INT32_MAX;
  }
  int64_t columns() const { return (c_.result_length - 1) / column_step() + 1; }
  int64_t column_bytes() const { return !is_needed() ? 0 : row_bytes() * (unfold_ || c_.is_backward ? 1 : c_.stride); }
  int64_t halo_bytes() const {
    if (unfold_ || !is_needed()) return 0;
    return row_bytes() * (c_.kernel_size - 1) * c_.dilation / (c_.is_backward ? c_.stride : 1);
  }

  // The part of the tiles' problem that a chunk is.
  Correlation part_of(const Chunk& chunk) const {
    Correlation part = unfold_ ? unfolded(c_) : c_;
    part.batch = chunk.items;
    part.first_column = to_int(chunk.first_column);
    part.result_length =
        std::min(to_int(chunk.columns * column_step()), to_int(c_.result_length - chunk.first_column * column_step()));
    return part;
  }
  int64_t result_offset(const Chunk& chunk) const {
    return chunk.first_item * c_.result.batch + chunk.first_column * column_step() * c_.result.position;
  }

  // Memory for the largest of the chunks.
  void* take(const std::vector<Chunk>& chunks) const {
    int64_t rows = 0;
    for (const Chunk& chunk : chunks) rows = std::max(rows, chunk.items * packing(chunk).rows);
    return launcher_.take(is_needed() ? rows * row_bytes() : 0);
  }
  // Starts to pack a chunk to there; where it is found.
  std::pair<PackedSignal, Global<const T>> pack(const Chunk& chunk, void* to) const {
    const TensorStrides& strides = c_.signal.strides;
    const auto from = global<const T>(signal_).from(chunk.first_item * strides.batch);
    if (!is_needed()) {
      const int position = to_int(strides.position), channels = to_int(c_.channels);
      const PackedSignal view{strides.batch, c_.channels, kRowChannels<T>, position, channels, 0, c_.signal.length};
      return {view, from};
    }
    const SignalPacking p = packing(chunk);
    const int64_t tiles = p.items * p.groups * p.blocks * ((p.rows + kPackedRows - 1) / kPackedRows);
    launch<kThreads>(
        pack_signal<Number, T>, launcher_.grid(tiles), 0, launcher_.stream(), p, c_.signal, from, global<T>(to));
    return {packed_by(p, chunk, kRowChannels<T>), global<const T>(to)};
  }
  int taps() const { return unfold_ ? c_.kernel_size : 1; }

 private:
  int64_t column_step() const { return c_.is_backward ? c_.stride : 1; }
  SignalPacking packing(const Chunk& chunk) const { return packing_of(c_, unfold_, chunk, kRowChannels<T>); }
  int64_t row_bytes() const {
    const int64_t channels = c_.channels * taps();
    return c_.groups * ((channels + kRowChannels<T> - 1) / kRowChannels<T>)*kRowBytes;
  }

  Launcher& launcher_;
  const Correlation& c_;
  bool unfold_;
  const void* signal_;
};

}  // namespace
}  // namespace conv1d_ext::cuda
