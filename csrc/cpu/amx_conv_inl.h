// forward and backward_input through the matrix unit, in the terms of amx_plan.h. Two passes: weights, taken apart and
// in the order of their use, then blocks of positions of the results:
//   panel[piece][phase of taps][step of channels][pair of products][position]
//   sums[row][position]   by tiles, stored with the bias.
//
// As with the transforms, a number that is not finite may spoil its neighbours, and so do numbers that are all tiny:
// kernels set the alarm of the batch item, which the direct kernels then compute again.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
class AmxConv {
  static constexpr int kPieces = kAmxPieces<Storage>;
  static constexpr int64_t kPiece = 2 * kAmxTile, kLanes = F32::kLanes;

 public:
  AmxConv(Op op, const Conv1dProblem& problem, const AmxPlan& plan, const AmxArgs& args, void* memory)
      : p_(problem), plan_(plan), args_(args), view_(op == Op::kBackwardInput, problem) {
    Scratch scratch{static_cast<char*>(memory)};
    panel_ = scratch.take<uint16_t>(plan.panel_elements);
    rows_ = scratch.take<float>(kAmxDepth * (plan.panel_width + kLanes));
    sums_ = scratch.take<float>(kAmxRows * kAmxRows);
    results_ = scratch.take<float>(kAmxRows * kAmxRows);
    a_step_ = scratch.take<int64_t>(plan.steps);
    largest_ = scratch.take<uint32_t>(plan.batch_block);
  }

  // Work units: the row tiles of the pass. Their weights are [tile][half of its rows][step][piece][row][product].
  void pack_weights(int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tile = args_.first_tile + unit, group = tile / plan_.row_tiles;
      const int64_t row = tile % plan_.row_tiles * kAmxRows;
      const Storage* weight = static_cast<const Storage*>(args_.operands.weight) +
                              group * (p_.out_channels / p_.groups) * p_.weight.out_channel;
      Largest largest;
      for (int64_t half = 0; half < 2 && row + half * kAmxSide < view_.rows; ++half) {
        const int64_t first = row + half * kAmxSide, rows = min_of(kAmxSide, view_.rows - first);
        const Storage* from = weight + first * view_.weight_row;
        uint16_t* to = packed_weights(tile) + half * kAmxTile;
        view_.weight_channel < view_.weight_row || view_.channels == 1 ? pack_by_rows(from, rows, to, &largest)
                                                                       : pack_by_products(from, rows, to, &largest);
      }
      for (int64_t n = 0; n < p_.batch && kPieces > 1 && is_tiny(largest.bits()); ++n) raise_alarm(n);
    }
  }

  // Work units: [batch block][position block][row tile of the pass].
  void multiply_blocks(int64_t begin, int64_t end) const {
    _tile_loadconfig(&kAmxConfiguration);
    for (int64_t step = 0; step < plan_.steps; ++step) {
      const int64_t channels = step / plan_.tap_steps, taps = step % plan_.tap_steps;
      a_step_[step] =
          panel_set(taps % plan_.panel_phases, channels) + taps / plan_.panel_phases * plan_.phase_shift * kAmxDepth;
    }
    for (int64_t unit = begin; unit < end;) {
      const int64_t first = args_.first_tile + unit % args_.tile_count, group = first / plan_.row_tiles;
      const int64_t last =
          min_of(min_of(args_.first_tile + args_.tile_count, (group + 1) * plan_.row_tiles), first + (end - unit));
      const Block block = block_at(unit / args_.tile_count, group);
      fill_panel(block);
      for (int64_t tile = first; tile < last; ++tile) compute(block, tile);
      unit += last - first;
    }
    _tile_release();
  }

 private:
  // Positions [t0, t1) of batch items [n0, n1).
  struct Block {
    int64_t n0, n1, group, t0, t1;
    int64_t positions() const { return t1 - t0; }
  };
  Block block_at(int64_t index, int64_t group) const {
    const int64_t n0 = index / plan_.position_blocks * plan_.batch_block, i = index % plan_.position_blocks;
    return {
        n0, min_of(n0 + plan_.batch_block, p_.batch), group,
        block_begin(view_.result_length, kAmxRows, plan_.position_blocks, i),
        block_begin(view_.result_length, kAmxRows, plan_.position_blocks, i + 1)};
  }

  // The channel and the tap, counted from the step's first, of a product of a step; channel -1 where there is none.
  struct Product {
    int64_t channel, tap;
  };
  Product product_at(int64_t channel_step, int64_t index) const {
    if (plan_.step_taps == 1) {
      const int64_t channel = channel_step * kAmxDepth + index;
      return {channel < view_.channels ? channel : -1, 0};
    }
    const int64_t tap = index / view_.channels;
    return {tap < plan_.step_taps ? index % view_.channels : -1, tap};
  }

  uint16_t* packed_weights(int64_t tile) const {
    return static_cast<uint16_t*>(args_.packed_weight) + (tile - args_.first_tile) * plan_.steps * kPieces * kPiece;
  }
  int64_t weight_tap(int64_t tap) const { return (view_.reversed ? p_.kernel_size - 1 - tap : tap) * p_.weight.tap; }

  // from[i * stride] for i < count, then zeros.
  static F32 gather(const Storage* from, int64_t stride, int64_t count) {
    if (stride == 1) return count < kLanes ? load_partial(from, count) : load(from);
    if constexpr (kPieces == 3) {
      const __m512i index = _mm512_mullo_epi32(
          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int32_t(stride)));
      return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), first16(min_of(count, kLanes)), index, from, 4)};
    } else {
      float lanes[kLanes] = {};
      for (int64_t i = 0; i < min_of(count, kLanes); ++i) lanes[i] = widen(from[i * stride]);
      return load(lanes);
    }
  }

  // Along the channels of each row.
  void pack_by_rows(const Storage* weight, int64_t rows, uint16_t* to, Largest* largest) const {
    for (int64_t channel_step = 0; channel_step < plan_.channel_steps; ++channel_step) {
      for (int64_t tap_step = 0; tap_step < plan_.tap_steps; ++tap_step, to += kPieces * kPiece) {
        uint16_t pairs[kPieces][kAmxSide][kAmxDepth];
        for (int64_t row = 0; row < kAmxSide; ++row) {
          F32 halves[2] = {broadcast(0.0f), broadcast(0.0f)};
          const Storage* from = weight + row * view_.weight_row;
          if (row < rows && plan_.step_taps == 1) {
            const int64_t channel = channel_step * kAmxDepth, count = view_.channels - channel;
            from += channel * view_.weight_channel + weight_tap(tap_step);
            halves[0] = gather(from, view_.weight_channel, count);
            if (count > kLanes) {
              halves[1] = gather(from + kLanes * view_.weight_channel, view_.weight_channel, count - kLanes);
            }
          } else if (row < rows) {
            float products[kAmxDepth];
            for (int64_t i = 0; i < kAmxDepth; ++i) {
              const Product product = product_at(channel_step, i);
              const int64_t tap = tap_step * plan_.step_taps + product.tap;
              products[i] = product.channel >= 0 && tap < p_.kernel_size
                                ? widen(from[product.channel * view_.weight_channel + weight_tap(tap)])
                                : 0;
            }
            halves[0] = load(products);
            halves[1] = load(products + kLanes);
          }
          for (int64_t half = 0; half < 2; ++half) {
            F32 pieces[kPieces];
            largest->see(halves[half]);
            take_apart<kPieces>(halves[half], pieces);
            for (int64_t i = 0; i < kPieces; ++i) {
              const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(pieces[i].v), 16);
              _mm256_storeu_si256(
                  reinterpret_cast<__m256i*>(&pairs[i][row][half * kLanes]), _mm512_cvtepi32_epi16(bits));
            }
          }
        }
        for (int64_t i = 0; i < kPieces; ++i) transpose_pairs(pairs[i][0], to + i * kPiece);
      }
    }
  }

  // Along the rows, for weights whose rows are closer together than their channels.
  void pack_by_products(const Storage* weight, int64_t rows, uint16_t* to, Largest* largest) const {
    for (int64_t channel_step = 0; channel_step < plan_.channel_steps; ++channel_step) {
      for (int64_t tap_step = 0; tap_step < plan_.tap_steps; ++tap_step, to += kPieces * kPiece) {
        for (int64_t pair = 0; pair < kAmxDepth / 2; ++pair) {
          F32 pieces[2][kPieces];
          for (int64_t odd = 0; odd < 2; ++odd) {
            const Product product = product_at(channel_step, 2 * pair + odd);
            const int64_t tap = tap_step * plan_.step_taps + product.tap;
            F32 products = broadcast(0.0f);
            if (product.channel >= 0 && tap < p_.kernel_size) {
              products =
                  gather(weight + product.channel * view_.weight_channel + weight_tap(tap), view_.weight_row, rows);
            }
            largest->see(products);
            take_apart<kPieces>(products, pieces[odd]);
          }
          for (int64_t i = 0; i < kPieces; ++i) {
            store(as_floats(to + i * kPiece + pair * kAmxDepth), make_pairs(pieces[0][i], pieces[1][i]));
          }
        }
      }
    }
  }

  static float* as_floats(uint16_t* pairs) { return reinterpret_cast<float*>(pairs); }
  // A tile of pairs, [16][16].
  static void transpose_pairs(const uint16_t* from, uint16_t* to) {
    transpose_exactly(
        reinterpret_cast<const float*>(from), kAmxSide, kAmxSide, kAmxSide, reinterpret_cast<float*>(to), kAmxSide);
  }

  // panel[phase][step of channels][piece][position][product]
  int64_t panel_set(int64_t phase, int64_t channel_step) const {
    return (phase * plan_.channel_steps + channel_step) * kPieces * plan_.panel_piece;
  }

  void fill_panel(const Block& block) const {
    for (int64_t i = 0; i < block.n1 - block.n0; ++i) largest_[i] = 0;
    for (int64_t phase = 0; phase < plan_.panel_phases; ++phase) {
      const int64_t halo = (plan_.tap_steps - 1 - phase) / plan_.panel_phases * plan_.phase_shift;
      for (int64_t step = 0; step < plan_.channel_steps; ++step) {
        fill_set(block, phase, step, block.positions() + halo, panel_ + panel_set(phase, step));
      }
    }
    for (int64_t i = 0; i < block.n1 - block.n0; ++i) {
      if (is_tiny(largest_[i])) raise_alarm(block.n0 + i);
    }
  }

  // `count` positions of each batch item, then zeros: whole tiles are read.
  void fill_set(const Block& block, int64_t phase, int64_t step, int64_t count, uint16_t* to) const {
    for (int64_t n = block.n0; n < block.n1; ++n, to += plan_.item_pitch * kAmxDepth) {
      const int64_t width = n + 1 < block.n1 ? plan_.item_pitch : plan_.panel_width - (n - block.n0) * plan_.item_pitch;
      const float* rows[kAmxDepth];
      for (int64_t i = 0; i < kAmxDepth; ++i) {
        Product product = product_at(step, i);
        product.tap += phase * plan_.step_taps;
        if (product.tap >= p_.kernel_size) product.channel = -1;
        rows[i] = source_positions(block, n, product, count, rows_ + i * (plan_.panel_width + kLanes));
      }
      Largest largest;
      for (int64_t i = 0; i < width; i += kLanes) {
        uint16_t pairs[kPieces][kAmxSide][kAmxDepth];
        for (int64_t pair = 0; pair < kAmxDepth / 2; ++pair) {
          F32 pieces[2][kPieces];
          for (int64_t odd = 0; odd < 2; ++odd) {
            const float* row = rows[2 * pair + odd];
            const F32 x = row == nullptr || i >= count ? broadcast(0.0f)
                          : count - i < kLanes         ? load_partial(row + i, count - i)
                                                       : load(row + i);
            if constexpr (kPieces > 1) largest.see(x);
            take_apart<kPieces>(x, pieces[odd]);
          }
          for (int64_t k = 0; k < kPieces; ++k) {
            store(as_floats(pairs[k][pair]), make_pairs(pieces[0][k], pieces[1][k]));
          }
        }
        for (int64_t k = 0; k < kPieces; ++k) {
          transpose_pairs(pairs[k][0], to + k * plan_.panel_piece + i * kAmxDepth);
        }
      }
      uint32_t& largest_of_item = largest_[n - block.n0];
      if (kPieces > 1 && largest.bits() > largest_of_item) largest_of_item = largest.bits();
    }
  }

  // The positions that a product of steps meets, where they are or in `memory`; null for zeros.
  const float* source_positions(
      const Block& block, int64_t n, const Product& product, int64_t count, float* memory) const {
    if (product.channel < 0) return nullptr;
    const int64_t step = view_.reversed ? 1 : p_.stride;
    const int64_t start = block.t0 * step + product.tap * p_.dilation - view_.left;
    const Row<Storage> row{
        static_cast<const Storage*>(args_.operands.source) + n * view_.source.batch +
            (block.group * view_.channels + product.channel) * view_.source.channel,
        view_.source.position, view_.source_length, view_.padding_mode};
    if constexpr (kPieces == 3) {
      if (step == 1 && row.position_stride == 1 && start >= 0 && start + count <= row.length) return row.data + start;
    }
    const int64_t defined = max_of(0, min_of(count, ceil_div(view_.end - start, step)));
    pack_row<Storage>(row, start, step, defined, count, memory);
    return memory;
  }

  void compute(const Block& block, int64_t tile) const {
    const int64_t row = tile % plan_.row_tiles * kAmxRows, rows = min_of(kAmxRows, view_.rows - row);
    const int64_t columns = (block.n1 - block.n0 - 1) * plan_.item_pitch + block.positions();
    AmxProduct product;
    product.a_piece = plan_.panel_piece;
    product.a_step = a_step_;
    product.b = packed_weights(tile);
    product.steps = plan_.steps;
    product.c = sums_;
    product.c_row = kAmxRows;
    for (int64_t column = 0; column < columns; column += kAmxRows) {
      const int64_t count = min_of(kAmxRows, columns - column);
      product.a = panel_ + column * kAmxDepth;
      multiply_tiles<kPieces>(product, count, rows);
      transpose_exactly(sums_, kAmxRows, round_up(count, kAmxSide), round_up(rows, kSquare<float>), results_, kAmxRows);
      // What of it belongs to which batch item.
      for (int64_t i = column / plan_.item_pitch; i < block.n1 - block.n0; ++i) {
        const int64_t begin = max_of(column, i * plan_.item_pitch);
        const int64_t end = min_of(column + count, i * plan_.item_pitch + block.positions());
        if (begin >= column + count) break;
        if (begin < end) {
          store_results(
              block, block.n0 + i, row, rows, block.t0 + begin - i * plan_.item_pitch, end - begin,
              results_ + begin - column);
        }
      }
    }
  }

  void store_results(
      const Block& block, int64_t n, int64_t row, int64_t rows, int64_t position, int64_t count, float* sums) const {
    const Storage* bias = static_cast<const Storage*>(args_.operands.bias);
    const int64_t channel = block.group * view_.rows + row;
    Storage* to = static_cast<Storage*>(args_.operands.result) + n * view_.result.batch +
                  channel * view_.result.channel + position * view_.result.position;
    F32 seen = broadcast(0.0f);  // 0 times each
    for (int64_t r = 0; r < rows; ++r, sums += kAmxRows, to += view_.result.channel) {
      const F32 add_to = broadcast(bias == nullptr ? 0 : widen(bias[channel + r]));
      for (int64_t i = 0; i < count; i += kLanes) {
        const bool whole = count - i >= kLanes;
        const F32 result = add(whole ? load(sums + i) : load_partial(sums + i, count - i), add_to);
        seen = fma(broadcast(0.0f), result, seen);
        if (view_.result.position != 1) {
          whole ? store(sums + i, result) : store_partial(sums + i, result, count - i);
        } else {
          whole ? store(to + i, result) : store_partial(to + i, result, count - i);
        }
      }
      if (view_.result.position != 1) store_row(p_, sums, count, to, view_.result.position);
    }
    if (sum(seen) != 0) raise_alarm(n);  // not a number is not 0
  }

  void raise_alarm(int64_t n) const { __atomic_store_n(args_.alarms + n, uint8_t{1}, __ATOMIC_RELAXED); }

  const Conv1dProblem& p_;
  const AmxPlan& plan_;
  const AmxArgs& args_;
  const ForwardView view_;
  uint16_t* panel_;
  float *rows_, *sums_, *results_;
  int64_t* a_step_;
  uint32_t* largest_;  // of each batch item of a panel
};

template <class Storage, void (AmxConv<Storage>::*pass)(int64_t, int64_t) const>
void amx_pass(
    Op op, const Conv1dProblem& problem, const AmxPlan& plan, const AmxArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  (AmxConv<Storage>(op, problem, plan, args, scratch).*pass)(begin, end);
}

template <class Storage>
constexpr AmxKernels amx_kernels() {
  return {amx_pass<Storage, &AmxConv<Storage>::pack_weights>, amx_pass<Storage, &AmxConv<Storage>::multiply_blocks>};
}

}  // namespace
}  // namespace conv1d_ext
