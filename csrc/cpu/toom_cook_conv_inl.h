// Convolution through Toom-Cook's algorithm, in the terms of toom_cook_plan.h. forward and backward_input, which is a
// forward pass of grad_output with the taps in reverse, are two passes: transformed weights, then blocks of rows:
//   panel[channel][plane][quad]  transformed,
//   sums[row][plane][quad]       by the register tile, transformed back and stored.
// backward_weight multiplies transformed rows of the input and of grad_output, summed up over quads, and transforms
// back to taps at the end.
//
// As with the Fourier transform, a number that is not finite spoils its neighbours: kernels set the alarm of its batch
// item (backward_weight: the only one), which the direct kernels then compute again.
#pragma once

namespace conv1d_ext {
namespace {

template <int kTaps>
class ToomCookConv {
  using T = float;
  using Transform = ToomCook<kTaps>;
  static constexpr int kPlanes = Transform::kPlanes, kOutputs = kToomCookOutputs;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

 public:
  ToomCookConv(Op op, const Conv1dProblem& problem, const ToomCookPlan& plan, const ToomCookArgs& args, void* memory)
      : p_(problem), plan_(plan), args_(args), view_(op == Op::kBackwardInput, problem) {
    Scratch scratch{static_cast<char*>(memory)};
    panel_ = scratch.take<T>(plan.panel_elements);
    sums_ = scratch.take<T>(plan.sum_elements);
    grads_ = scratch.take<T>(plan.grad_elements);
    line_ = scratch.take<T>(plan.line_elements);
    quads_ = scratch.take<T>(plan.gathered_rows * plan.quad_width);
    slab_ = scratch.take<T>(plan.slab_elements);
    a_step_ = scratch.take<int64_t>(plan.step_table);
    b_step_ = scratch.take<int64_t>(plan.step_table);
    row_offset_ = scratch.take<int64_t>(plan.row_table);
  }

  // Work units: the row tiles of the pass. Their weights are [tile][plane][channel][chunk][row].
  void transform_weights(int64_t begin, int64_t end) const {
    const int64_t step = max_of(1, kTapStep / p_.kernel_size);
    for (int64_t unit = begin; unit < end;) {
      // Where the rows of a channel lie side by side, a tile's are a short piece of memory, and several are taken at a
      // time.
      const int64_t most = view_.weight_row < view_.weight_channel ? kMostPackTiles : 1;
      const int64_t first = args_.first_tile + unit, group = row_tile(first).group;
      const int64_t tiles = min_of(most, min_of(end - unit, (group + 1) * plan_.row_tiles - first));
      WeightTile weights[kMostPackTiles];
      for (int64_t i = 0; i < tiles; ++i) {
        const RowTile tile = row_tile(first + i);
        weights[i].rows = tile.rows;
        for (int64_t r = 0; r < tile.rows; ++r) weights[i].row_offset[r] = (tile.first + r) * view_.weight_row;
      }
      const int64_t pitch = step * p_.kernel_size * kTileRows + kPackSlack;
      for (int64_t channel = 0; channel < view_.channels; channel += step) {
        const int64_t count = min_of(step, view_.channels - channel);
        const T* weight =
            static_cast<const T*>(args_.operands.weight) + group_weight(group) + channel * view_.weight_channel;
        pack_weight(
            weight, weights, tiles, {count, view_.weight_channel, p_.kernel_size, p_.weight.tap}, panel_, pitch);
        for (int64_t i = 0; i < tiles; ++i) {
          const RowTile tile = row_tile(first + i);
          const int64_t plane = view_.channels * plan_.chunks * tile.rows;
          T* to = packed_weights(tile) + channel * plan_.chunks * tile.rows;
          for (int64_t j = 0; j < count; ++j) {
            const T* taps = panel_ + i * pitch + j * p_.kernel_size * tile.rows;
            for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk, to += tile.rows) {
              transform_chunk(taps, chunk, tile.rows, to, plane);
            }
          }
        }
      }
      unit += tiles;
    }
  }

  // Work units: [batch block][quad block][row tile of the pass].
  void multiply_blocks(int64_t begin, int64_t end) const {
    const int64_t channels = min_of(plan_.channel_block, plan_.part_channels), taps = plan_.chunks;
    for (int64_t channel = 0, step = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < taps; ++tap) b_step_[step++] = channel * panel_channel() + tap * p_.dilation;
    }
    for (int64_t unit = begin; unit < end;) {
      const int64_t block = unit / args_.tile_count, first = args_.first_tile + unit % args_.tile_count;
      const int64_t group = first / plan_.row_tiles;
      const int64_t last =
          min_of(min_of(args_.first_tile + args_.tile_count, (group + 1) * plan_.row_tiles), first + (end - unit));
      compute(block_at(block, group), block_at(min_of(block + 1, plan_.units - 1), group), first, last);
      unit += last - first;
    }
  }

  // backward_weight: work units [chunk of the sum][group][block of output channels][block of input channels].
  void sum_products(int64_t begin, int64_t end) const {
    const int64_t out_blocks = ceil_div(view_.rows, plan_.out_block);
    const int64_t channel_blocks = ceil_div(view_.channels, plan_.channel_block);
    // Lanes beyond the last output channel are computed and not stored; they need only hold numbers.
    for (int64_t i = 0; i < kOutputs * plan_.quad_width * kLanes; ++i) slab_[i] = 0;
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
      const int64_t blocks = ceil_div(p_.batch, plan_.batch_block) * plan_.quad_blocks;
      const int64_t from = part_begin(blocks, plan_.reduction_chunks, chunk);
      for (int64_t i = from; i < part_begin(blocks, plan_.reduction_chunks, chunk + 1); ++i) {
        const Block quads = block_at(i, block.group);
        fill_panel(quads, block.ic0, block.ic1);
        fill_grads(quads, block);
        add_products(quads, block, i == from);
      }
      store_taps(block, chunk);
    }
  }

 private:
  // Quads [u0, u1) of batch items [n0, n1).
  struct Block {
    int64_t n0, n1, group, u0, u1;
    int64_t quads() const { return u1 - u0; }
  };
  Block block_at(int64_t index, int64_t group) const {
    Block block;
    block.n0 = index / plan_.quad_blocks * plan_.batch_block;
    block.n1 = min_of(block.n0 + plan_.batch_block, p_.batch);
    block.group = group;
    const int64_t i = index % plan_.quad_blocks;
    block.u0 = block_begin(plan_.quads, plan_.quad_step, plan_.quad_blocks, i);
    block.u1 = block_begin(plan_.quads, plan_.quad_step, plan_.quad_blocks, i + 1);
    return block;
  }

  // The rows of a register tile; `first` in its group.
  struct RowTile {
    int64_t group, first, rows;
  };
  RowTile row_tile(int64_t index) const {
    const int64_t group = index / plan_.row_tiles, tile = index % plan_.row_tiles;
    const int64_t first = part_begin(view_.rows, plan_.row_tiles, tile);
    return {group, first, part_begin(view_.rows, plan_.row_tiles, tile + 1) - first};
  }
  T* packed_weights(const RowTile& tile) const {
    const RowTile start = row_tile(args_.first_tile);
    const int64_t rows = (tile.group - start.group) * view_.rows + tile.first - start.first;
    return static_cast<T*>(args_.packed_weight) + rows * view_.channels * plan_.chunks * kPlanes;
  }

  int64_t group_weight(int64_t group) const { return group * (p_.out_channels / p_.groups) * p_.weight.out_channel; }
  int64_t taps_of(int64_t chunk) const {
    const int64_t rest = p_.kernel_size - 4 * chunk;
    return chunk + 1 < plan_.chunks ? 4 : rest;
  }

  // weight[tap][row] to packed[plane * pitch + row].
  void transform_chunk(const T* weight, int64_t chunk, int64_t rows, T* packed, int64_t pitch) const {
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t lanes = min_of(kLanes, rows - row);
      Vec<T> w[kTaps], out[kPlanes];
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) {
        const int64_t tap = view_.reversed ? p_.kernel_size - 1 - (4 * chunk + t) : 4 * chunk + t;
        w[t] = t < taps_of(chunk) ? load_lanes(weight + tap * rows + row, lanes) : broadcast(T{0});
      }
      Transform::transform_taps(w, out);
#pragma GCC unroll 8
      for (int p = 0; p < kPlanes; ++p) store_lanes(packed + p * pitch + row, out[p], lanes);
    }
  }

  int64_t halo() const { return (plan_.chunks - 1) * p_.dilation; }
  int64_t panel_channel() const { return kPlanes * plan_.panel_width; }

  static Vec<T> load_lanes(const T* from, int64_t lanes) {
    return lanes == kLanes ? load(from) : load_partial(from, lanes);
  }
  static void store_lanes(T* to, Vec<T> value, int64_t lanes) {
    lanes == kLanes ? store(to, value) : store_partial(to, value, lanes);
  }

  // quads[j][i], j < kCount: position u0 + i of a padded row, j dilations on; whole vectors up to i = count. `memory`:
  // kCount rows of plan_.quad_width. `left`: positions before the row's first; none from `end` on are defined.
  template <int kCount>
  void gather(
      const Row<T>& row, int64_t left, int64_t end, int64_t u0, int64_t count, T* memory,
      const T* (&quads)[kCount]) const {
    const int64_t dilation = p_.dilation, pitch = plan_.quad_width;
    if (dilation > kLanes) {
      const int64_t width = round_up(count, kLanes);
      for (int j = 0; j < kCount; ++j) {
        T* to = memory + j * pitch;
        quads[j] = to;
        for_runs(u0, width, [&](int64_t i, int64_t position, int64_t run) {
          const int64_t start = position + j * dilation - left;
          pack_row<T>(row, start, 1, max_of(0, min_of(run, end - start)), run, to + i);
        });
      }
      return;
    }
    // Blocks begin with a whole group of `dilation` quads. The last j read the first ones, a group further on.
    const int64_t width = round_up(count + (kCount > kOutputs ? dilation : 0), dilation == 1 ? kLanes : dilation);
    const T* line = line_at(row, left, end, 4 * u0, 4 * width + kLanes);
    for (int64_t i = 0; i < width && dilation == 1; i += kLanes) {
      Vec<T> out[kOutputs];
      split4(line + 4 * i, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) store(memory + j * pitch + i, out[j]);
    }
    for (int j = 0; j < kOutputs && dilation > 1; ++j) {
      T* to = memory + j * pitch;
      for (int64_t i = 0; i < width; i += dilation) store(to + i, load(line + 4 * i + j * dilation));
    }
    for (int j = 0; j < kCount; ++j) quads[j] = memory + j % kOutputs * pitch + j / kOutputs * dilation;
  }

  // `count` positions of a padded row from `position` on, where they are or in line_; as for gather.
  const T* line_at(const Row<T>& row, int64_t left, int64_t end, int64_t position, int64_t count) const {
    const int64_t start = position - left;
    if (row.position_stride == 1 && start >= 0 && start + count <= row.length) return row.data + start;
    pack_row<T>(row, start, 1, max_of(0, min_of(count, end - start)), count, line_);
    return line_;
  }

  // body(i, position, run) for the runs of `count` quads from u0 on: quads u0 + i .. u0 + i + run begin at positions
  // side by side.
  template <class Body>
  void for_runs(int64_t u0, int64_t count, const Body& body) const {
    for (int64_t i = 0; i < count;) {
      const int64_t rest = (u0 + i) % p_.dilation, run = min_of(p_.dilation - rest, count - i);
      body(i, (u0 + i) / p_.dilation * 4 * p_.dilation + rest, run);
      i += run;
    }
  }

  const T* source_row(const Block& block, int64_t n, int64_t channel) const {
    return static_cast<const T*>(args_.operands.source) + n * view_.source.batch +
           (block.group * view_.channels + channel) * view_.source.channel;
  }

  // A row's positions of a block are too few for the CPU to see those of the next row coming.
  static void prefetch(const T* row, int64_t begin, int64_t end) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = begin; i < end; i += kLine) __builtin_prefetch(row + i);
  }
  void prefetch_source(const Block& block, int64_t channel) const {
    if (view_.source.position != 1) return;
    const int64_t start = 4 * block.u0 - view_.left, end = start + 4 * (block.quads() + halo());
    prefetch(source_row(block, block.n0, channel), max_of(start, 0), min_of(end, view_.source_length));
  }
  void prefetch_result(const Block& block, int64_t row) const {
    if (view_.result.position == 1) {
      prefetch(result_row(block, block.n0, row), 4 * block.u0, min_of(4 * block.u1, view_.result_length));
    }
  }

  void fill_panel(const Block& block, int64_t channel0, int64_t channel1) const {
    const int64_t count = block.quads() + halo();
    for (int64_t channel = channel0; channel < channel1; ++channel) {
      prefetch_source(block, min_of(channel + 2, channel1 - 1));
      T* to = panel_ + (channel - channel0) * panel_channel();
      for (int64_t n = block.n0; n < block.n1; ++n, to += plan_.item_pitch) {
        const Row<T> row{source_row(block, n, channel), view_.source.position, view_.source_length, view_.padding_mode};
        if (p_.dilation == 1) {
          transform_line(
              line_at(row, view_.left, view_.end, 4 * block.u0, 4 * round_up(count, kLanes) + 4 * kLanes), count, to);
          continue;
        }
        const T* quads[kPlanes];
        gather(row, view_.left, view_.end, block.u0, count, quads_, quads);
        for (int64_t i = 0; i < count; i += kLanes) {
          Vec<T> in[kPlanes];
#pragma GCC unroll 8
          for (int j = 0; j < kPlanes; ++j) in[j] = load(quads[j] + i);
          transform_to(in, to + i);
        }
      }
    }
  }

  void transform_to(const Vec<T> (&in)[kPlanes], T* to) const {
    Vec<T> out[kPlanes];
    Transform::transform_source(in, out);
#pragma GCC unroll 8
    for (int p = 0; p < kPlanes; ++p) store(to + p * plan_.panel_width, out[p]);
  }

  // The same for dilation 1, in registers: `count` quads of a line, of which a vector more is read.
  void transform_line(const T* line, int64_t count, T* to) const {
    Vec<T> in[kPlanes], next[kOutputs];
    split4(line, next);
    for (int64_t i = 0; i < count; i += kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) in[j] = next[j];
      split4(line + 4 * (i + kLanes), next);
#pragma GCC unroll 8
      for (int j = kOutputs; j < kPlanes; ++j) in[j] = shift_in(in[j - kOutputs], next[j - kOutputs]);
      transform_to(in, to + i);
    }
  }

  // Row tiles [tile0, tile1) of a block, all of its group.
  void compute(const Block& block, const Block& next, int64_t tile0, int64_t tile1) const {
    const bool whole = plan_.channel_block >= view_.channels;
    if (whole) fill_panel(block, 0, view_.channels);
    // What is computed next is fetched meanwhile, a few rows at a time.
    int64_t fetched = 0;
    const int64_t steps = (tile1 - tile0) * kPlanes, rate = ceil_div(view_.channels, steps);
    const auto fetch = [&](const RowTile& rows, int plane) {
      for (int64_t r = plane; r < rows.rows; r += kPlanes) prefetch_result(block, rows.first + r);
      const int64_t end = min_of(fetched + rate, view_.channels);
      for (; fetched < end; ++fetched) prefetch_source(next, fetched);
    };
    for (int64_t tile = tile0; tile < tile1; tile += plan_.tile_block) {
      const int64_t end = min_of(tile + plan_.tile_block, tile1);
      for (int64_t channel = 0; channel < view_.channels; channel += plan_.channel_block) {
        const int64_t channel_end = min_of(channel + plan_.channel_block, view_.channels);
        if (!whole) fill_panel(block, channel, channel_end);
        for (int64_t i = tile; i < end; ++i) {
          multiply(block, row_tile(i), sums_of(i - tile), channel, channel_end, fetch);
        }
      }
      for (int64_t i = tile; i < end; ++i) store_results(block, row_tile(i), sums_of(i - tile));
    }
  }
  T* sums_of(int64_t tile) const { return sums_ + tile * kTileRows * kPlanes * plan_.sum_width; }

  // Adds channels [channel0, channel1) of the panel to the sums of a tile; after the last ones, transforms them back:
  // sums[row][j][quad] are then the results, j dilations after the first.
  template <class Fetch>
  void multiply(
      const Block& block, const RowTile& rows, T* to, int64_t channel0, int64_t channel1, const Fetch& fetch) const {
    const T zeros[kTileRows] = {};
    const T* weights = packed_weights(rows);
    Tile<T> tile{};
    tile.a_row = tile.a_step = nullptr;  // weights are packed
    tile.b_step = b_step_;
    tile.c_row = kPlanes * plan_.sum_width;
    // By tiles of columns, whose sums for all planes stay in the L1 cache.
    const int64_t columns = (block.n1 - block.n0 - 1) * plan_.item_pitch + block.quads();
    const int64_t vectors = ceil_div(columns, kLanes), tiles = ceil_div(vectors, max_vectors(kTileRows));
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t column = part_begin(vectors, tiles, i) * kLanes;
      tile.columns = min_of(columns, part_begin(vectors, tiles, i + 1) * kLanes) - column;
      for (int plane = 0; plane < kPlanes; ++plane) {
        if (i == 0 && channel1 == view_.channels) fetch(rows, plane);
        tile.c = to + plane * plan_.sum_width + column;
        for (int64_t channel = channel0; channel < channel1; channel += plan_.part_channels) {
          tile.steps = min_of(plan_.part_channels, channel1 - channel) * plan_.chunks;
          tile.a = weights + (plane * view_.channels + channel) * plan_.chunks * rows.rows;
          tile.b = panel_ + (channel - channel0) * panel_channel() + plane * plan_.panel_width + column;
          tile.init = channel == 0 ? zeros : nullptr;
          run_rows<T, true, 1>(tile, rows.rows);
        }
      }
      if (channel1 == view_.channels) invert(block, rows, to + column, tile.columns);
    }
  }

  void invert(const Block& block, const RowTile& rows, T* sums, int64_t columns) const {
    const T* bias = static_cast<const T*>(args_.operands.bias);
    const int64_t plane = plan_.sum_width;
    for (int64_t r = 0; r < rows.rows; ++r, sums += kPlanes * plane) {
      const Vec<T> add_to = broadcast(bias == nullptr ? T{0} : bias[block.group * view_.rows + rows.first + r]);
      for (int64_t i = 0; i < columns; i += kLanes) {
        Vec<T> in[kPlanes], out[kOutputs];
#pragma GCC unroll 8
        for (int p = 0; p < kPlanes; ++p) in[p] = load(sums + p * plane + i);
        Transform::invert(in, out);
#pragma GCC unroll 4
        for (int j = 0; j < kOutputs; ++j) store(sums + j * plane + i, add(out[j], add_to));
      }
    }
  }

  T* result_row(const Block& block, int64_t n, int64_t row) const {
    return static_cast<T*>(args_.operands.result) + n * view_.result.batch +
           (block.group * view_.rows + row) * view_.result.channel;
  }

  void store_results(const Block& block, const RowTile& rows, const T* sums) const {
    for (int64_t r = 0; r < rows.rows; ++r, sums += kPlanes * plan_.sum_width) {
      for (int64_t n = block.n0; n < block.n1; ++n) {
        const T* results = sums + (n - block.n0) * plan_.item_pitch;
        if (!scatter(block, results, result_row(block, n, rows.first + r))) raise_alarm(n);
      }
    }
  }

  // The results of one row to their tensor. False if one is not finite.
  bool scatter(const Block& block, const T* results, T* data) const {
    const int64_t dilation = p_.dilation, pitch = plan_.sum_width, stride = view_.result.position;
    const auto put = [&](const T* from, int64_t position, int64_t count) {
      count = min_of(count, view_.result_length - position);
      if (count > 0) store_row(p_, from, count, data + position * stride, stride);
    };
    const Vec<T> zero = broadcast(T{0});
    Vec<T> seen = zero;  // 0 times each
    const int64_t count = block.quads(), first = 4 * block.u0;
    const bool in_place = dilation == 1 && stride == 1 && first + 4 * round_up(count, kLanes) <= view_.result_length;
    T* to = in_place ? data + first : line_;
    for (int64_t i = 0; i < count; i += kLanes) {
      Vec<T> in[kOutputs], out[kOutputs];
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) {
        in[j] = load_lanes(results + j * pitch + i, min_of(kLanes, count - i));
        seen = fma(zero, in[j], seen);
      }
      if (dilation > 1) continue;
      zip4(in, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) store(to + 4 * i + j * kLanes, out[j]);
    }
    if (dilation > kLanes) {
      for (int64_t j = 0; j < kOutputs; ++j) {
        for_runs(block.u0, count, [&](int64_t i, int64_t position, int64_t run) {
          put(results + j * pitch + i, position + j * dilation, run);
        });
      }
    } else if (dilation > 1) {
      // In the order of positions: what a vector has too much, the next one overwrites.
      for (int64_t i = 0; i < count; i += dilation) {
        for (int64_t j = 0; j < kOutputs; ++j) store(line_ + 4 * i + j * dilation, load(results + j * pitch + i));
      }
    }
    if (dilation <= kLanes && !in_place) put(line_, first, 4 * count);
    return sum(seen) == 0;  // not a number is not 0
  }

  // Numbers in the order of positions to numbers of quads, and the reverse.
  static void split4(const T* line, Vec<T> (&quads)[kOutputs]) {
    Vec<T> even[2], odd[2];
    for (int64_t i = 0; i < 2; ++i) {
      split(load(line + 2 * i * kLanes), load(line + (2 * i + 1) * kLanes), &even[i], &odd[i]);
    }
    split(even[0], even[1], &quads[0], &quads[2]);
    split(odd[0], odd[1], &quads[1], &quads[3]);
  }
  static void zip4(const Vec<T> (&quads)[kOutputs], Vec<T> (&line)[kOutputs]) {
    Vec<T> even[2], odd[2];
    zip(quads[0], quads[2], &even[0], &even[1]);
    zip(quads[1], quads[3], &odd[0], &odd[1]);
    for (int64_t i = 0; i < 2; ++i) zip(even[i], odd[i], &line[2 * i], &line[2 * i + 1]);
  }

  // A block of weights, all of one group. `columns`: output channels in whole vectors.
  struct WeightBlock {
    int64_t group, oc0, oc1, ic0, ic1, columns;
  };

  // grads[plane][item, quad][out_channel]: transposed a vector of output channels at a time, then transformed.
  void fill_grads(const Block& block, const WeightBlock& weights) const {
    const int64_t pitch = plan_.quad_width, plane = (block.n1 - block.n0) * block.quads() * weights.columns;
    for (int64_t oc = weights.oc0; oc < weights.oc1; oc += kLanes) {
      for (int64_t n = block.n0; n < block.n1; ++n) {
        const int64_t rows = min_of(kLanes, weights.oc1 - oc);
        for (int64_t r = 0; r < rows; ++r) {
          const T* data = static_cast<const T*>(args_.operands.weight) + n * p_.output.batch +
                          (weights.group * view_.rows + oc + r) * p_.output.channel;
          if (p_.output.position == 1 && oc + r + kLanes < weights.oc1) {
            prefetch(data + kLanes * p_.output.channel, 4 * block.u0, min_of(4 * block.u1, p_.out_length));
          }
          const T* quads[kOutputs];
          gather(
              {data, p_.output.position, p_.out_length, PaddingMode::kZeros}, 0, p_.out_length, block.u0, block.quads(),
              quads_ + r * kOutputs * pitch, quads);
        }
        for (int64_t j = 0; j < kOutputs; ++j) {
          transpose(quads_ + j * pitch, kOutputs * pitch, rows, block.quads(), slab_ + j * pitch * kLanes, kLanes);
        }
        T* to = grads_ + (n - block.n0) * block.quads() * weights.columns + oc - weights.oc0;
        for (int64_t u = 0; u < block.quads(); ++u, to += weights.columns) {
          Vec<T> in[kOutputs], out[kPlanes];
#pragma GCC unroll 4
          for (int j = 0; j < kOutputs; ++j) in[j] = load(slab_ + (j * pitch + u) * kLanes);
          Transform::transform_grad(in, out);
#pragma GCC unroll 8
          for (int p = 0; p < kPlanes; ++p) store(to + p * plane, out[p]);
        }
      }
    }
  }

  // sums[plane][in_channel, chunk][out_channel] += the products of panel and grads; `first`: = instead of +=.
  void add_products(const Block& block, const WeightBlock& weights, bool first) const {
    const int64_t rows = (weights.ic1 - weights.ic0) * plan_.chunks, columns = weights.columns;
    const int64_t steps = (block.n1 - block.n0) * block.quads();
    for (int64_t row = 0; row < rows; ++row) {
      row_offset_[row] = row / plan_.chunks * panel_channel() + row % plan_.chunks * p_.dilation;
    }
    for (int64_t step = 0; step < steps; ++step) {
      a_step_[step] = step / block.quads() * plan_.item_pitch + step % block.quads();
      b_step_[step] = step * columns;
    }
    const T zeros[kTileRows] = {};
    Tile<T> tile{};
    tile.c_row = columns;
    const int64_t vectors = columns / kLanes, column_tiles = ceil_div(vectors, max_vectors(kTileRows));
    const int64_t parts = ceil_div(steps, plan_.reduction_block), row_tiles = ceil_div(rows, kTileRows);
    for (int plane = 0; plane < kPlanes; ++plane) {
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
            tile.a_row = row_offset_ + row;
            tile.c = sums_ + (plane * rows + row) * columns + column;
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
        const int64_t tap = row % plan_.chunks * 4;
        T* to = panel_ + ((row / plan_.chunks - (ic - block.ic0)) * taps + tap) * columns;
        for (int64_t column = 0; column < columns; column += kLanes) {
          Vec<T> in[kPlanes], w[kTaps];
#pragma GCC unroll 8
          for (int p = 0; p < kPlanes; ++p) in[p] = load(sums_ + (p * rows + row) * columns + column);
          Transform::invert_taps(in, w);
#pragma GCC unroll 8
          for (int t = 0; t < kTaps; ++t) {
            if (t < taps_of(row % plan_.chunks)) store(to + t * columns + column, w[t]);
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

  void raise_alarm(int64_t index) const { __atomic_store_n(args_.alarms + index, uint8_t{1}, __ATOMIC_RELAXED); }

  const Conv1dProblem& p_;
  const ToomCookPlan& plan_;
  const ToomCookArgs& args_;
  const ForwardView view_;
  T *panel_, *sums_, *grads_, *line_, *quads_, *slab_;
  int64_t *a_step_, *b_step_, *row_offset_;
};

template <int kTaps, void (ToomCookConv<kTaps>::*pass)(int64_t, int64_t) const>
void toom_cook_pass(
    Op op, const Conv1dProblem& problem, const ToomCookPlan& plan, const ToomCookArgs& args, void* scratch,
    int64_t begin, int64_t end) {
  (ToomCookConv<kTaps>(op, problem, plan, args, scratch).*pass)(begin, end);
}

template <int kTaps>
constexpr ToomCookKernels toom_cook_kernels() {
  return {
      toom_cook_pass<kTaps, &ToomCookConv<kTaps>::transform_weights>,
      toom_cook_pass<kTaps, &ToomCookConv<kTaps>::multiply_blocks>,
      toom_cook_pass<kTaps, &ToomCookConv<kTaps>::sum_products>};
}

}  // namespace
}  // namespace conv1d_ext
