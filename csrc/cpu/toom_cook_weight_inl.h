// backward_weight through Toom-Cook's algorithm: transformed rows of the input, in the panel (toom_cook_panel_inl.h),
// and of grad_output are multiplied,
//   sums[plane][in_channel, chunk][out_channel]
// over all patches, and transformed back to taps at the end.
#pragma once

namespace conv1d_ext {
namespace {

template <class Transform>
class ToomCookWeightGradient : ToomCookPanel<Transform> {
  using Base = ToomCookPanel<Transform>;
  using Base::kTaps, Base::kPlanes, Base::kOutputs, Base::kLanes, Base::block_at, Base::fill_panel, Base::tap_at,
      Base::is_tap, Base::first_chunk, Base::chunks_of, Base::panel_row, Base::load_lanes, Base::gather, Base::prefetch,
      Base::raise_alarm, Base::p_, Base::plan_, Base::args_, Base::view_, Base::scratch_, Base::panel_, Base::sums_,
      Base::patches_, Base::b_step_;
  using typename Base::Block, typename Base::T;

 public:
  ToomCookWeightGradient(
      Op op, const Conv1dProblem& problem, const ToomCookPlan& plan, const TiledArgs& args, void* memory)
      : Base(op, problem, plan, args, memory) {
    grads_ = scratch_.template take<T>(plan.grad_elements);
    slab_ = scratch_.template take<T>(plan.slab_elements);
    a_step_ = scratch_.template take<int64_t>(plan.step_table);
    row_offset_ = scratch_.template take<int64_t>(plan.row_table);
  }

  // Work units: [chunk of the sum][group][block of output channels][block of input channels].
  void sum_products(int64_t begin, int64_t end) const {
    const int64_t out_blocks = ceil_div(view_.rows, plan_.out_block);
    const int64_t channel_blocks = ceil_div(view_.channels, plan_.channel_block);
    // Lanes beyond the last output channel are computed and not stored; they need only hold numbers.
    for (int64_t i = 0; i < kOutputs * plan_.patch_width * kLanes; ++i) slab_[i] = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
      WeightBlock block;
      block.ic0 = unit % channel_blocks * plan_.channel_block;
      block.ic1 = min_of(block.ic0 + plan_.channel_block, view_.channels);
      const int64_t rest = unit / channel_blocks;
      block.oc0 = rest % out_blocks * plan_.out_block;
      block.oc1 = min_of(block.oc0 + plan_.out_block, view_.rows);
      block.columns = round_up(block.oc1 - block.oc0, kLanes);
      block.group = rest / out_blocks % p_.groups;
      const int64_t chunk = rest / out_blocks / p_.groups;
      const int64_t blocks = ceil_div(p_.batch, plan_.batch_block) * plan_.patch_blocks;
      const int64_t from = part_begin(blocks, plan_.reduction_chunks, chunk);
      for (int64_t i = from; i < part_begin(blocks, plan_.reduction_chunks, chunk + 1); ++i) {
        const Block patches = block_at(i, block.group);
        fill_panel(patches, block.ic0, block.ic1);
        fill_grads(patches, block);
        add_products(patches, block, i == from);
      }
      store_taps(block, chunk);
    }
  }

 private:
  // A block of weights, all of one group. `columns`: output channels in whole vectors.
  struct WeightBlock {
    int64_t group, oc0, oc1, ic0, ic1, columns;
  };

  // grads[plane][item, patch][out_channel]: transposed a vector of output channels at a time, then transformed.
  void fill_grads(const Block& block, const WeightBlock& weights) const {
    const int64_t pitch = plan_.patch_width, plane = (block.n1 - block.n0) * block.patches() * weights.columns;
    for (int64_t oc = weights.oc0; oc < weights.oc1; oc += kLanes) {
      for (int64_t n = block.n0; n < block.n1; ++n) {
        const int64_t rows = min_of(kLanes, weights.oc1 - oc);
        for (int64_t r = 0; r < rows; ++r) {
          const T* data = static_cast<const T*>(args_.operands.weight) + n * p_.output.batch +
                          (weights.group * view_.rows + oc + r) * p_.output.channel;
          if (p_.output.position == 1 && oc + r + kLanes < weights.oc1) {
            prefetch(
                data + kLanes * p_.output.channel, kOutputs * block.u0, min_of(kOutputs * block.u1, p_.out_length));
          }
          const T* patches[kOutputs];
          gather(
              {data, p_.output.position, p_.out_length, PaddingMode::kZeros}, 0, p_.out_length, block.u0,
              block.patches(), patches_ + r * kOutputs * pitch, patches);
        }
        for (int64_t j = 0; j < kOutputs; ++j) {
          transpose(patches_ + j * pitch, kOutputs * pitch, rows, block.patches(), slab_ + j * pitch * kLanes, kLanes);
        }
        T* to = grads_ + (n - block.n0) * block.patches() * weights.columns + oc - weights.oc0;
        for (int64_t u = 0; u < block.patches(); ++u, to += weights.columns) {
          Vec<T> in[kOutputs], out[kPlanes];
#pragma GCC unroll 4
          for (int j = 0; j < kOutputs; ++j) in[j] = load(slab_ + (j * pitch + u) * kLanes);
          Transform::transform_grad(in, out);
#pragma GCC unroll 16
          for (int p = 0; p < kPlanes; ++p) store(to + p * plane, out[p]);
        }
      }
    }
  }

  // sums[plane][in_channel, chunk][out_channel] += the products of panel and grads; `first`: = instead of +=.
  void add_products(const Block& block, const WeightBlock& weights, bool first) const {
    const int64_t channels = weights.ic1 - weights.ic0, columns = weights.columns;
    const int64_t steps = (block.n1 - block.n0) * block.patches();
    // Of planes with all chunks, and of those without the first.
    int64_t *all_rows = row_offset_, *other_rows = row_offset_ + channels * plan_.chunks;
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
        const int64_t offset = channel * panel_row() + chunk * p_.dilation;
        *all_rows++ = offset;
        if (chunk > 0) *other_rows++ = offset;
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      a_step_[step] = step / block.patches() * plan_.item_pitch + step % block.patches();
      b_step_[step] = step * columns;
    }
    const T zeros[kTileRows] = {};
    Tile<T> tile{};
    tile.c_row = columns;
    const int64_t vectors = columns / kLanes, column_tiles = ceil_div(vectors, max_vectors(kTileRows));
    const int64_t parts = ceil_div(steps, plan_.reduction_block);
    for (int plane = 0; plane < kPlanes; ++plane) {
      const int64_t rows = channels * chunks_of(plane), row_tiles = ceil_div(rows, kTileRows);
      const int64_t* row_offset = row_offset_ + first_chunk(plane) * channels * plan_.chunks;
      tile.a = panel_ + plane * plan_.panel_width;
      for (int64_t j = 0; j < column_tiles; ++j) {
        const int64_t column = part_begin(vectors, column_tiles, j) * kLanes;
        tile.b = grads_ + plane * steps * columns + column;
        tile.columns = part_begin(vectors, column_tiles, j + 1) * kLanes - column;
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t step = part_begin(steps, parts, part);
          tile.a_step = a_step_ + step;
          tile.b_step = b_step_ + step;
          tile.steps = part_begin(steps, parts, part + 1) - step;
          tile.init = first && part == 0 ? zeros : nullptr;
          for (int64_t i = 0; i < row_tiles; ++i) {
            const int64_t row = part_begin(rows, row_tiles, i);
            tile.a_row = row_offset + row;
            tile.c = sums_ + (plane * channels * plan_.chunks + row) * columns + column;
            run_rows<T, false, 1>(tile, part_begin(rows, row_tiles, i + 1) - row);
          }
        }
      }
    }
  }

  // sums to the weights' own order, or to the chunk's partial sums in the standard one.
  void store_taps(const WeightBlock& block, int64_t chunk) const {
    const int64_t taps = p_.kernel_size, columns = block.columns, rows = (block.ic1 - block.ic0) * plan_.chunks;
    const int64_t out_channel = block.group * view_.rows + block.oc0, outs = block.oc1 - block.oc0;
    const bool partial = plan_.reduction_chunks > 1;
    const WeightStrides stride = partial ? WeightStrides{view_.channels * taps, taps, 1} : p_.weight;
    T* result = static_cast<T*>(partial ? args_.partial_sums : args_.operands.result) +
                (partial ? chunk * p_.out_channels * stride.out_channel : 0) + out_channel * stride.out_channel +
                block.ic0 * stride.in_channel;
    const int64_t step = max_of(1, kTapStep / taps);
    Vec<T> seen = broadcast(T{0});
    for (int64_t ic = block.ic0; ic < block.ic1; ic += step) {
      const int64_t count = min_of(step, block.ic1 - ic);
      // panel[in_channel, tap][out_channel]
      for (int64_t row = (ic - block.ic0) * plan_.chunks; row < (ic + count - block.ic0) * plan_.chunks; ++row) {
        const int64_t channel = row / plan_.chunks, chunk = row % plan_.chunks;
        T* to = panel_ + (channel - (ic - block.ic0)) * taps * columns;
        for (int64_t column = 0; column < columns; column += kLanes) {
          Vec<T> in[kPlanes], w[kTaps];
#pragma GCC unroll 16
          for (int p = 0; p < kPlanes; ++p) {
            const int64_t index = p * rows + channel * chunks_of(p) + chunk - first_chunk(p);
            in[p] = chunk < first_chunk(p) ? broadcast(T{0}) : load(sums_ + index * columns + column);
          }
          Transform::invert_taps(in, w);
#pragma GCC unroll 8
          for (int t = 0; t < kTaps; ++t) {
            const int64_t tap = tap_at(chunk, t);
            if (is_tap(tap)) store(to + tap * columns + column, w[t]);
          }
        }
      }
      for (int64_t row = 0; row < count * taps; ++row) {
        for (int64_t oc = 0; oc < outs; oc += kLanes) {
          seen = fma(broadcast(T{0}), load_lanes(panel_ + row * columns + oc, min_of(kLanes, outs - oc)), seen);
        }
      }
      T* dst = result + (ic - block.ic0) * stride.in_channel;
      if (stride.tap == 1 && stride.in_channel == taps) {
        transpose_exactly(panel_, columns, count * taps, outs, dst, stride.out_channel);
      } else {
        for (int64_t oc = 0; oc < outs; ++oc) {
          for (int64_t i = 0; i < count * taps; ++i) {
            dst[oc * stride.out_channel + i / taps * stride.in_channel + i % taps * stride.tap] =
                panel_[i * columns + oc];
          }
        }
      }
    }
    if (sum(seen) != 0) raise_alarm(0);  // not a number is not 0
  }

  T *grads_, *slab_;
  int64_t *a_step_, *row_offset_;
};

}  // namespace
}  // namespace conv1d_ext
