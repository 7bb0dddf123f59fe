// backward_weight through the matrix unit, in the terms of amx_plan.h. For blocks of input and output channels, visit
// by visit of positions that lie side by side:
//   panel[phase of taps][piece][input channel][position]           as they lie: a tap is another place to begin
//   grads[tile pair][step][piece][tile][pair of positions][output channel]
//   sums[pair of out tiles][pair of in tiles][tap][input channel][output channel]   of all visits
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
  AmxWeightGradient(Op /*op*/, const Conv1dProblem& problem, const AmxPlan& plan, const AmxArgs& args, void* memory)
      : p_(problem), plan_(plan), args_(args), view_(false, problem) {
    Scratch scratch{static_cast<char*>(memory)};
    panel_ = scratch.take<uint16_t>(plan.panel_elements);
    grads_ = scratch.take<uint16_t>(plan.grad_elements);
    rows_ = scratch.take<float>(kAmxSide * plan.panel_width);
    sums_ = scratch.take<float>(plan.sum_elements);
    for (float*& visit : visit_sums_) visit = scratch.take<float>(kSums);
    a_step_ = scratch.take<int64_t>(plan.steps);
  }

  // Work units: [chunk of the sum][group][block of output channels][block of input channels].
  void sum_products(int64_t begin, int64_t end) const {
    _tile_loadconfig(&kAmxConfiguration);
    for (int64_t step = 0; step < plan_.steps; ++step) a_step_[step] = step * kAmxDepth;
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

  // So many positions of a row, and zeros up to `width`, of each batch item side by side. start: of the first position,
  // in the row's own; defined: positions beyond are zero.
  const float* side_by_side(
      const Visit& visit, Row<Storage> row, int64_t batch_stride, int64_t start, int64_t step, int64_t defined,
      int64_t width, float* memory) const {
    for (int64_t n = visit.n0; n < visit.n1; ++n) {
      const bool last = n + 1 == visit.n1;
      const int64_t first = (n - visit.n0) * plan_.item_pitch;
      Row<Storage> item = row;
      item.data += n * batch_stride;
      pack_row<Storage>(item, start, step, defined, last ? width - first : plan_.item_pitch, memory + first);
    }
    return memory;
  }

  void fill_panel(const Block& block, const Visit& visit, Largest* largest) const {
    for (int64_t phase = 0; phase < plan_.panel_phases; ++phase) {
      const int64_t halo = (p_.kernel_size - 1 - phase) / plan_.panel_phases * plan_.phase_shift;
      const int64_t start = visit.t0 * p_.stride + phase * p_.dilation - view_.left;
      const int64_t defined = max_of(0, min_of(visit.positions() + halo, ceil_div(view_.end - start, p_.stride)));
      for (int64_t channel = 0; channel < block.in_count; ++channel) {
        const Row<Storage> row{
            static_cast<const Storage*>(args_.operands.source) +
                (block.group * view_.channels + block.in + channel) * view_.source.channel,
            view_.source.position, view_.source_length, view_.padding_mode};
        const float* from =
            side_by_side(visit, row, view_.source.batch, start, p_.stride, defined, plan_.panel_width, rows_);
        uint16_t* to = panel_ + phase * kPieces * plan_.panel_piece + channel * plan_.panel_width;
        for (int64_t i = 0; i < plan_.panel_width; i += kAmxDepth) {
          F32 lower[kPieces], upper[kPieces];
          const F32 a = load(from + i), b = load(from + i + kLanes);
          largest->see(a);
          largest->see(b);
          take_apart<kPieces>(a, lower);
          take_apart<kPieces>(b, upper);
          for (int64_t k = 0; k < kPieces; ++k)
            store(floats(to + k * plan_.panel_piece + i), upper_halves(lower[k], upper[k]));
        }
      }
    }
  }

  void fill_grads(const Block& block, const Visit& visit, Largest* largest) const {
    const int64_t steps = steps_of(visit);
    for (int64_t out = 0; out < block.out_count; out += kAmxSide) {
      const int64_t count = min_of(kAmxSide, block.out_count - out);
      const float* rows[kAmxSide] = {};
      for (int64_t i = 0; i < count; ++i) {
        const Row<Storage> row{
            static_cast<const Storage*>(args_.operands.weight) +
                (block.group * view_.rows + block.out + out + i) * p_.output.channel,
            p_.output.position, p_.out_length, PaddingMode::kZeros};
        rows[i] = side_by_side(
            visit, row, p_.output.batch, visit.t0, 1, visit.positions(), steps * kAmxDepth,
            rows_ + i * plan_.panel_width);
      }
      uint16_t* to = grads_ + out / kAmxRows * plan_.steps * kPieces * kPiece + out % kAmxRows * kAmxDepth;
      for (int64_t step = 0; step < steps; ++step, to += kPieces * kPiece) {
        F32 pairs[kPieces][kAmxSide];
        for (int64_t i = 0; i < kAmxSide; ++i) {
          F32 lower[kPieces], upper[kPieces];
          const float* from = rows[i] + step * kAmxDepth;
          const F32 a = i < count ? load(from) : broadcast(0.0f), b = i < count ? load(from + kLanes) : broadcast(0.0f);
          largest->see(a);
          largest->see(b);
          take_apart<kPieces>(a, lower);
          take_apart<kPieces>(b, upper);
          for (int64_t k = 0; k < kPieces; ++k) pairs[k][i] = upper_halves(lower[k], upper[k]);
        }
        for (int64_t k = 0; k < kPieces; ++k) {
          transpose(pairs[k]);
          for (int64_t i = 0; i < kAmxSide; ++i) store(floats(to + k * kPiece + i * kAmxDepth), pairs[k][i]);
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
    product.a_piece = plan_.panel_piece;
    product.a_row = plan_.panel_width;
    product.a_step = a_step_;
    product.steps = steps_of(visit);
    product.c_row = kAmxRows;
    const float* before = nullptr;
    float* sums = sums_;
    const auto add_before = [&](int part) {
      if (before != nullptr) add_part(before, sums - kSums, part);
    };
    for (int64_t out = 0; out < block.out_count; out += kAmxRows) {
      product.b = grads_ + out / kAmxRows * plan_.steps * kPieces * kPiece;
      for (int64_t in = 0; in < block.in_count; in += kAmxRows) {
        for (int64_t tap = 0; tap < p_.kernel_size; ++tap, sums += kSums) {
          product.a = panel_ + tap % plan_.panel_phases * kPieces * plan_.panel_piece +
                      tap / plan_.panel_phases * plan_.phase_shift + in * plan_.panel_width;
          product.c = first ? sums : before == visit_sums_[0] ? visit_sums_[1] : visit_sums_[0];
          multiply_tiles<kPieces>(product, block.in_count - in, block.out_count - out, add_before);
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

  template <class To>
  void store_results(const Block& block, const WeightStrides& strides, To* results) const {
    F32 seen = broadcast(0.0f);  // 0 times each
    const float* sums = sums_;
    for (int64_t out = 0; out < block.out_count; out += kAmxRows) {
      for (int64_t in = 0; in < block.in_count; in += kAmxRows) {
        for (int64_t tap = 0; tap < p_.kernel_size; ++tap, sums += kSums) {
          for (int64_t tile = 0; tile < 4; ++tile) {
            const int64_t i = in + tile / 2 * kAmxSide, o = out + tile % 2 * kAmxSide;
            const int64_t in_count = min_of(kAmxSide, block.in_count - i), outs = min_of(kAmxSide, block.out_count - o);
            if (in_count <= 0 || outs <= 0) continue;
            F32 square[kAmxSide];
            for (int64_t k = 0; k < kAmxSide; ++k) {
              square[k] = load(sums + (tile / 2 * kAmxSide + k) * kAmxRows + tile % 2 * kAmxSide);
            }
            transpose(square);
            To* to = results + o * strides.out_channel + i * strides.in_channel + tap * strides.tap;
            for (int64_t k = 0; k < outs; ++k, to += strides.out_channel) {
              const F32 row{_mm512_maskz_mov_ps(first16(in_count), square[k].v)};
              seen = fma(broadcast(0.0f), row, seen);
              scatter(row, in_count, to, strides.in_channel);
            }
          }
        }
      }
    }
    if (sum(seen) != 0) raise_alarm();  // not a number is not 0
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
  const AmxArgs& args_;
  const ForwardView view_;
  uint16_t *panel_, *grads_;
  float *rows_, *sums_, *visit_sums_[2];  // visit_sums_: in turn
  int64_t* a_step_;
};

}  // namespace
}  // namespace conv1d_ext
