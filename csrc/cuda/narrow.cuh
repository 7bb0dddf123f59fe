// Groups with few channels on both sides, depthwise layers above all: too few sums for a tile of a matrix product, and
// so little arithmetic that memory is the limit. A warp works on one row, its lanes on neighbouring positions, so that
// accesses are coalesced whatever their alignment. Neighbouring taps find in the L1 cache what the first one has read;
// long kernels slide over a window in shared memory.
#pragma once

#include "cuda/correlation.cuh"
#include "cuda/reduce.cuh"

namespace conv1d_ext::cuda {

// A lane has four loads on their way for each tap, of which those of the first come from far away: of 32 warps 8 KiB of
// 16-bit numbers for each multiprocessor, 1.8 TB/s for the 132 of an H100 if memory takes 600 ns to answer. As much is
// written meanwhile.
template <class Sum, bool kSlides = false>
constexpr int kNarrowBlocksPerSm = sizeof(Sum) == sizeof(double) ? 2
                                   : kSlides                     ? 3
                                                                 : 4;
constexpr int kNarrowTile = 32 * kNarrowOutputs;

__device__ inline int64_t quotient(int64_t n, const Divisor& divisor) {
  if (n >> 31 != 0) return n / divisor.value;
  return static_cast<int64_t>(uint64_t{static_cast<uint32_t>(n)} * divisor.multiplier >> divisor.shift);
}

struct Divided {
  int64_t quotient;
  int remainder;
};
__device__ inline Divided divide(int64_t n, const Divisor& divisor) {
  const int64_t q = quotient(n, divisor);
  return {q, static_cast<int>(n - q * divisor.value)};
}

__device__ inline int warp_index() { return static_cast<unsigned>(thread_index()) / 32; }
__device__ inline int lane_index() { return static_cast<unsigned>(thread_index()) % 32; }

// A number that was loaded and not yet looked at. 16-bit numbers have a register each, since of two in one the first
// would be waited for.
template <class T>
using Held = std::conditional_t<kIs16Bit<T>, uint32_t, T>;
template <class T>
__device__ inline Held<T> hold(T value) {
  if constexpr (kIs16Bit<T>) {
    return value.bits;
  } else {
    return value;
  }
}
template <class T>
__device__ inline auto widen_held(Held<T> held) {
  if constexpr (kIs16Bit<T>) {
    return widen(T{static_cast<uint16_t>(held)});
  } else {
    return widen(held);
  }
}

// What a lane reads of a row: positions first + 32 * o * step, where 32 * o is below `left`.
struct Line {
  int first, step, left;
};

// The position `i` steps from `first`; what wraps around is beyond the last result.
__device__ inline int stepped(int first, int i, int step) {
  return static_cast<int>(static_cast<unsigned>(first) + static_cast<unsigned>(i) * static_cast<unsigned>(step));
}

// Whether all that a tile's lanes read, from position `first` on, is there, and neighbours in memory.
__device__ inline bool is_inside(const Signal& signal, bool unit, int first, int positions, int reach) {
  return unit && first >= 0 && positions >= kNarrowTile && first + kNarrowTile + reach <= signal.length;
}

template <bool kInside, class T>
__device__ inline void read_line(
    Held<T> (&x)[kNarrowOutputs], Global<const T> row, const Signal& signal, const Line& line) {
  if constexpr (kInside) {
    row = row.from(line.first);
#pragma unroll
    for (int o = 0; o < kNarrowOutputs; ++o) x[o] = hold(row.load(32 * o));
  } else {
    const auto position = [&](int o) { return stepped(line.first, 32 * o, line.step); };
    if (signal.padding_mode == PaddingMode::kZeros) {
      row = row.from(line.first * signal.strides.position);
#pragma unroll
      for (int o = 0; o < kNarrowOutputs; ++o) {
        const bool shown = static_cast<unsigned>(position(o)) < static_cast<unsigned>(signal.length);
        x[o] = shown && 32 * o < line.left ? hold(row.load(0)) : Held<T>{};
        row = row.from(int64_t{32} * line.step * signal.strides.position);
      }
    } else {
#pragma unroll
      for (int o = 0; o < kNarrowOutputs; ++o) {
        const int64_t at = 32 * o < line.left ? shown_at(signal, position(o)) : -1;
        x[o] = at < 0 ? Held<T>{} : hold(row.load(at));
      }
    }
  }
}

// function(std::integral_constant) of the number of taps that are read at a time: up to four; one where addresses and
// conditions take registers, at edges and with strides.
template <bool kInside, class Function>
__device__ inline void with_taps(int taps, const Function& function) {
  static_assert(kNarrowTaps == 4);
  if (!kInside || taps == 1) {
    function(std::integral_constant<int, 1>{});
  } else if (taps == 2) {
    function(std::integral_constant<int, 2>{});
  } else if (taps == 3) {
    function(std::integral_constant<int, 3>{});
  } else {
    function(std::integral_constant<int, 4>{});
  }
}

// Weights of one row and channel, and from tap to tap.
template <class T>
struct Taps {
  Global<const T> weight;
  int64_t step;
  int count;
};

// sum[o] += taps times the line, straight from global memory.
template <bool kInside, class T, class Sum>
__device__ inline void add_taps(
    Sum (&sum)[kNarrowOutputs], Taps<T> taps, Global<const T> row, const Signal& signal, Line line, int distance) {
  while (taps.count > 0) {
    with_taps<kInside>(taps.count, [&](auto constant) {
      constexpr int kTaps = decltype(constant)::value;
      Held<T> w[kTaps], x[kTaps][kNarrowOutputs];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        w[k] = hold(taps.weight.load(0));
        read_line<kInside, T>(x[k], row, signal, line);
        taps.weight = taps.weight.from(taps.step);
        line.first += distance;
      }
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
#pragma unroll
        for (int o = 0; o < kNarrowOutputs; ++o) sum[o] += widen_held<T>(w[k]) * widen_held<T>(x[k][o]);
      }
      taps.count -= kTaps;
    });
  }
}

// Four neighbouring numbers of a row of shared memory, the first of them at a multiple of four.
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
template <class Sum>
__device__ inline void store_four(Shared row, int first, const Sum (&x)[4]) {
  constexpr int kChunk = 16 / int(sizeof(Sum));
#pragma unroll
  for (int i = 0; i < 4; i += kChunk) {
    Pack<Sum, kChunk> chunk;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) chunk.at[e] = x[i + e];
    row.store((first + i) * int(sizeof(Sum)), chunk);
  }
}

// The same with step and distance 1, by way of a window in shared memory: sum[e] is of the tile's result 4 * lane + e.
// Four taps at a time meet eight numbers, of which the next four taps keep four.
template <bool kInside, class T, class Sum>
__device__ inline void slide_taps(
    Sum (&sum)[kNarrowOutputs], Taps<T> taps, Global<const T> row, const Signal& signal, Line line, Shared window) {
  static_assert(kNarrowOutputs == 4);
  constexpr int kSize = int(sizeof(Sum));
  const int lane = lane_index();
  const Shared weights = window.from(kSlideWindow * kSize);
  for (; taps.count > 0; taps.count -= kSlideTaps) {
    const int block = taps.count < kSlideTaps ? taps.count : kSlideTaps;
    sync_warp();
    for (int tap = lane; tap < block; tap += 32) {
      weights.store<Sum>(tap * kSize, widen(taps.weight.load(tap * taps.step)));
    }
    // The tile's own positions, then those of the taps and of the four ahead.
    const auto copy = [&](auto inside, int from, int count) {
      Held<T> x[kNarrowOutputs];
      read_line<decltype(inside)::value, T>(x, row, signal, {line.first + from, 1, count});
#pragma unroll
      for (int o = 0; o < kNarrowOutputs; ++o) {
        if (32 * o < count) window.store<Sum>((from + lane + 32 * o) * kSize, widen_held<T>(x[o]));
      }
    };
    copy(std::bool_constant<kInside>{}, 0, kNarrowTile);
    copy(std::false_type{}, kNarrowTile, block + 4);
    sync_warp();
    Sum x[8];
    load_four(x, 4, window, 4 * lane);
    int tap = 0;
#pragma unroll 2
    for (; tap + 4 <= block; tap += 4) {
      Sum w[4];
      load_four(w, 0, weights, tap);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = x[e + 4];
      load_four(x, 4, window, 4 * lane + tap + 4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e] += w[k] * x[k + e];
      }
    }
    for (; tap < block; ++tap) {
      const Sum w = weights.load<Sum>(tap * kSize);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] += w * window.load<Sum>((4 * lane + e + tap) * kSize);
    }
    taps.weight = taps.weight.from(block * taps.step);
    line.first += block;
  }
}

template <class T, class Sum, bool kSlides>
__global__ void __launch_bounds__(kThreads, kNarrowBlocksPerSm<Sum, kSlides>) correlate_narrow(
    const Correlation c, const NarrowPlan plan, const WeightView view, const Global<const T> signal,
    const Global<const T> weight, const Global<const T> bias, const Global<T> result) {
  wait_for_earlier_kernels();
  constexpr int kSize = int(sizeof(Sum)), kNumbers = kSlideWindow + kSlideTaps;
  const int lane = lane_index(), warp = warp_index();
  const Shared window = shared_memory().from(warp * kNumbers * kSize);
  // The warps of a block have a tile each, or share the channels of one.
  const int first_channel = plan.shares ? warp * plan.warp_channels : 0;
  const int rest_channels = static_cast<int>(c.channels) - first_channel;
  const int channels = rest_channels < plan.warp_channels ? rest_channels : plan.warp_channels;
  const int first_result = plan.shares ? thread_index() : lane;
  const int results = !plan.shares ? kNarrowOutputs : thread_index() < kNarrowTile ? 1 : 0;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    const int64_t index = plan.shares ? block : block * kWarps + warp;
    if (index >= plan.items) break;
    // Residues side by side, as in `correlate`.
    const Divided item = divide(index, plan.residues), runs = divide(item.quotient, plan.runs);
    const Divided rows = divide(runs.quotient, plan.rows), groups = divide(rows.remainder, plan.group_rows);
    const int64_t n = rows.quotient, group = groups.quotient;
    const int row = rows.remainder;
    const Residue residue = residue_of(c, item.remainder);
    const auto group_signal =
        signal.from(n * c.signal.strides.batch + group * plan.signal_group + first_channel * c.signal.strides.channel);
    const auto row_weight = weight.from(
        group * view.group + groups.remainder * view.row + first_channel * view.channel + residue.first_tap * view.tap);
    const auto none = hold(narrow<T>(Sum(-0.0)));  // changes no sum
    const auto addend = plan.plain && !bias.is_null() ? hold(bias.load(row)) : none;

    int column = runs.remainder * plan.run_tiles * kNarrowTile;
    int columns = residue.columns - column;  // that are left
    int first = stepped(residue.first, column, plan.step);
    int64_t at = n * c.result.batch + row * c.result.channel + item.remainder * c.result.position +
                 (column + first_result) * plan.result_step;
    const int columns_after = columns - plan.run_tiles * kNarrowTile;
    for (; columns > 0 && columns > columns_after; columns -= kNarrowTile) {
      // Lanes beyond the last result, which read nothing, have no position; windows are read by all.
      const int lane_column = kSlides || lane < columns ? lane : 0;
      const Line line{first + lane_column * plan.step, plan.step, columns - lane};
      Sum sum[kNarrowOutputs] = {};
      const auto add_channels = [&](auto inside) {
        constexpr bool kInside = decltype(inside)::value;
        Taps<T> taps{row_weight, plan.tap_step * view.tap, residue.taps};
        auto channel_signal = group_signal;
        for (int channel = 0; channel < channels; ++channel) {
          if constexpr (kSlides) {
            slide_taps<kInside>(sum, taps, channel_signal, c.signal, line, window);
          } else {
            add_taps<kInside>(sum, taps, channel_signal, c.signal, line, plan.distance);
          }
          taps.weight = taps.weight.from(view.channel);
          channel_signal = channel_signal.from(c.signal.strides.channel);
        }
      };
      if (is_inside(c.signal, plan.unit, first, columns, (residue.taps - 1) * plan.distance)) {
        add_channels(std::true_type{});
      } else {
        add_channels(std::false_type{});
      }
      // By way of shared memory neighbours to neighbours, and the sums of all warps to one.
      if constexpr (kSlides) {
        sync_warp();
        store_four(window, 4 * lane, sum);
      } else if (plan.shares) {
#pragma unroll
        for (int o = 0; o < kNarrowOutputs; ++o) window.store<Sum>((32 * o + lane) * kSize, sum[o]);
      }
      if (plan.shares) {
        sync_block();
        sum[0] = 0;
        for (int w = 0; w < kWarps && thread_index() < kNarrowTile; ++w) {
          sum[0] += shared_memory().load<Sum>((w * kNumbers + thread_index()) * kSize);
        }
        sync_block();
      } else if constexpr (kSlides) {
        sync_warp();
#pragma unroll
        for (int o = 0; o < kNarrowOutputs; ++o) sum[o] = window.load<Sum>((32 * o + lane) * kSize);
      }
      const auto store = [&](const auto& store_one) {
        int64_t to = at;
#pragma unroll
        for (int o = 0; o < kNarrowOutputs; ++o) {
          if (o < results && first_result + 32 * o < columns) store_one(sum[o], to);
          to += 32 * plan.result_step;
        }
      };
      if (plan.plain) {
        store([&](Sum value, int64_t to) { result.store(to, narrow<T>(value + widen_held<T>(addend))); });
      } else {
        store([&](Sum value, int64_t to) { store_sum<T>(c, value, row, to, bias, result); });
      }
      first = stepped(first, kNarrowTile, plan.step);
      at += kNarrowTile * plan.result_step;
    }
  }
}

// sum[k] += a tile of grad_output times the signal k taps further.
template <bool kInside, class T, class Sum>
__device__ inline void add_products(
    Sum (&sum)[kNarrowTaps], int taps, Global<const T> grad_row, const Signal& grad, const Line& grad_line,
    Global<const T> row, const Signal& signal, Line line, int distance) {
  Held<T> g[kNarrowOutputs];
  read_line<kInside, T>(g, grad_row, grad, grad_line);
  const auto add = [&](int first, auto constant) {
    constexpr int kTaps = decltype(constant)::value;
    Held<T> x[kTaps][kNarrowOutputs];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      read_line<kInside, T>(x[k], row, signal, line);
      line.first += distance;
    }
#pragma unroll
    for (int o = 0; o < kNarrowOutputs; ++o) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum[first + k] += widen_held<T>(g[o]) * widen_held<T>(x[k][o]);
    }
  };
  if constexpr (kInside) {
    with_taps<kInside>(taps, [&](auto constant) { add(0, constant); });
  } else {
#pragma unroll
    for (int k = 0; k < kNarrowTaps; ++k) {
      if (k < taps) add(k, std::integral_constant<int, 1>{});
    }
  }
}

// Four sums of what each lane has of them: in lane l the one of number l / 8.
template <class Sum>
__device__ inline Sum sums_of_warp(const Sum (&sum)[4]) {
  const bool upper = thread_index() & 16, odd = thread_index() & 8;
  Sum half[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    half[k] = (upper ? sum[k + 2] : sum[k]) + shuffle_xor(upper ? sum[k] : sum[k + 2], 16);
  }
  Sum total = (odd ? half[1] : half[0]) + shuffle_xor(odd ? half[0] : half[1], 8);
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  return total;
}

// backward_weight: a warp has kNarrowTaps taps of one row of the weight, and a part of the positions. The parts of a
// block's warps are added up here; those of several blocks go to `partials`.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kNarrowBlocksPerSm<Sum>) multiply_outer_narrow(
    const OuterProduct o, const NarrowOuterPlan plan, const Global<const T> grad, const Global<const T> signal,
    const Global<Sum> partials, const WeightStrides strides, const bool accumulate, const bool negate,
    const Global<T> result) {
  wait_for_earlier_kernels();
  constexpr int kSize = int(sizeof(Sum));
  const int lane = lane_index(), warp = warp_index();
  const int row_in_block = warp / plan.row_warps, warp_of_row = warp - row_in_block * plan.row_warps;
  const Shared sums = shared_memory();
  const Signal grads{o.grad, o.out_length, 0, 0, PaddingMode::kZeros};

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    const int64_t index = block * (kWarps / plan.row_warps) + row_in_block;
    const Divided tap_blocks = divide(index, plan.tap_blocks), channels = divide(tap_blocks.quotient, plan.channels);
    const Divided out_channels = divide(channels.quotient, plan.out_channels);
    const int64_t split = out_channels.quotient;
    const int out_channel = out_channels.remainder, channel = channels.remainder;
    const int tap0 = tap_blocks.remainder * kNarrowTaps;
    const int taps = o.kernel_size - tap0 < kNarrowTaps ? o.kernel_size - tap0 : kNarrowTaps;
    if (split < plan.splits) {
      const int64_t in_channel = quotient(out_channel, plan.group_rows) * o.channels + channel;
      const auto channel_grad = grad.from(out_channel * o.grad.channel);
      const auto channel_signal = signal.from(in_channel * o.signal.strides.channel);
      const int64_t begin = (split * plan.row_warps + warp_of_row) * plan.part_tiles;
      const int64_t end = begin + plan.part_tiles < plan.all_tiles ? begin + plan.part_tiles : plan.all_tiles;
      Sum sum[kNarrowTaps] = {};
      const Divided place = divide(begin, plan.tiles);
      int64_t n = place.quotient;
      int t0 = place.remainder * kNarrowTile;
      for (int64_t i = begin; i < end; ++i) {
        const int rest = o.out_length - t0, first = t0 * o.stride + tap0 * o.dilation - o.signal.padding_left;
        const auto add = [&](auto inside) {
          add_products<decltype(inside)::value>(
              sum, taps, channel_grad.from(n * o.grad.batch), grads, {t0 + lane, 1, rest - lane},
              channel_signal.from(n * o.signal.strides.batch), o.signal,
              {first + (lane < rest ? lane : 0) * o.stride, o.stride, rest - lane}, o.dilation);
        };
        if (is_inside(o.signal, plan.unit, first, rest, (taps - 1) * o.dilation)) {
          add(std::true_type{});
        } else {
          add(std::false_type{});
        }
        t0 += kNarrowTile;
        if (t0 >= o.out_length) {
          t0 = 0;
          ++n;
        }
      }
      const Sum total = sums_of_warp(sum);
      if (lane % 8 == 0) sums.store<Sum>((warp * kNarrowTaps + lane / 8) * kSize, total);
    }
    sync_block();
    if (split < plan.splits && warp_of_row == 0 && lane < taps) {
      Sum total = 0;
      for (int w = 0; w < plan.row_warps; ++w) total += sums.load<Sum>(((warp + w) * kNarrowTaps + lane) * kSize);
      const int64_t tap = tap0 + lane;
      if (plan.splits > 1) {
        partials.store((channels.quotient * o.channels + channel) * o.kernel_size + tap, total);
      } else {
        const int64_t at = out_channel * strides.out_channel + channel * strides.in_channel + tap * strides.tap;
        if (negate) total = -total;
        if (accumulate) total += widen(result.load(at));
        result.store(at, narrow<T>(total));
      }
    }
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
