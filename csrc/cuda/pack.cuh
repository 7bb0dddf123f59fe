// Weights in the order of their use, once for each call: tiles of them are then runs of memory, aligned and complete.
#pragma once

#include "cuda/correlation.cuh"
#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// The weights in the order in which `correlate` reads them: [group][tap][block of channels][row][64 bytes of channels],
// rows and channels filled up with zeros, and rounded to TF32 where it is that. Unfolded, channel and tap are one.
template <class Units>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) pack_weights(
    const Correlation c, const CorrelatePlan plan, const WeightView view,
    const Global<const typename Units::Storage> weight, const Global<typename Units::Storage> packed) {
  using T = typename Units::Storage;
  constexpr int kChannels = kRowChannels<T>;
  const bool unfold = view.taps > 1;
  const int64_t rows = plan.row_tiles * Units::kRows;
  for (int64_t i = block_index() * kThreads + thread_index(); i < plan.packed_elements; i += block_count() * kThreads) {
    int64_t rest = i;
    int64_t channel = rest % kChannels;
    rest /= kChannels;
    const int64_t row = rest % rows;
    rest /= rows;
    channel += rest % plan.channel_blocks * kChannels;
    rest /= plan.channel_blocks;
    int64_t tap = rest % c.kernel_size;
    const int64_t group = rest / c.kernel_size;
    T value{};
    if (row < c.rows && channel < c.channels) {
      if (unfold) {
        tap = channel % view.taps;
        channel /= view.taps;
      }
      value = weight.load(group * view.group + row * view.row + channel * view.channel + tap * view.tap);
    }
    packed.store(i, rounded<typename Units::Number>(value));
  }
}

}  // namespace conv1d_ext::cuda
