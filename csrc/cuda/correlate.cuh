// forward and backward_input: each result is a sum over taps and channels of weights times a signal at shifted
// positions,
//   result[n, row, q] = sum over tap, c of weight[row, c, tap] * signal[n, c, q * step + tap * distance + first]
// A matrix product of a tile of rows (weights, packed beforehand) and a tile of columns (positions), of which no matrix
// of columns is ever made: a window of the signal lies in shared memory, one position a row, and each tap reads it from
// another row on.
#pragma once

#include "cuda/plan.h"
#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// One residue of it.
struct Residue {
  int columns;                    // results of each row of the batch item: at residue + column * column_step
  int first, step, distance;      // positions of the signal: of column 0 and tap 0, from column to column, tap to tap
  int taps, first_tap, tap_step;  // tap i is the kernel's tap first_tap + i * tap_step
};

__device__ inline int residues(const Correlation& c) { return c.is_backward ? c.stride : 1; }
__device__ inline int column_step(const Correlation& c) { return c.is_backward ? c.stride : 1; }

__device__ inline Residue residue_of(const Correlation& c, int residue) {
  if (!c.is_backward) return {c.result_length, -c.padding_left, c.stride, c.dilation, c.kernel_size, 0, 1};
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
  r.first = static_cast<int>((padded - int64_t{r.first_tap} * c.dilation) / c.stride);
  return r;
}

// For tiles whose columns are taken from the whole batch: where each column's batch item begins, and its position.
struct Place {
  int64_t item;
  int position, unused;
};

// The steps of a tile: blocks of channels, the windows of each, and the taps of each window. Begins with a window of
// one tap before the first, during whose step the first one is copied.
class Steps {
 public:
  __device__ Steps(int taps, int tap_block)
      : windows_((taps + tap_block - 1) / tap_block), taps_(taps / windows_), longer_(taps % windows_) {}
  __device__ void advance() {
    if (++tap_ < window_end()) return;
    *this = next_window();
    tap_ = window_begin();
  }
  __device__ Steps next_window() const {
    Steps next = *this;
    ++next.count_;
    if (++next.window_ == windows_) next.window_ = 0;
    if (next.window_ == 0) ++next.channel_block_;
    return next;
  }
  __device__ int channel_block() const { return channel_block_; }
  __device__ int tap() const { return tap_; }
  // Of the window: how many were before it, and which taps it has. Of equal number, to within one.
  __device__ int count() const { return count_; }
  __device__ int window_begin() const { return begin_of(window_); }
  __device__ int window_end() const { return window_ < 0 ? 0 : begin_of(window_ + 1); }

 private:
  __device__ int begin_of(int window) const { return window * taps_ + (window < longer_ ? window : longer_); }

  int windows_, taps_, longer_;  // of the first `longer_` windows each has a tap more
  int channel_block_ = -1, window_ = -1, count_ = -1, tap_ = -1;
};

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

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) correlate(
    const Correlation c, const CorrelatePlan plan, const Global<const typename Units::Storage> signal,
    const Global<const typename Units::Storage> packed, const Global<const typename Units::Storage> bias,
    const Global<typename Units::Storage> result) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kPitch;
  constexpr int kChannels = kRowChannels<T>, kChunksPerTile = kRows * kRowBytes / 16;
  constexpr int kAhead = kStages - 1;

  const Shared places = shared_memory();
  const Shared weight_ring = places.from(kCols * int(sizeof(Place)));
  const Shared window_ring = weight_ring.from(kStages * kRows * kPitch);
  const bool in_windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = divide(block, plan.row_tiles);
    const int row_tile = static_cast<int>(block - rest * plan.row_tiles);
    int64_t column_tile = rest;
    rest = divide(rest, plan.column_tiles);
    column_tile -= rest * plan.column_tiles;
    const int64_t group = divide(rest, residues(c));
    const int residue_index = static_cast<int>(rest - group * residues(c));
    const Residue residue = residue_of(c, residue_index);

    // The tile's columns: of one batch item where there are windows, of all of them otherwise.
    const int64_t item_tiles = in_windows ? divide(plan.column_tiles, c.batch) : 1;
    const int64_t item = in_windows ? divide(column_tile, item_tiles) : 0;
    const int64_t first_column = (column_tile - item * item_tiles) * kCols;
    const int64_t columns = in_windows ? residue.columns : c.batch * residue.columns;
    if (first_column >= columns) continue;

    const int64_t group_offset = group * c.channels * c.signal.strides.channel;
    const auto item_of = [&](int64_t column) { return in_windows ? item : divide(column, residue.columns); };
    const auto position_of = [&](int64_t column, int64_t n) {
      return static_cast<int>(in_windows ? column : column - n * residue.columns);
    };
    if (!in_windows) {
      for (int i = thread_index(); i < kCols; i += kThreads) {
        Place entry{-1, 0, 0};  // shows nothing
        if (first_column + i < columns) {
          const int64_t n = item_of(first_column + i);
          entry.item = n * c.signal.strides.batch + group_offset;
          entry.position = position_of(first_column + i, n) * residue.step + residue.first;
        }
        places.store(i * int(sizeof(Place)), entry);
      }
      sync_block();
    }

    const int taps = unfold ? 1 : residue.taps;
    const int channels = static_cast<int>(unfold ? c.channels * residue.taps : c.channels);
    const int steps = (channels + kChannels - 1) / kChannels * taps;
    const int64_t item_offset = item * c.signal.strides.batch + group_offset;
    const int first_position = in_windows ? static_cast<int>(first_column) * residue.step + residue.first : 0;

    Copier<T, kPitch, Units::kHeldRows> copier;
    const auto window_at = [&](const Steps& at) {
      return window_ring.from(at.count() % plan.windows * plan.window_rows * kPitch);
    };
    // All copies of the step at `at`: its weights, and its share of the window after its own.
    const auto copy_step = [&](const Steps& at, int step) {
      if (step >= 0) {
        const int64_t tap = unfold ? 0 : residue.first_tap + at.tap() * residue.tap_step;
        const int64_t tile =
            ((group * plan.packed_taps + tap) * plan.channel_blocks + at.channel_block()) * plan.row_tiles + row_tile;
        const auto from = packed.from(tile * kChunksPerTile * (16 / int(sizeof(T))));
        const Shared weights = weight_ring.from(step % kStages * kRows * kPitch);
        for (int chunk = thread_index(); chunk < kChunksPerTile; chunk += kThreads) {
          copy_async<16>(weights, chunk / 4 * kPitch + chunk % 4 * 16, from, chunk * (16 / int(sizeof(T))), true);
        }
      }
      const Steps next = at.next_window();
      const int channel0 = next.channel_block() * kChannels;
      if (channel0 >= channels) return;
      const int rows = in_windows ? (kCols - 1) * plan.row_step +
                                        (next.window_end() - next.window_begin() - 1) * plan.row_distance + 1
                                  : kCols;
      const int parts = step < 0 ? 1 : at.window_end() - at.window_begin();
      const int part = step < 0 ? 0 : at.tap() - at.window_begin();
      const int position0 = first_position + next.window_begin() * residue.distance;
      const auto shows = [&](int row, int word) -> int64_t {
        int channel = channel0 + word;
        if (channel >= channels) return -1;
        int64_t offset = item_offset;
        int position = position0 + row;
        if (!in_windows) {
          const auto place = places.load<Place>(row * int(sizeof(Place)));
          if (place.item < 0) return -1;
          offset = place.item;
          position = place.position + position0;
          if (unfold) {
            const int tap = channel % residue.taps;
            channel /= residue.taps;
            position += tap * residue.distance;
          }
        }
        const int64_t shown = shown_at(c.signal, position);
        return shown < 0 ? -1 : offset + channel * c.signal.strides.channel + shown;
      };
      if (plan.vectors) {
        copy_vectors<T, kPitch>(window_at(next), rows * part / parts, rows * (part + 1) / parts, signal, shows);
      } else {
        copier.start(window_at(next), rows * part / parts, rows * (part + 1) / parts, signal, shows);
      }
    };

    Units units;
    if (steps > 0) {
      Steps ahead(taps, plan.tap_block);
      int first_bytes[kAhead] = {};  // of the window, for the first column: of this step and those ahead
#pragma unroll 1
      for (int step = -kAhead - 1; step < steps; ++step) {
        if (step >= 0) {
          wait_copies<kAhead - 1>();
          sync_block();
        }
        if (step + kAhead < steps) copy_step(ahead, step + kAhead);
        commit_copies();
        if (step >= 0) {
          units.multiply(
              weight_ring.from(step % kStages * kRows * kPitch), window_ring.from(first_bytes[0]), plan.row_step);
        }
        copier.finish(window_at(ahead.next_window()));
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) first_bytes[i] = first_bytes[i + 1];
        const int tap = ahead.tap() - ahead.window_begin();
        first_bytes[kAhead - 1] = (ahead.count() % plan.windows * plan.window_rows + tap * plan.row_distance) * kPitch;
        ahead.advance();
      }
      sync_block();
    }

    const int row0 = row_tile * kRows;
    units.for_each(
        weight_ring,
        [&](int column) -> int64_t {
          if (first_column + column >= columns) return -1;
          const int64_t n = item_of(first_column + column);
          const int64_t q = position_of(first_column + column, n);
          return n * c.result.batch + (residue_index + q * column_step(c)) * c.result.position;
        },
        [&](int row, int64_t at, typename Units::Sum sum) {
          if (at < 0 || row0 + row >= c.rows) return;
          const int64_t channel = group * c.rows + row0 + row;
          store_sum<T>(c, sum, channel, at + channel * c.result.channel, bias, result);
        });
    sync_block();
  }
}

// Where weight[row, channel, tap] of a group is.
struct WeightView {
  int64_t group, row, channel, tap;
};

// The weights in the order in which `correlate` reads them: [group][tap][block of channels][row][64 bytes of channels],
// rows and channels filled up with zeros, and rounded to TF32 where it is that. Unfolded, channel and tap are one.
template <class Units>
__global__ void __launch_bounds__(kThreads, kPlainBlocksPerSm) pack_weights(
    const Correlation c, const CorrelatePlan plan, const WeightView view,
    const Global<const typename Units::Storage> weight, const Global<typename Units::Storage> packed) {
  using T = typename Units::Storage;
  constexpr int kChannels = kRowChannels<T>;
  const bool unfold = plan.staging == Staging::kUnfold;
  const int64_t channels = unfold ? c.channels * c.kernel_size : c.channels;
  const int64_t rows = plan.row_tiles * Units::kRows;
  for (int64_t i = block_index() * kThreads + thread_index(); i < plan.packed_elements; i += block_count() * kThreads) {
    int64_t rest = i;
    int64_t channel = rest % kChannels;
    rest /= kChannels;
    const int64_t row = rest % rows;
    rest = divide(rest, rows);
    channel += rest % plan.channel_blocks * kChannels;
    rest = divide(rest, plan.channel_blocks);
    int64_t tap = rest % plan.packed_taps;
    const int64_t group = divide(rest, plan.packed_taps);
    T value{};
    if (row < c.rows && channel < channels) {
      if (unfold) {
        tap = channel % c.kernel_size;
        channel = divide(channel, c.kernel_size);
      }
      value = weight.load(group * view.group + row * view.row + channel * view.channel + tap * view.tap);
    }
    packed.store(i, rounded<typename Units::Number>(value));
  }
}

}  // namespace conv1d_ext::cuda
