// backward_weight through the matrix unit, in the terms of amx_plan.h. For blocks of input and output channels, visit
// by visit of positions that lie side by side:
//   grads[pair of tiles][step][piece][tile][output channel][position]
//   panel[phase of taps][parity][piece][tile][pair of positions][input channel]
//   sums[pair of tiles of output channels][the same of input channels][tap][output channel][input channel]
// Pairs begin at the even positions and, in another copy, at the odd ones: a tap of either is another pair to begin at.
//
// Alarms as in amx_conv_inl.h; there is one.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
class AmxWeightGradient {
  static constexpr int kPieces = kAmxPieces<Storage>;
  static constexpr int64_t kPiece = 2 * kAmxTile, kLanes = F32::kLanes, kSums = kAmxRows * kAmxRows;

 public:
  AmxWeightGradient(Op /*op*/, const Conv1dProblem& problem, const AmxPlan& plan, const TiledArgs& args, void* memory)
      : p_(problem), plan_(plan), args_(args), view_(false, problem) {
    Scratch scratch{static_cast<char*>(memory)};
    panel_ = scratch.take<uint16_t>(plan.panel_elements);
    grads_ = scratch.take<uint16_t>(plan.grad_elements);
    rows_ = scratch.take<float>(kAmxSide * (plan.panel_width + kAmxDepth));
    sums_ = scratch.take<float>(plan.sum_elements);
    for (float*& visit : visit_sums_) visit = scratch.take<float>(kSums);
    a_step_ = scratch.take<int64_t>(plan.steps);
  }

  // Work units: [chunk of the sum][group][block of output channels][block of input channels].
  void sum_products(int64_t begin, int64_t end) const {
    _tile_loadconfig(&kAmxConfiguration);
    for (int64_t step = 0; step < plan_.steps; ++step) a_step_[step] = step * kPieces * kPiece;
    const int64_t in_blocks = ceil_div(view_.channels, plan_.in_block);
    const int64_t out_blocks = ceil_div(view_.rows, plan_.out_block);
    for (int64_t unit = begin; unit < end; ++unit) {
      Block block;
      int64_t index = unit;
      block.in = index % in_blocks * plan_.in_block;
      block.in_count = min_of(plan_.in_block, view_.channels - block.in);
      index /= in_blocks;
      block.out = index % out_blocks * plan_.out_block;
      block.out_count = min_of(plan_.out_block, view_.rows - block.out);
      index /= out_blocks;
      block.group = index % p_.groups;
      compute(block, index / p_.groups);
    }
    _tile_release();
  }

 private:
  struct Block {
    int64_t group, in, in_count, out, out_count;  // channels of the group
  };
  // Positions [t0, t1) of batch items [n0, n1).
  struct Visit {
    int64_t n0, n1, t0, t1;
    int64_t positions() const { return t1 - t0; }
  };
  Visit visit_at(int64_t index) const {
    const int64_t n0 = index / plan_.position_blocks * plan_.batch_block, i = index % plan_.position_blocks;
    return {
        n0, min_of(n0 + plan_.batch_block, p_.batch), block_begin(p_.out_length, kAmxDepth, plan_.position_blocks, i),
        block_begin(p_.out_length, kAmxDepth, plan_.position_blocks, i + 1)};
  }

  void compute(const Block& block, int64_t chunk) const {
    const int64_t visits = ceil_div(p_.batch, plan_.batch_block) * plan_.position_blocks;
    const int64_t first = part_begin(visits, plan_.reduction_chunks, chunk);
    const int64_t last = part_begin(visits, plan_.reduction_chunks, chunk + 1);
    Largest inputs, grads;
    for (int64_t index = first; index < last; ++index) {
      const Visit visit = visit_at(index);
      fill_panel(block, visit, &inputs);
      fill_grads(block, visit, &grads);
      multiply(block, visit, index == first);
    }
    if (kPieces > 1 && (is_tiny(inputs.bits()) || is_tiny(grads.bits()))) raise_alarm();
    store_results(block, chunk);
  }

  // Rows of channels of a block, as a visit meets them in each batch item: `defined` positions from `start` on, every
  // step-th, then zeros.
  struct Source {
    const void* data;
    TensorStrides strides;
    int64_t channel, channels;  // the first one, and how many
    int64_t length;
    PaddingMode padding_mode;
    int64_t start, step, defined;

    Row<Storage> row(int64_t n, int64_t index) const {
      const Storage* first = static_cast<const Storage*>(data) + n * strides.batch;
      return {first + (channel + index) * strides.channel, strides.position, length, padding_mode};
    }
  };

  // 16 rows, or as many as there are, of all items side by side.
  struct Rows {
    const float* data[kAmxSide];
    int64_t count;
    int64_t width;  // beyond are zeros

    F32 load_at(int64_t row, int64_t position) const {
      const int64_t there = row < count ? width - position : 0;
      return there >= kLanes ? load(data[row] + position)
             : there > 0     ? load_partial(data[row] + position, there)
                             : broadcast(0.0f);
    }
  };

  // The rows from one on, where they lie or copied, for so many positions; and the next ones are fetched.
  Rows rows_at(const Visit& visit, const Source& source, int64_t first, int64_t width) const {
    Rows rows;
    rows.count = min_of(kAmxSide, source.channels - first);
    const bool lie_there = kStoredAsComputed<Storage> && visit.n1 - visit.n0 == 1 && source.strides.position == 1 &&
                           source.step == 1 && source.start >= 0 && source.start + source.defined <= source.length;
    rows.width = lie_there ? source.defined : width;
    for (int64_t i = 0; i < rows.count; ++i) {
      if constexpr (kStoredAsComputed<Storage>) {
        rows.data[i] = source.row(visit.n0, first + i).data + source.start;
        if (lie_there) continue;
      }
      float* memory = rows_ + i * (plan_.panel_width + kAmxDepth);
      rows.data[i] = memory;
      for (int64_t n = visit.n0; n < visit.n1; ++n) {
        const int64_t from = (n - visit.n0) * plan_.item_pitch;
        const int64_t count = n + 1 == visit.n1 ? width - from : plan_.item_pitch;
        pack_row<Storage>(source.row(n, first + i), source.start, source.step, source.defined, count, memory + from);
      }
    }
    for (int64_t i = first + kAmxSide; i < min_of(first + 2 * kAmxSide, source.channels); ++i) {
      for (int64_t n = visit.n0; n < visit.n1; ++n) prefetch(source, source.row(n, i));
    }
    return rows;
  }
  static void prefetch(const Source& source, const Row<Storage>& row) {
    constexpr int64_t kLine = 64 / sizeof(Storage);
    if (row.position_stride != 1) return;
    const int64_t end = min_of(row.length, source.start + source.defined * source.step);
    for (int64_t i = max_of(0, source.start); i < end; i += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(row.data + i), _MM_HINT_T0);
    }
  }

  // The pieces of 32 positions of a row.
  static void take_step_apart(
      const Rows& rows, int64_t row, int64_t position, Largest* largest, F32 (&pieces)[kPieces]) {
    F32 lower[kPieces], upper[kPieces];
    const F32 a = rows.load_at(row, position), b = rows.load_at(row, position + kLanes);
    largest->see(a);
    largest->see(b);
    take_apart<kPieces>(a, lower);
    take_apart<kPieces>(b, upper);
    for (int64_t k = 0; k < kPieces; ++k) pieces[k] = upper_halves(lower[k], upper[k]);
  }

  void fill_panel(const Block& block, const Visit& visit, Largest* largest) const {
    for (int64_t phase = 0; phase < plan_.panel_phases; ++phase) {
      const int64_t halo = (p_.kernel_size - 1 - phase) / plan_.panel_phases * plan_.phase_shift;
      const int64_t start = visit.t0 * p_.stride + phase * p_.dilation - view_.left;
      const int64_t defined = max_of(0, min_of(visit.positions() + halo, ceil_div(view_.end - start, p_.stride)));
      const Source source{
          args_.operands.source,
          view_.source,
          block.group * view_.channels + block.in,
          block.in_count,
          view_.source_length,
          view_.padding_mode,
          start,
          p_.stride,
          defined};
      for (int64_t channel = 0; channel < block.in_count; channel += kAmxSide) {
        const Rows rows = rows_at(visit, source, channel, plan_.panel_width + kAmxDepth);
        for (int64_t parity = 0; parity < (halo == 0 ? 1 : plan_.parities); ++parity) {
          uint16_t* to = panel_at(phase, parity) + channel * plan_.panel_width;
          for (int64_t i = 0; i < plan_.panel_width; i += kAmxDepth, to += kAmxTile) {
            F32 pairs[kPieces][kAmxSide];
            for (int64_t row = 0; row < kAmxSide; ++row) {
              F32 pieces[kPieces];
              take_step_apart(rows, row, i + parity, largest, pieces);
              for (int64_t k = 0; k < kPieces; ++k) pairs[k][row] = pieces[k];
            }
            for (int64_t k = 0; k < kPieces; ++k) {
              transpose(pairs[k]);
              uint16_t* tile = to + k * plan_.panel_piece;
              for (int64_t row = 0; row < kAmxSide; ++row) store(floats(tile + row * kAmxDepth), pairs[k][row]);
            }
          }
        }
      }
    }
  }
  uint16_t* panel_at(int64_t phase, int64_t parity) const {
    return panel_ + (phase * plan_.parities + parity) * kPieces * plan_.panel_piece;
  }

  void fill_grads(const Block& block, const Visit& visit, Largest* largest) const {
    const int64_t steps = steps_of(visit);
    const Source source{
        args_.operands.weight,
        p_.output,
        block.group * view_.rows + block.out,
        block.out_count,
        p_.out_length,
        PaddingMode::kZeros,
        visit.t0,
        1,
        visit.positions()};
    for (int64_t out = 0; out < block.out_count; out += kAmxSide) {
      const Rows rows = rows_at(visit, source, out, steps * kAmxDepth);
      uint16_t* to = grads_ + out / kAmxRows * plan_.steps * kPieces * kPiece + out % kAmxRows * kAmxDepth;
      for (int64_t step = 0; step < steps; ++step, to += kPieces * kPiece) {
        for (int64_t row = 0; row < rows.count; ++row) {
          F32 pieces[kPieces];
          take_step_apart(rows, row, step * kAmxDepth, largest, pieces);
          for (int64_t k = 0; k < kPieces; ++k) store(floats(to + k * kPiece + row * kAmxDepth), pieces[k]);
        }
      }
    }
  }

  static float* floats(uint16_t* pairs) { return reinterpret_cast<float*>(pairs); }

  int64_t steps_of(const Visit& visit) const {
    return ceil_div((visit.n1 - visit.n0 - 1) * plan_.item_pitch + visit.positions(), kAmxDepth);
  }

  // Adds the products of a visit to the sums, while the next ones are computed.
  void multiply(const Block& block, const Visit& visit, bool first) const {
    AmxProduct product;
    product.a_tile = kAmxTile;
    product.a_piece = kPiece;
    product.a_step = a_step_;
    product.b_tile = kAmxSide * plan_.panel_width;
    product.b_piece = plan_.panel_piece;
    product.b_step = kAmxTile;
    product.steps = steps_of(visit);
    product.c_row = kAmxRows;
    int turn = 0;
    const float* before = nullptr;
    float* sums = sums_;
    const auto add_before = [&](int part) {
      if (before != nullptr) add_part(before, sums - kSums, part);
    };
    for (int64_t out = 0; out < block.out_count; out += kAmxRows) {
      product.a = grads_ + out / kAmxRows * plan_.steps * kPieces * kPiece;
      for (int64_t in = 0; in < block.in_count; in += kAmxRows) {
        for (int64_t tap = 0; tap < p_.kernel_size; ++tap, sums += kSums) {
          const int64_t shift = tap / plan_.panel_phases * plan_.phase_shift;
          product.b = panel_at(tap % plan_.panel_phases, shift % plan_.parities) + in * plan_.panel_width +
                      shift / 2 * kAmxDepth;
          turn = 1 - turn;
          product.c = first ? sums : visit_sums_[turn];
          multiply_tiles<kPieces>(product, block.out_count - out, block.in_count - in, add_before);
          before = first ? nullptr : product.c;
        }
      }
    }
    for (int part = 0; part < kAmxParts; ++part) add_before(part);
  }

  static void add_part(const float* from, float* to, int part) {
    const int64_t offset = part * (kSums / kAmxParts);
    for (int64_t i = offset; i < offset + kSums / kAmxParts; i += kLanes) {
      store(to + i, add(load(to + i), load(from + i)));
    }
  }

  // To the weights' own order, or to the chunk's partial sums in the standard one.
  void store_results(const Block& block, int64_t chunk) const {
    const int64_t channel = block.group * view_.rows + block.out;
    if (plan_.reduction_chunks > 1) {
      const WeightStrides strides{view_.channels * p_.kernel_size, p_.kernel_size, 1};
      store_results(
          block, strides,
          static_cast<float*>(args_.partial_sums) + (chunk * p_.out_channels + channel) * strides.out_channel +
              block.in * strides.in_channel);
    } else {
      store_results(
          block, p_.weight,
          static_cast<Storage*>(args_.operands.result) + channel * p_.weight.out_channel +
              block.in * p_.weight.in_channel);
    }
  }

  // How 16 channels of each tap become the weights of 16 channels in their order: lane l of vector v is that of channel
  // (16 v + l) / taps and tap (16 v + l) % taps.
  struct Order {
    // As many permutations as elements. (128->128 channels, k 16: 1.2 times as fast as by elements, bfloat16 1.5
    // times.)
    static constexpr int64_t kMostTaps = 16;
    __m512i channel[kMostTaps];
    __mmask16 is_of_tap[kMostTaps][kMostTaps];

    explicit Order(int64_t taps) {
      for (int64_t v = 0; v < taps; ++v) {
        int32_t channels[kLanes];
        for (int64_t tap = 0; tap < taps; ++tap) is_of_tap[v][tap] = 0;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          channels[lane] = int32_t((v * kLanes + lane) / taps);
          is_of_tap[v][(v * kLanes + lane) % taps] |= __mmask16(1 << lane);
        }
        channel[v] = _mm512_loadu_si512(channels);
      }
    }
  };

  template <class To>
  void store_results(const Block& block, const WeightStrides& strides, To* results) const {
    const int64_t taps = p_.kernel_size;
    const bool in_order = strides.tap == 1 && strides.in_channel == taps && taps > 1 && taps <= Order::kMostTaps;
    const Order order(in_order ? taps : 0);
    F32 seen = broadcast(0.0f);  // 0 times each
    const float* sums = sums_;
    for (int64_t out = 0; out < block.out_count; out += kAmxRows) {
      for (int64_t in = 0; in < block.in_count; in += kAmxRows, sums += taps * kSums) {
        for (int64_t tile = 0; tile < 4; ++tile) {
          const int64_t o = out + tile / 2 * kAmxSide, i = in + tile % 2 * kAmxSide;
          const int64_t in_count = min_of(kAmxSide, block.in_count - i), outs = min_of(kAmxSide, block.out_count - o);
          if (in_count <= 0 || outs <= 0) continue;
          const float* from = sums + tile / 2 * kAmxSide * kAmxRows + tile % 2 * kAmxSide;
          To* to = results + o * strides.out_channel + i * strides.in_channel;
          if (in_order) {
            for (int64_t k = 0; k < outs; ++k) {
              store_in_order(order, from + k * kAmxRows, in_count, to + k * strides.out_channel, &seen);
            }
            continue;
          }
          for (int64_t tap = 0; tap < taps; ++tap) {
            for (int64_t k = 0; k < outs; ++k) {
              const F32 row = load_row(from + tap * kSums + k * kAmxRows, in_count, &seen);
              scatter(row, in_count, to + tap * strides.tap + k * strides.out_channel, strides.in_channel);
            }
          }
        }
      }
    }
    if (sum(seen) != 0) raise_alarm();  // not a number is not 0
  }

  // Also adds 0 times the row to `seen`.
  static F32 load_row(const float* from, int64_t count, F32* seen) {
    const F32 row = count == kLanes ? load(from) : load_partial(from, count);
    *seen = fma(broadcast(0.0f), row, *seen);
    return row;
  }

  template <class To>
  void store_in_order(const Order& order, const float* from, int64_t in_count, To* to, F32* seen) const {
    const int64_t taps = p_.kernel_size, count = in_count * taps;
    F32 rows[Order::kMostTaps];
    for (int64_t tap = 0; tap < taps; ++tap) rows[tap] = load_row(from + tap * kSums, in_count, seen);
    for (int64_t v = 0; v * kLanes < count; ++v) {
      F32 x = broadcast(0.0f);
      for (int64_t tap = 0; tap < taps; ++tap) {
        x.v = _mm512_mask_permutexvar_ps(x.v, order.is_of_tap[v][tap], order.channel[v], rows[tap].v);
      }
      const int64_t left = count - v * kLanes;
      left >= kLanes ? store(to + v * kLanes, x) : store_partial(to + v * kLanes, x, left);
    }
  }

  template <class To>
  static void scatter(F32 row, int64_t count, To* to, int64_t stride) {
    if (stride == 1) return count == kLanes ? store(to, row) : store_partial(to, row, count);
    float lanes[kLanes];
    store(lanes, row);
    for (int64_t i = 0; i < count; ++i) narrow(lanes[i], to + i * stride);
  }

  void raise_alarm() const { __atomic_store_n(args_.alarms, uint8_t{1}, __ATOMIC_RELAXED); }

  const Conv1dProblem& p_;
  const AmxPlan& plan_;
  const TiledArgs& args_;
  const ForwardView view_;
  uint16_t *panel_, *grads_;
  float *rows_, *sums_, *visit_sums_[2];  // visit_sums_: in turn
  int64_t* a_step_;
};

}  // namespace
}  // namespace conv1d_ext
