// Weights in the order of their use, once for each call: tiles of them are then runs of memory, aligned and complete.
#pragma once

#include <algorithm>

#include "cuda/correlation.cuh"
#include "cuda/problems.h"
#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// As many as there is room for: while one waits for its tile, others are at work on theirs.
constexpr int kPackingBlocksPerSm = kThreadsPerSm / kThreads;

// How weights are packed: a block of threads takes tiles of one block of channels, some rows and some taps.
struct PackPlan {
  WeightView view;
  int filled_rows, filled_channels;  // of each group; what is beyond them is zero
  int folded_taps;                   // a channel that stands for channel and tap has so many of them; otherwise 1
  int rows, channel_blocks, taps;    // of the result, in each group
  int tile_rows, tile_taps, row_tiles, tap_tiles;
  int64_t tap_step;  // of the result, from tap to tap
  bool rows_inside;  // rows are closer to each other in memory than channels are
  bool aligned;      // weights begin at a multiple of 16 bytes
  int pitch;         // bytes of a tile from row to row, or from channel to channel where rows are inside
  int64_t tiles;
  int shared_bytes;
};

template <class Units>
PackPlan plan_packing(const Correlation& c, const CorrelatePlan& plan, const WeightView& view, const void* weight) {
  using T = typename Units::Storage;
  constexpr int kTileBytes = 16 << 10, kTilePlaces = kTileBytes / kStepBytes;  // a place: a row at a tap
  constexpr int kRowsAtLeast = 8;  // and multiples of it, for the sake of their alignment
  constexpr int kPadding = 16;     // puts neighbouring rows into different banks
  PackPlan pack{};
  pack.view = view;
  pack.folded_taps = view.taps;
  if (view.taps > 1 && view.channel == view.taps * view.tap) {  // all of them lie at one distance
    pack.view.channel = view.tap;
    pack.folded_taps = 1;
  }
  if (c.kernel_size == 1 && pack.folded_taps == 1) pack.view.tap = 1;  // there is no next one
  pack.filled_rows = static_cast<int>(c.rows);
  pack.filled_channels = static_cast<int>(c.channels);
  pack.rows = static_cast<int>(plan.row_tiles * Units::kRows);
  pack.channel_blocks = static_cast<int>(plan.channel_blocks);
  pack.taps = c.kernel_size;
  pack.tap_step = int64_t{pack.channel_blocks} * pack.rows * kStepChannels<T>;
  const int64_t tap_tiles = ceil_div(pack.taps, kTilePlaces / kRowsAtLeast);
  pack.tile_taps = static_cast<int>(ceil_div(ceil_div(pack.taps, tap_tiles), kRowsAtLeast) * kRowsAtLeast);
  pack.tile_taps = std::min(pack.tile_taps, pack.taps);
  pack.tile_rows = std::min(kTilePlaces / pack.tile_taps / kRowsAtLeast * kRowsAtLeast, pack.rows);
  pack.rows_inside = pack.folded_taps == 1 && view.row < pack.view.channel;
  pack.aligned = reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  const int run = pack.tile_taps * (pack.rows_inside ? pack.tile_rows * int(sizeof(T)) : kStepBytes);
  pack.pitch = static_cast<int>(ceil_div(run, 16) * 16) + kPadding;
  pack.shared_bytes = pack.pitch * (pack.rows_inside ? kStepChannels<T> : pack.tile_rows);
  pack.row_tiles = static_cast<int>(ceil_div(pack.rows, pack.tile_rows));
  pack.tap_tiles = static_cast<int>(ceil_div(pack.taps, pack.tile_taps));
  pack.tiles = c.groups * pack.channel_blocks * pack.row_tiles * pack.tap_tiles;
  return pack;
}

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }

// Divides by what is known early. Exact where the product of both numbers is below 2^31.
class Divider {
 public:
  __device__ explicit Divider(int divisor) : reciprocal_(INT32_MAX / static_cast<uint32_t>(divisor) + 1) {}
  __device__ int quotient(int number) const {
    return static_cast<int>(uint64_t{2 * static_cast<uint32_t>(number)} * reciprocal_ >> 32);
  }

 private:
  uint32_t reciprocal_;  // of 2^31, rounded up
};

// A tile as it lies in memory: `outer` runs, of `inner` rows or channels and `taps` taps of each; one weight at a time,
// or 16 bytes of them. weight: from the first of them on, but for channels of folded taps.
template <int kWidth, class T>
__device__ inline void copy_weights(
    Shared tile, const PackPlan& plan, Global<const T> weight, int outer, int inner, int taps, int first_channel) {
  const int64_t outer_step = plan.rows_inside ? plan.view.channel : plan.view.row;
  const int64_t inner_step = plan.rows_inside ? plan.view.row : plan.view.channel;
  const int run = inner * taps / kWidth;
  const Divider by_run(run), by_taps(taps);
#pragma unroll(kWidth > 1 ? 1 : 4)
  for (int i = thread_index(); i < outer * run; i += kThreads) {
    const int o = by_run.quotient(i), in_run = (i - o * run) * kWidth;
    int place = by_taps.quotient(in_run), tap = in_run - place * taps;
    if (kWidth == 1 && plan.folded_taps > 1) {
      const int channel = first_channel + place;
      place = channel / plan.folded_taps;
      tap = channel - place * plan.folded_taps;
    }
    const int64_t at = o * outer_step + place * inner_step + tap * plan.view.tap;
    const int byte = o * plan.pitch + in_run * int(sizeof(T));
    if constexpr (kWidth > 1) {
      copy_async(tile, byte, weight, at, true);
    } else {
      tile.store<T>(byte, weight.load(at));
    }
  }
}

// The weights in the order in which `correlate` reads them: [group][tap][block of channels][row][kStepBytes of
// channels], rows and channels filled up with zeros, and rounded to TF32 where it is that. Unfolded, channel and tap
// are one. Tiles of them pass through shared memory: they are read along the runs of one order, and written along those
// of the other.
template <class Units>
__global__ void __launch_bounds__(kThreads, kPackingBlocksPerSm) pack_weights(
    const PackPlan plan, const Global<const typename Units::Storage> weight,
    const Global<typename Units::Storage> packed) {
  wait_for_earlier_kernels();
  using T = typename Units::Storage;
  constexpr int kChannels = kStepChannels<T>, kSize = sizeof(T), kVector = 16 / kSize;
  const Shared tile = shared_memory();
  for (int64_t block = block_index(); block < plan.tiles; block += block_count()) {
    // Each tile is 8 rows of the result or more, so there are not 2^32 of them.
    const uint32_t row_tile_index = static_cast<uint32_t>(block) / plan.tap_tiles;
    const uint32_t block_of_all = row_tile_index / plan.row_tiles, group = block_of_all / plan.channel_blocks;
    const int tap0 = static_cast<int>(static_cast<uint32_t>(block) - row_tile_index * plan.tap_tiles) * plan.tile_taps;
    const int row0 = static_cast<int>(row_tile_index - block_of_all * plan.row_tiles) * plan.tile_rows;
    const int channel_block = static_cast<int>(block_of_all - group * plan.channel_blocks);
    const int channel0 = channel_block * kChannels;
    const int taps = smaller(plan.taps - tap0, plan.tile_taps), rows = smaller(plan.rows - row0, plan.tile_rows);
    const int filled_rows = smaller(plan.filled_rows - row0, rows);  // or less than none
    const int filled_channels = smaller(plan.filled_channels - channel0, kChannels);

    if (filled_rows < rows || filled_channels < kChannels) {
      for (int byte = thread_index() * 16; byte < plan.shared_bytes; byte += kThreads * 16) {
        copy_async(tile, byte, weight, 0, false);
      }
      commit_copies();
      wait_copies<0>();
      sync_block();
    }
    if (filled_rows > 0) {
      const WeightView& view = plan.view;
      const int outer = plan.rows_inside ? filled_channels : filled_rows;
      const int inner = plan.rows_inside ? filled_rows : filled_channels;
      const int64_t outer_step = plan.rows_inside ? view.channel : view.row;
      const int64_t inner_step = plan.rows_inside ? view.row : view.channel;
      const int64_t first =
          group * view.group + row0 * view.row + tap0 * view.tap + (plan.folded_taps > 1 ? 0 : channel0 * view.channel);
      const auto aligned = [](int64_t offset) { return offset % kVector == 0; };
      const bool one_run = inner_step == taps, runs_of_taps = aligned(inner_step) && aligned(taps);
      if (plan.aligned && plan.folded_taps == 1 && view.tap == 1 && (one_run || runs_of_taps) && aligned(first) &&
          aligned(outer_step) && aligned(inner * taps)) {
        copy_weights<kVector>(tile, plan, weight.from(first), outer, inner, taps, channel0);
        commit_copies();
        wait_copies<0>();
      } else {
        copy_weights<1>(tile, plan, weight.from(first), outer, inner, taps, channel0);
      }
    }
    sync_block();

    // A thread writes 16 bytes of channels. Two threads side by side write those of a row and tap, which fill a sector;
    // the next two take the next row, whose weights are in other banks.
    const int row_pitch = plan.rows_inside ? taps * kSize : plan.pitch;
    const int channel_pitch = plan.rows_inside ? plan.pitch : taps * kSize;
    const auto to = packed.from(
        (int64_t{group} * plan.taps + tap0) * plan.tap_step + (int64_t{channel_block} * plan.rows + row0) * kChannels);
    const int places = rows * taps, side = thread_index() % 2;
    const Divider by_places(places), by_rows(rows);
    for (int i = thread_index() / 2; i < places * (kStepBytes / 32); i += kThreads / 2) {
      const int pair = by_places.quotient(i), place = i - pair * places;
      const int tap = by_rows.quotient(place), row = place - tap * rows, channel = (2 * pair + side) * kVector;
      const Shared from = tile.from(row * row_pitch + channel * channel_pitch + tap * kSize);
      Pack<T, kVector> values;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        values.at[e] = rounded<typename Units::Number>(from.load<T>(e * channel_pitch));
      }
      to.store_pack(tap * plan.tap_step + (row * kChannels + channel), values);
    }
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
