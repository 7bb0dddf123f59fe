// Groups with few channels on both sides, depthwise layers above all: too few sums for a tile of a matrix product, and
// so little arithmetic that memory is the limit. A line of threads computes neighbouring results of one row from a
// window of the signal in shared memory, each number of which is read from global memory once.
#pragma once

#include "cuda/correlation.cuh"
#include "cuda/reduce.cuh"

namespace conv1d_ext::cuda {

// Loads of a thread that are on their way at a time, and blocks: together 15 KiB of float32 for each multiprocessor, as
// much as an H100's memory delivers in 600 ns (3.35 TB/s for 132 of them). double has 20 KiB with two blocks; the eight
// sums of the weight's gradient leave registers for two.
constexpr int kNarrowLoads = 5;
template <class Sum>
constexpr int kNarrowBlocksPerSm = sizeof(Sum) == sizeof(double) ? 2 : 3;
constexpr int kNarrowOuterBlocksPerSm = 2;

// x[to], ... x[to + 3]: four neighbouring numbers of a row of shared memory, the first of them at a multiple of four.
template <class Sum, int kCount>
__device__ inline void load_four(Sum (&x)[kCount], int to, Shared row, int first) {
  constexpr int kChunk = 16 / int(sizeof(Sum));
#pragma unroll
  for (int i = 0; i < 4; i += kChunk) {
    const auto chunk = row.load<Pack<Sum, kChunk>>((first + i) * int(sizeof(Sum)));
#pragma unroll
    for (int e = 0; e < kChunk; ++e) x[to + i + e] = chunk.at[e];
  }
}

// Copies a line's window, numbers [0, count): kNarrowLoads loads of each thread are on their way at a time, 16-bit
// numbers each in a register of its own, since two in one would be waited for.
template <class T, class Sum, class Read>
__device__ inline void copy_line(Shared to, int thread, int threads, int count, const Read& read) {
  for (int i = thread; i < count; i += kNarrowLoads * threads) {
    std::conditional_t<kIs16Bit<T>, uint32_t, T> held[kNarrowLoads] = {};
#pragma unroll
    for (int n = 0; n < kNarrowLoads; ++n) {
      if (i + n * threads >= count) continue;
      if constexpr (kIs16Bit<T>) {
        held[n] = read(i + n * threads).bits;
      } else {
        held[n] = read(i + n * threads);
      }
    }
#pragma unroll
    for (int n = 0; n < kNarrowLoads; ++n) {
      if (i + n * threads >= count) continue;
      T value;
      if constexpr (kIs16Bit<T>) {
        value = {static_cast<uint16_t>(held[n])};
      } else {
        value = held[n];
      }
      to.store<Sum>((i + n * threads) * int(sizeof(Sum)), widen(value));
    }
  }
}

// As shown_at, for the positions of results beyond the last as well, which may not fit into 32 bits.
__device__ inline int64_t shown_far(const Signal& signal, int64_t p) {
  return p == static_cast<int>(p) ? shown_at(signal, static_cast<int>(p)) : -1;
}

template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kNarrowBlocksPerSm<Sum>) correlate_narrow(
    const Correlation c, const NarrowPlan plan, const WeightView view, const Global<const T> signal,
    const Global<const T> weight, const Global<const T> bias, const Global<T> result) {
  constexpr int kSize = int(sizeof(Sum));
  const int tile = plan.line_threads * kNarrowOutputs, lines = kThreads / plan.line_threads;
  const int line = thread_index() / plan.line_threads, thread = thread_index() % plan.line_threads;
  // Each line has its window (afterwards the results), and its weights.
  const int window_bytes = (plan.window > tile ? plan.window : tile) * kSize;
  const Shared window = shared_memory().from(line * window_bytes);
  const Shared weights = shared_memory().from(lines * window_bytes + line * plan.tap_block * kSize);

  const int64_t all_rows = c.groups * c.rows, total = residues(c) * plan.tiles * c.batch * all_rows;
  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    // Lines beyond the last do the last one's work once more, without storing it, so that all meet at the barriers.
    const int64_t index = block * lines + line;
    const int64_t tile_row = index < total ? index : total - 1;
    // Residues side by side, as in `correlate`.
    const int64_t residue_tile = tile_row / residues(c);
    const int residue_index = static_cast<int>(tile_row - residue_tile * residues(c));
    const int64_t item_row = residue_tile / plan.tiles, tile_index = residue_tile - item_row * plan.tiles;
    const int64_t n = item_row / all_rows, row = item_row - n * all_rows;
    const int64_t group = row / c.rows;
    const Residue residue = residue_of(c, residue_index);
    const int64_t first_column = tile_index * tile;
    const int64_t line_offset = n * c.signal.strides.batch + group * c.channels * c.signal.strides.channel;
    const int64_t weight_offset = group * view.group + (row - group * c.rows) * view.row;

    Sum sum[kNarrowOutputs] = {};
    // The loops are as long for all lines of a block, whose residues may have different taps.
    const int most_taps = plan.most_taps;
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      for (int tap0 = 0; tap0 < most_taps; tap0 += plan.tap_block) {
        const int rest_taps = residue.taps - tap0;
        const int taps = rest_taps < 0 ? 0 : rest_taps < plan.tap_block ? rest_taps : plan.tap_block;
        for (int tap = thread; tap < taps; tap += plan.line_threads) {
          const int64_t k = residue.first_tap + int64_t{tap0 + tap} * residue.tap_step;
          const T w = weight.load(weight_offset + channel * view.channel + k * view.tap);
          weights.store<Sum>(tap * kSize, widen(w));
        }
        const int64_t channel_offset = line_offset + channel * c.signal.strides.channel;
        const int64_t first = residue.first + first_column * residue.step + tap0 * residue.distance;
        const auto read = [&](int64_t position) -> T {
          const int64_t shown = shown_far(c.signal, position);
          return shown < 0 ? T{} : signal.load(channel_offset + shown);
        };
        copy_line<T, Sum>(window, thread, plan.line_threads, plan.window, [&](int i) { return read(first + i); });
        sync_block();
        if (plan.slides) {
          // Four taps at a time meet eight numbers, of which the next four taps keep four.
          Sum x[8];
          load_four(x, 4, window, 4 * thread);
          int tap = 0;
          for (; tap + 4 <= taps; tap += 4) {
            Sum w[4];
            load_four(w, 0, weights, tap);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = x[i + 4];
            load_four(x, 4, window, 4 * thread + tap + 4);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
#pragma unroll
              for (int o = 0; o < kNarrowOutputs; ++o) sum[o] += w[k] * x[k + o];
            }
          }
          for (; tap < taps; ++tap) {
            const Sum w = weights.load<Sum>(tap * kSize);
#pragma unroll
            for (int o = 0; o < kNarrowOutputs; ++o) {
              sum[o] += w * window.load<Sum>((4 * thread + o + tap) * kSize);
            }
          }
        } else {
          for (int tap = 0; tap < taps; ++tap) {
            const Sum w = weights.load<Sum>(tap * kSize);
#pragma unroll
            for (int o = 0; o < kNarrowOutputs; ++o) {
              const int64_t at = int64_t{thread + o * plan.line_threads} * residue.step + tap * residue.distance;
              sum[o] +=
                  w * (plan.window > 0 ? window.load<Sum>(static_cast<int>(at) * kSize) : widen(read(first + at)));
            }
          }
        }
        sync_block();
      }
    }
    if (plan.slides) {  // neighbours to neighbours, for stores of whole lines
#pragma unroll
      for (int o = 0; o < kNarrowOutputs; ++o) window.store<Sum>((4 * thread + o) * kSize, sum[o]);
      sync_block();
#pragma unroll
      for (int o = 0; o < kNarrowOutputs; ++o) sum[o] = window.load<Sum>((thread + o * plan.line_threads) * kSize);
      sync_block();
    }
    if (index >= total) continue;
#pragma unroll
    for (int o = 0; o < kNarrowOutputs; ++o) {
      const int64_t column = first_column + thread + o * plan.line_threads;
      if (column >= residue.columns) break;
      const int64_t at =
          n * c.result.batch + row * c.result.channel + (residue_index + column * column_step(c)) * c.result.position;
      store_sum<T>(c, sum[o], row, at, bias, result);
    }
  }
}

// backward_weight: each block has kNarrowTaps taps of one weight's row, and a part of the positions.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kNarrowOuterBlocksPerSm) multiply_outer_narrow(
    const OuterProduct o, const NarrowPlan plan, const Global<const T> grad, const Global<const T> signal,
    const Global<Sum> partials) {
  constexpr int kSize = int(sizeof(Sum)), kTile = kThreads * kNarrowOutputs;
  const Shared grads = shared_memory(), window = grads.from(kTile * kSize);
  const int64_t tap_blocks = (o.kernel_size + kNarrowTaps - 1) / kNarrowTaps, out_channels = o.groups * o.rows;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block;
    const int64_t tap0 = rest % tap_blocks * kNarrowTaps;
    rest /= tap_blocks;
    const int64_t channel = rest % o.channels;
    rest /= o.channels;
    const int64_t out_channel = rest % out_channels, split = rest / out_channels;
    const int64_t in_channel = out_channel / o.rows * o.channels + channel;
    Sum sum[kNarrowTaps] = {};
    const auto read_grad = [&](int64_t n, int64_t t) {
      return grad.load(n * o.grad.batch + out_channel * o.grad.channel + t * o.grad.position);
    };
    const auto read_signal = [&](int64_t n, int64_t position) {
      const int64_t shown = shown_far(o.signal, position - o.signal.padding_left);
      if (shown < 0) return T{};
      return signal.load(n * o.signal.strides.batch + in_channel * o.signal.strides.channel + shown);
    };
    if (plan.window > 0) {
      const int64_t tiles = o.batch * plan.tiles;
      for (int64_t i = tiles * split / plan.splits; i < tiles * (split + 1) / plan.splits; ++i) {
        const int64_t n = i / plan.tiles, t0 = (i - n * plan.tiles) * kTile;
        copy_line<T, Sum>(grads, thread_index(), kThreads, kTile, [&](int t) {
          return t0 + t < o.out_length ? read_grad(n, t0 + t) : T{};
        });
        copy_line<T, Sum>(window, thread_index(), kThreads, plan.window, [&](int p) {
          return read_signal(n, t0 * o.stride + tap0 * o.dilation + p);
        });
        sync_block();
        if (plan.slides) {
          Sum g[4], x[kNarrowTaps + 4];
          load_four(g, 0, grads, 4 * thread_index());
#pragma unroll
          for (int p = 0; p < kNarrowTaps + 4; p += 4) {
            load_four(x, p, window, 4 * thread_index() + p);
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (t0 + 4 * thread_index() + e >= o.out_length) break;  // zero times infinity
#pragma unroll
            for (int k = 0; k < kNarrowTaps; ++k) sum[k] += g[e] * x[e + k];
          }
        } else {
#pragma unroll
          for (int e = 0; e < kNarrowOutputs; ++e) {
            const int t = thread_index() + e * kThreads;
            if (t0 + t >= o.out_length) break;
            const Sum g = grads.load<Sum>(t * kSize);
#pragma unroll
            for (int k = 0; k < kNarrowTaps; ++k) {
              const int at = t * static_cast<int>(o.stride) + k * static_cast<int>(o.dilation);
              sum[k] += g * window.load<Sum>(at * kSize);
            }
          }
        }
        sync_block();
      }
    } else {
      const int64_t terms = o.batch * o.out_length, end = terms * (split + 1) / plan.splits;
      for (int64_t i = terms * split / plan.splits + thread_index(); i < end; i += kThreads) {
        const int64_t n = i / o.out_length, t = i - n * o.out_length;
        const Sum g = widen(read_grad(n, t));
#pragma unroll
        for (int k = 0; k < kNarrowTaps; ++k)
          sum[k] += g * widen(read_signal(n, t * o.stride + (tap0 + k) * o.dilation));
      }
    }
#pragma unroll
    for (int k = 0; k < kNarrowTaps; ++k) {
      const Sum total = sum_of_block(sum[k], grads);
      if (thread_index() == 0 && tap0 + k < o.kernel_size) {
        partials.store(((split * out_channels + out_channel) * o.channels + channel) * o.kernel_size + tap0 + k, total);
      }
    }
  }
}

}  // namespace conv1d_ext::cuda
