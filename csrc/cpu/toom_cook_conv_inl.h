// forward and backward_input, which is a forward pass of grad_output with the taps in reverse, through Toom-Cook's
// algorithm. Two passes: transformed weights, then blocks of rows, whose
//   sums[row][plane][patch]
// are made of the panel (toom_cook_panel_inl.h) by the register tile, transformed back and stored. Of backward_input of
// a stride there are such sums for each phase of the result.
#pragma once

namespace conv1d_ext {
namespace {

template <class Transform>
class ToomCookConv : ToomCookPanel<Transform> {
  using Base = ToomCookPanel<Transform>;
  using Base::kTaps, Base::kPlanes, Base::kOutputs, Base::kLanes, Base::block_at, Base::fill_panel, Base::tap_at,
      Base::is_tap, Base::first_chunk, Base::chunks_of, Base::first_phase, Base::first_piece, Base::pieces,
      Base::pieces_before_, Base::panel_row, Base::load_lanes, Base::store_lanes, Base::for_runs, Base::source_row,
      Base::raise_alarm, Base::p_, Base::plan_, Base::args_, Base::view_, Base::scratch_, Base::panel_, Base::sums_,
      Base::line_, Base::b_step_;
  using typename Base::Block, typename Base::T;
  static constexpr int64_t kColumns = max_vectors(kTileRows) * kLanes;

 public:
  ToomCookConv(Op op, const Conv1dProblem& problem, const ToomCookPlan& plan, const TiledArgs& args, void* memory)
      : Base(op, problem, plan, args, memory), span_sums_(scratch_.template take<T>(kTileRows * kColumns)) {}

  // Work units: the row tiles of the pass. Their weights are [tile][plane][channel][chunk of the plane][row]; of
  // strides [tile][plane][phase of the plane][channel][row], in backward_input [tile][phase][plane of the
  // phase][channel][row].
  void pack_weights(int64_t begin, int64_t end) const {
    const int64_t step = max_of(1, kTapStep / p_.kernel_size);
    for (int64_t unit = begin; unit < end;) {
      // Where the rows of a channel lie side by side, a tile's are a short piece of memory, and several are taken at a
      // time.
      const int64_t pitch = step * p_.kernel_size * kTileRows + kPackSlack;
      const int64_t room = min_of(plan_.panel_elements / pitch, kMostPackTiles);
      const int64_t most = view_.weight_row < view_.weight_channel ? room : 1;
      const int64_t first = args_.first_tile + unit, group = row_tile(first).group;
      const int64_t tiles = min_of(most, min_of(end - unit, (group + 1) * plan_.row_tiles - first));
      WeightTile weights[kMostPackTiles];
      for (int64_t i = 0; i < tiles; ++i) {
        const RowTile tile = row_tile(first + i);
        weights[i].rows = tile.rows;
        for (int64_t r = 0; r < tile.rows; ++r) weights[i].row_offset[r] = (tile.first + r) * view_.weight_row;
      }
      for (int64_t channel = 0; channel < view_.channels; channel += step) {
        const int64_t count = min_of(step, view_.channels - channel);
        const T* weight =
            static_cast<const T*>(args_.operands.weight) + group_weight(group) + channel * view_.weight_channel;
        pack_weight(
            weight, weights, tiles, {count, view_.weight_channel, p_.kernel_size, p_.weight.tap}, panel_, pitch);
        for (int64_t i = 0; i < tiles; ++i) {
          const RowTile tile = row_tile(first + i);
          for (int64_t j = 0; j < count; ++j) {
            const T* taps = panel_ + i * pitch + j * p_.kernel_size * tile.rows;
            for (int64_t piece = 0; piece < pieces(); ++piece) {
              transform_piece(taps, channel + j, piece, tile.rows, packed_weights(tile));
            }
          }
        }
      }
      unit += tiles;
    }
  }

  // Work units: [batch block][patch block][row tile of the pass].
  void multiply_blocks(int64_t begin, int64_t end) const {
    // Of planes with all chunks, and of those without the first.
    int64_t* step = b_step_;
    for (int64_t first = 0; first < 2; ++first) {
      for (int64_t channel = 0; channel < span_channels(first); ++channel) {
        for (int64_t chunk = first; chunk < plan_.chunks; ++chunk) {
          *step++ = channel * panel_row() + chunk * p_.dilation;
        }
      }
    }
    for (int64_t unit = begin; unit < end;) {
      const int64_t block = unit / args_.tile_count, first = args_.first_tile + unit % args_.tile_count;
      const int64_t group = first / plan_.row_tiles;
      const int64_t last =
          min_of(min_of(args_.first_tile + args_.tile_count, (group + 1) * plan_.row_tiles), first + (end - unit));
      unit += last - first;
      const int64_t next_group = (args_.first_tile + unit % args_.tile_count) / plan_.row_tiles;
      const Block next = block_at(min_of(unit / args_.tile_count, plan_.units - 1), next_group);
      compute(block_at(block, group), unit < end ? &next : nullptr, first, last);
    }
  }

 private:
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
    return static_cast<T*>(args_.packed_weight) + rows * view_.channels * plan_.products;
  }

  // Of planes that begin with this chunk.
  int64_t part_channels(int64_t first_chunk) const {
    return first_chunk == 0 ? plan_.part_channels : plan_.other_part_channels;
  }
  int64_t span_channels(int64_t first_chunk) const {
    return min_of(plan_.channel_block, kSpanParts * part_channels(first_chunk));
  }

  int64_t group_weight(int64_t group) const { return group * (p_.out_channels / p_.groups) * p_.weight.out_channel; }
  // Whether a plane has a part of a piece's taps. A phase of the result may lack a tap, as one of the source may.
  bool has_part(int64_t piece, int plane) const {
    if (plan_.result_phases == 1) return piece >= first_piece(plane);
    return piece < plan_.result_phases - plan_.lead || Transform::last_tap(plane) > 0;
  }
  // Where that part lies in a tile's weights, of which each step of a sum has as many as rows: the first channel's
  // step, the way to the next one's, and the end.
  struct Place {
    int64_t begin, pitch, end;
  };
  Place place_of(int64_t piece, int plane) const {
    const int64_t channels = view_.channels;
    if (p_.stride == 1) {
      const int64_t begin = pieces_before_[plane] * channels;
      return {begin + piece - first_chunk(plane), chunks_of(plane), begin + channels * chunks_of(plane)};
    }
    int64_t before = pieces_before_[plane] + piece - first_piece(plane);
    if (plan_.result_phases > 1) {
      const int64_t short_ones = has_part(piece, 0) ? 0 : piece + 1 - (plan_.result_phases - plan_.lead);
      before = piece * kPlanes + plane - short_ones;  // short phases are the last, and do without plane 0
    }
    return {before * channels, 1, (before + 1) * channels};
  }

  // weight[tap][row], of a channel, to its place in a tile's weights.
  void transform_piece(const T* weight, int64_t channel, int64_t piece, int64_t rows, T* packed) const {
    int64_t begin[kPlanes], left[kPlanes];
    for (int p = 0; p < kPlanes; ++p) {
      const Place place = place_of(piece, p);
      begin[p] = (place.begin + channel * place.pitch) * rows;
      left[p] = place.end * rows - begin[p];
    }
    const bool reversed = view_.reversed && p_.stride == 1;
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t lanes = min_of(kLanes, rows - row);
      Vec<T> w[kTaps], out[kPlanes];
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) {
        const int64_t tap = tap_at(piece, t), stored = reversed ? p_.kernel_size - 1 - tap : tap;
        w[t] = is_tap(tap) ? load_lanes(weight + stored * rows + row, lanes) : broadcast(T{0});
      }
      Transform::transform_taps(w, out);
#pragma GCC unroll 16
      for (int p = 0; p < kPlanes; ++p) {
        // Rows that there are not are overwritten by the next step's: AVX2's partial stores are slow.
        if (has_part(piece, p)) store_lanes(packed + begin[p] + row, out[p], left[p] - row < kLanes ? lanes : kLanes);
      }
    }
  }

  int64_t columns_of(const Block& block) const {
    return (block.n1 - block.n0 - 1) * plan_.item_pitch + block.patches();
  }
  // Of NextRows: vectors that are multiplied and added.
  int64_t work(const Block& block, int64_t rows, int64_t channels) const {
    return rows * ceil_div(columns_of(block), kLanes) * channels * plan_.products / plan_.source_phases;
  }

  bool fetches_results() const { return view_.result.position == 1; }

  // Rows of a block's next panel, from one on, all phases of each; of several batch items those of the first.
  NextRows source_rows(const Block& block, int64_t row, int64_t work) const {
    if (view_.source.position != 1) return {};
    const auto reach = this->source_reach(block);
    const int64_t channel = row % view_.channels;
    return {
        source_row(block, block.n0, channel) + reach.begin, view_.source.channel,
        min_of(plan_.channel_block, view_.channels - channel), reach.end - reach.begin, work};
  }
  // Those of the results of a tile.
  NextRows result_rows(const Block& block, const RowTile& rows, int64_t work) const {
    const int64_t step = kOutputs * plan_.result_phases, first = first_result();
    const int64_t begin = max_of(step * block.u0 + first, 0),
                  end = min_of(step * block.u1 + first, view_.result_length);
    return {
        result_row(block, block.n0, rows.first) + begin, view_.result.channel, rows.rows, max_of(end - begin, 0), work};
  }

  // Row tiles [tile0, tile1) of a block, all of its group. Meanwhile what is read next is fetched, in the end what the
  // block `next` reads, if there is one.
  void compute(const Block& block, const Block* next, int64_t tile0, int64_t tile1) const {
    const int64_t panel_rows = view_.channels * plan_.source_phases;
    const bool whole = plan_.channel_block >= panel_rows;
    if (whole) fill_panel(block, 0, panel_rows);
    const int64_t step = whole ? tile1 - tile0 : plan_.tile_block;
    for (int64_t tile = tile0; tile < tile1; tile += step) {
      const int64_t end = min_of(tile + step, tile1);
      for (int64_t row = 0; row < panel_rows; row += plan_.channel_block) {
        const int64_t row_end = min_of(row + plan_.channel_block, panel_rows);
        if (!whole) fill_panel(block, row, row_end);
        const bool last = row_end == panel_rows;
        const Block* following = !last || end < tile1 ? &block : next;
        const int64_t row_count = row_tile(end - 1).first + row_tile(end - 1).rows - row_tile(tile).first;
        // While the last rows are multiplied, the first half of the work is each tile's results'.
        const bool results_first = last && fetches_results();
        const int64_t work = this->work(block, row_count, row_end - row) / (results_first ? 2 : 1);
        NextRows rows =
            following == nullptr ? NextRows{} : source_rows(*following, last ? 0 : row_end, max_of(work, 1));
        for (int64_t i = tile; i < end; ++i) {
          const RowTile of_tile = row_tile(i);
          NextRows results;
          if (results_first) {
            results = result_rows(block, of_tile, max_of(this->work(block, of_tile.rows, row_end - row) / 2, 1));
          }
          T* sums = sums_of(whole ? 0 : i - tile);
          for (int64_t phase = 0; phase < plan_.result_phases; ++phase) {
            multiply(block, of_tile, phase, sums + phase * phase_sums(), row, row_end, results, rows);
          }
          if (last) store_results(block, of_tile, sums);
        }
      }
    }
  }
  int64_t phase_sums() const { return kTileRows * kPlanes * plan_.sum_width; }
  T* sums_of(int64_t tile) const { return sums_ + tile * plan_.result_phases * phase_sums(); }

  // Adds rows [row0, row1) of the panel to the sums of a phase of a tile; after the last ones, transforms them back:
  // sums[row][j][patch] are then the results, j dilations after the first.
  void multiply(
      const Block& block, const RowTile& rows, int64_t phase, T* to, int64_t row0, int64_t row1, NextRows& results,
      NextRows& next) const {
    const T zeros[kTileRows] = {};
    const T* weights = packed_weights(rows);
    Tile<T> tile{};
    tile.a_row = tile.a_step = nullptr;  // weights are packed
    tile.init = zeros;
    // By tiles of columns, whose sums for all planes stay in the L1 cache.
    const int64_t columns = columns_of(block);
    const int64_t vectors = ceil_div(columns, kLanes), tiles = ceil_div(vectors, max_vectors(kTileRows));
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t column = part_begin(vectors, tiles, i) * kLanes;
      tile.columns = min_of(columns, part_begin(vectors, tiles, i + 1) * kLanes) - column;
      for (int plane = 0; plane < kPlanes; ++plane) {
        if (plan_.result_phases > 1 && !has_part(phase, plane)) continue;
        const int64_t first = first_chunk(plane), chunks = chunks_of(plane);
        const int64_t first_row = first_phase(plane) * view_.channels;
        const int64_t weights_begin =
            place_of(plan_.result_phases > 1 ? phase : first_piece(plane), plane).begin - first_row * chunks;
        T* sums = to + plane * plan_.sum_width + column;
        tile.b_step = b_step_ + first * span_channels(0) * plan_.chunks;
        tile.part_steps = part_channels(first) * chunks;
        for (int64_t span = max_of(row0, first_row); span < row1; span += span_channels(first)) {
          // A span's parts are added up in the register tile, the first one's where the sums are.
          const bool begins = span == first_row;
          tile.c = begins ? sums : span_sums_;
          tile.c_row = begins ? kPlanes * plan_.sum_width : kColumns;
          tile.steps = min_of(span_channels(first), row1 - span) * chunks;
          tile.a = weights + (weights_begin + span * chunks) * rows.rows;
          tile.b = panel_ + (span - row0) * panel_row() + plane * plan_.panel_width + column;
          tile.next = results.any_left() ? &results : &next;
          run_rows<T, true, 1>(tile, rows.rows);
          if (tile.next == &results && !results.any_left()) next.pass(results.surplus());
          if (!begins) add_span(rows.rows, tile.columns, sums);
        }
      }
      if (row1 == view_.channels * plan_.source_phases) invert(block, rows, phase, to + column, tile.columns);
    }
  }

  void add_span(int64_t rows, int64_t columns, T* sums) const {
    const T* span = span_sums_;
    for (int64_t r = 0; r < rows; ++r, sums += kPlanes * plan_.sum_width, span += kColumns) {
      for (int64_t i = 0; i < columns; i += kLanes) {
        const int64_t lanes = min_of(kLanes, columns - i);
        store_lanes(sums + i, add(load_lanes(sums + i, lanes), load_lanes(span + i, lanes)), lanes);
      }
    }
  }

  void invert(const Block& block, const RowTile& rows, int64_t phase, T* sums, int64_t columns) const {
    const T* bias = static_cast<const T*>(args_.operands.bias);
    const int64_t plane = plan_.sum_width;
    for (int64_t r = 0; r < rows.rows; ++r, sums += kPlanes * plane) {
      const Vec<T> add_to = broadcast(bias == nullptr ? T{0} : bias[block.group * view_.rows + rows.first + r]);
      for (int64_t i = 0; i < columns; i += kLanes) {
        Vec<T> in[kPlanes], out[kOutputs];
#pragma GCC unroll 16
        for (int p = 0; p < kPlanes; ++p) in[p] = load_lanes(sums + p * plane + i, min_of(kLanes, columns - i));
        if (plan_.result_phases > 1 && !has_part(phase, 0)) in[0] = broadcast(T{0});
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
        T* data = result_row(block, n, rows.first + r);
        const bool finite =
            plan_.result_phases > 1 ? scatter_phases(block, results, data) : scatter(block, results, data);
        if (!finite) raise_alarm(n);
      }
    }
  }

  // The position of the first phase's first result: in the padding, if anything.
  int64_t first_result() const { return plan_.result_phases > 1 ? -(p_.padding_left % p_.stride) : 0; }

  // As scatter, the results of all phases, in turns.
  bool scatter_phases(const Block& block, const T* results, T* data) const {
    const int64_t phases = plan_.result_phases, pitch = plan_.sum_width, stride = view_.result.position;
    constexpr int64_t kWidth = kOutputs * kLanes;
    T* in_order = line_ + phases * kWidth;
    const Vec<T> zero = broadcast(T{0});
    Vec<T> seen = zero;  // 0 times each
    for (int64_t i = 0; i < block.patches(); i += kLanes) {
      const int64_t lanes = min_of(kLanes, block.patches() - i);
      for (int64_t phase = 0; phase < phases; ++phase) {
        Vec<T> in[kOutputs], out[kOutputs];
#pragma GCC unroll 4
        for (int j = 0; j < kOutputs; ++j) {
          in[j] = load_lanes(results + phase * phase_sums() + j * pitch + i, lanes);
          seen = fma(zero, in[j], seen);
        }
        zip_line(in, out);
#pragma GCC unroll 4
        for (int j = 0; j < kOutputs; ++j) store(line_ + phase * kWidth + j * kLanes, out[j]);
      }
      if (phases == 2) {
        for (int64_t j = 0; j < kWidth; j += kLanes) {
          Vec<T> out[2];
          zip(load(line_ + j), load(line_ + kWidth + j), &out[0], &out[1]);
          store(in_order + 2 * j, out[0]);
          store(in_order + 2 * j + kLanes, out[1]);
        }
      } else {
        transpose(line_, kWidth, phases, kWidth, in_order, phases);
      }
      const int64_t first = first_result() + kOutputs * (block.u0 + i) * phases;
      const int64_t begin = max_of(first, 0), end = min_of(first + kOutputs * lanes * phases, view_.result_length);
      if (begin < end) store_row(p_, in_order + begin - first, end - begin, data + begin * stride, stride);
    }
    return sum(seen) == 0;  // not a number is not 0
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
    const int64_t count = block.patches(), first = kOutputs * block.u0;
    const bool in_place =
        dilation == 1 && stride == 1 && first + kOutputs * round_up(count, kLanes) <= view_.result_length;
    T* to = in_place ? data + first : line_;
    for (int64_t i = 0; i < count; i += kLanes) {
      Vec<T> in[kOutputs], out[kOutputs];
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) {
        in[j] = load_lanes(results + j * pitch + i, min_of(kLanes, count - i));
        seen = fma(zero, in[j], seen);
      }
      if (dilation > 1) continue;
      zip_line(in, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) store(to + kOutputs * i + j * kLanes, out[j]);
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
        for (int64_t j = 0; j < kOutputs; ++j)
          store(line_ + kOutputs * i + j * dilation, load(results + j * pitch + i));
      }
    }
    if (dilation <= kLanes && !in_place) put(line_, first, kOutputs * count);
    return sum(seen) == 0;  // not a number is not 0
  }

  // Numbers of patches to those in the order of positions.
  static void zip_line(const Vec<T> (&patches)[kOutputs], Vec<T> (&line)[kOutputs]) {
    if constexpr (kOutputs == 2) {
      zip(patches[0], patches[1], &line[0], &line[1]);
    } else {
      Vec<T> even[2], odd[2];
      zip(patches[0], patches[2], &even[0], &even[1]);
      zip(patches[1], patches[3], &odd[0], &odd[1]);
      for (int64_t i = 0; i < 2; ++i) zip(even[i], odd[i], &line[2 * i], &line[2 * i + 1]);
    }
  }

  T* span_sums_;  // of a register tile
};

}  // namespace
}  // namespace conv1d_ext
