// forward and backward_input through the matrix unit, in the terms of amx_plan.h: weights, taken apart and in the order
// of their use, and blocks of positions of the results, chunk by chunk of the sums:
//   weights[row tile][step][piece][half of the rows][pair of products][row]
//   panel[phase of taps][step of channels][piece][position][product]
//   sums[row tile][position][row]   transposed to be stored, with the bias.
// Weights that are too many to be packed once are packed by each thread, those of a tile and chunk at a time.
//
// As with the transforms, a number that is not finite may spoil its neighbours, and so do numbers that are all tiny:
// kernels set the alarm of the batch item, which the direct kernels then compute again.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
class AmxConv {
  static constexpr int kPieces = kAmxPieces<Storage>;
  static constexpr int64_t kPiece = 2 * kAmxTile, kStep = kPieces * kPiece, kLanes = F32::kLanes;
  static constexpr int64_t kLine = 64 / sizeof(Storage);
  // Elements from one position to the next whose multiples gather instructions can count; no layer comes near.
  static constexpr int64_t kMostGathered = 1 << 16;
  // ... up to which 16-bit elements, which they don't know, are all read and permuted. (With 16, 256->512 channels, k
  // 16, ran at 386 GFLOP/s instead of 509.)
  static constexpr int64_t kMostPermuted = 8;
  // Steps of the channels from which on rows of the panel are so short, and with 32 streams so many, that prefetchers
  // don't follow: those of the next step are fetched with these, floats a tile at a time, others a row. (257->80
  // channels, k 1: 5 % faster, rows at a time 6 % slower; with 3 steps, of 96->96 channels, 22 % slower.)
  static constexpr int64_t kManySteps = 6;

 public:
  AmxConv(Op op, const Conv1dProblem& problem, const AmxPlan& plan, const TiledArgs& args, void* memory)
      : p_(problem), plan_(plan), args_(args), view_(op == Op::kBackwardInput, problem) {
    Scratch scratch{static_cast<char*>(memory)};
    panel_ = scratch.take<uint16_t>(plan.panel_elements);
    rows_ = scratch.take<float>(kAmxDepth * (plan.panel_width + kLanes));
    for (float*& sums : sums_) sums = scratch.take<float>(kAmxRows * kAmxRows);
    chunk_sums_ = scratch.take<float>(plan.sum_elements);
    a_step_ = scratch.take<int64_t>(plan.chunk_steps * plan.tap_steps);
    largest_ = scratch.take<uint32_t>(plan.batch_block);
    tile_weights_ = scratch.take<uint16_t>(plan.all_packed ? 0 : plan.chunk_steps * plan.tap_steps * kStep);
  }

  // Work units: the row tiles of the pass.
  void pack_weights(int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tile = args_.first_tile + unit;
      pack_tile(tile, {0, plan_.channel_steps}, shared_weights(tile));
    }
  }

  // Work units: [batch block][position block][row tile of the pass].
  void multiply_blocks(int64_t begin, int64_t end) const {
    _tile_loadconfig(&kAmxConfiguration);
    for (int64_t step = 0; step < plan_.chunk_steps * plan_.tap_steps; ++step) {
      const int64_t channels = step / plan_.tap_steps, taps = step % plan_.tap_steps;
      a_step_[step] =
          panel_set(taps % plan_.panel_phases, channels) + taps / plan_.panel_phases * plan_.phase_shift * kAmxDepth;
    }
    for (int64_t unit = begin; unit < end;) {
      const int64_t first = args_.first_tile + unit % args_.tile_count, group = first / plan_.row_tiles;
      const int64_t last =
          min_of(min_of(args_.first_tile + args_.tile_count, (group + 1) * plan_.row_tiles), first + (end - unit));
      const Block block = block_at(unit / args_.tile_count, group);
      Sums sums{};
      for (int64_t step = 0; step < plan_.channel_steps; step += plan_.chunk_steps) {
        const Chunk chunk{step, min_of(step + plan_.chunk_steps, plan_.channel_steps)};
        fill_panel(block, chunk);
        for (int64_t tile = first; tile < last; ++tile) compute(block, chunk, tile, tile - first, &sums);
      }
      for (int part = 0; part < kAmxParts; ++part) finish_part(block, sums, part);
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

  // Steps [begin, end) of the channels, with all taps.
  struct Chunk {
    int64_t begin, end;
  };

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

  uint16_t* shared_weights(int64_t tile) const {
    return static_cast<uint16_t*>(args_.packed_weight) + (tile - args_.first_tile) * plan_.steps * kStep;
  }
  int64_t weight_tap(int64_t tap) const { return (view_.reversed ? p_.kernel_size - 1 - tap : tap) * p_.weight.tap; }

  // from[i * stride] for i < count, then zeros.
  template <class T>
  static F32 gather(const T* from, int64_t stride, int64_t count) {
    if (stride == 1) return count < kLanes ? load_partial(from, max_of(0, count)) : load(from);
    const __m512i index = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int32_t(stride)));
    if constexpr (sizeof(T) == sizeof(float)) {
      const __mmask16 mask = first16(min_of(max_of(0, count), kLanes));
      return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, from, 4)};
    }
    if (stride < 2 || stride > kMostPermuted) {
      float lanes[kLanes] = {};
      for (int64_t i = 0; i < min_of(count, kLanes); ++i) lanes[i] = widen(from[i * stride]);
      return load(lanes);
    }
    const int64_t end = (min_of(count, kLanes) - 1) * stride + 1;
    F32 lanes = broadcast(0.0f);
    for (int64_t i = 0; i < end; i += kLanes) {
      const F32 x = end - i < kLanes ? load_partial(from + i, end - i) : load(from + i);
      const __mmask16 here = _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(index, 4), _mm512_set1_epi32(int32_t(i >> 4)));
      lanes.v = _mm512_mask_permutexvar_ps(lanes.v, here, index, x.v);
    }
    return lanes;
  }

  // The weights of half of a step's products for 16 rows: products[i][row].
  void load_weights(
      const Storage* weight, int64_t rows, int64_t channel_step, int64_t tap_step, int64_t half,
      F32 (&products)[kAmxSide]) const {
    // From product to product, where they are as far apart as that: channels, or the taps of a single channel.
    const bool of_taps = view_.channels == 1;
    const int64_t stride = of_taps ? weight_tap(1) - weight_tap(0) : view_.weight_channel;
    const bool along_rows = view_.weight_row < max_of(stride, -stride);  // those are closer together
    // The next step's are fetched. As many lines of a row as there are taps lie between these channels and those.
    if ((plan_.step_taps == 1 || of_taps) && !along_rows) {
      const int64_t channel = channel_step * kAmxDepth, tap = tap_step * plan_.step_taps;
      const int64_t there = of_taps ? min_of(plan_.step_taps, p_.kernel_size - tap) : view_.channels - channel;
      const int64_t count = there - half * kLanes;
      const Storage* from = weight + channel * view_.weight_channel + weight_tap(tap) + half * kLanes * stride;
      const int64_t ahead = kAmxDepth * stride + (of_taps ? 0 : tap_step * kLine);
#pragma GCC unroll 16
      for (int64_t row = 0; row < kAmxSide; ++row, from += view_.weight_row) {
        products[row] = row < rows ? gather(from, stride, count) : broadcast(0.0f);
        __builtin_prefetch(from + ahead);
      }
      transpose(products);
      return;
    }
    for (int64_t i = 0; i < kAmxSide; ++i) {
      const Product product = product_at(channel_step, half * kAmxSide + i);
      const int64_t tap = tap_step * plan_.step_taps + product.tap;
      const bool there = product.channel >= 0 && tap < p_.kernel_size;
      const Storage* from = weight + product.channel * view_.weight_channel;
      products[i] = there ? gather(from + weight_tap(tap), view_.weight_row, rows) : broadcast(0.0f);
      __builtin_prefetch(from + kAmxDepth * view_.weight_channel + tap_step * kLine);
    }
  }

  void pack_tile(int64_t tile, const Chunk& chunk, uint16_t* to) const {
    const int64_t group = tile / plan_.row_tiles, row = tile % plan_.row_tiles * kAmxRows;
    const Storage* weight = static_cast<const Storage*>(args_.operands.weight) +
                            group * (p_.out_channels / p_.groups) * p_.weight.out_channel;
    Largest largest;
    for (int64_t half = 0; half < 2 && row + half * kAmxSide < view_.rows; ++half) {
      const int64_t first = row + half * kAmxSide, rows = min_of(kAmxSide, view_.rows - first);
      pack_rows(weight + first * view_.weight_row, rows, chunk, to + half * kAmxTile, &largest);
    }
    for (int64_t n = 0; n < p_.batch && kPieces > 1 && is_tiny(largest.bits()); ++n) raise_alarm(n);
  }

  void pack_rows(const Storage* weight, int64_t rows, const Chunk& chunk, uint16_t* to, Largest* largest) const {
    for (int64_t channel_step = chunk.begin; channel_step < chunk.end; ++channel_step) {
      for (int64_t tap_step = 0; tap_step < plan_.tap_steps; ++tap_step, to += kStep) {
        for (int64_t half = 0; half < 2; ++half) {
          F32 products[kAmxSide];
          load_weights(weight, rows, channel_step, tap_step, half, products);
          uint16_t* pairs = to + half * kAmxSide * kAmxSide;
#pragma GCC unroll 8
          for (int64_t i = 0; i < kAmxSide; i += 2, pairs += 2 * kAmxSide) {
            F32 even[kPieces], odd[kPieces];
            largest->see(products[i]);
            largest->see(products[i + 1]);
            take_apart<kPieces>(products[i], even);
            take_apart<kPieces>(products[i + 1], odd);
            for (int64_t k = 0; k < kPieces; ++k) {
              store(reinterpret_cast<float*>(pairs + k * kPiece), make_pairs(even[k], odd[k]));
            }
          }
        }
      }
    }
  }

  int64_t panel_set(int64_t phase, int64_t step_of_chunk) const {
    return (phase * plan_.chunk_steps + step_of_chunk) * kPieces * plan_.panel_piece;
  }

  void fill_panel(const Block& block, const Chunk& chunk) const {
    for (int64_t i = 0; i < block.n1 - block.n0 && chunk.begin == 0; ++i) largest_[i] = 0;
    for (int64_t phase = 0; phase < plan_.panel_phases; ++phase) {
      const int64_t halo = (plan_.tap_steps - 1 - phase) / plan_.panel_phases * plan_.phase_shift;
      for (int64_t step = chunk.begin; step < chunk.end; ++step) {
        fill_set(block, phase, step, block.positions() + halo, panel_ + panel_set(phase, step - chunk.begin));
      }
    }
    for (int64_t i = 0; i < block.n1 - block.n0 && chunk.end == plan_.channel_steps; ++i) {
      if (is_tiny(largest_[i])) raise_alarm(block.n0 + i);
    }
  }

  // A row of a source, from some position on.
  struct Positions {
    const float* data;  // null for zeros
    int64_t stride;
  };

  // `count` positions of each batch item, then zeros: whole tiles are read.
  void fill_set(const Block& block, int64_t phase, int64_t step, int64_t count, uint16_t* to) const {
    for (int64_t n = block.n0; n < block.n1; ++n, to += plan_.item_pitch * kAmxDepth) {
      const int64_t width = n + 1 < block.n1 ? plan_.item_pitch : plan_.panel_width - (n - block.n0) * plan_.item_pitch;
      Largest largest;
      if (view_.channels == 1 && p_.dilation == 1 && view_.source.position == 1) {
        fill_taps(block, n, phase * plan_.step_taps, count, width, to, &largest);
      } else {
        Positions rows[kAmxDepth];
        for (int64_t i = 0; i < kAmxDepth; ++i) {
          Product product = product_at(step, i);
          product.tap += phase * plan_.step_taps;
          if (product.tap >= p_.kernel_size) product.channel = -1;
          rows[i] = source_positions(block, n, product, count, rows_ + i * (plan_.panel_width + kLanes));
        }
        const bool fetches = kPieces > 1 && fetches_next_ && rows[0].stride == 1 && step + 1 < plan_.channel_steps;
        for (int64_t i = 0; i < width; i += kAmxSide) {
          for (int64_t k = 0; k < kAmxDepth && fetches; ++k) {
            __builtin_prefetch(rows[k].data + i + kAmxDepth * view_.source.channel, 0, 2);
          }
          fill_tile(rows, i, count - i, to + i * kAmxDepth, &largest);
        }
      }
      uint32_t& largest_of_item = largest_[n - block.n0];
      if (kPieces > 1 && largest.bits() > largest_of_item) largest_of_item = largest.bits();
    }
  }

  // The same of a single channel: the products of a position are taps from `tap` on, and lie side by side.
  void fill_taps(
      const Block& block, int64_t n, int64_t tap, int64_t count, int64_t width, uint16_t* to, Largest* largest) const {
    const Row<Storage> row = source_row(block, n, 0);
    const int64_t taps = min_of(plan_.step_taps, p_.kernel_size - tap), step = view_.reversed ? 1 : p_.stride;
    const auto put = [&](const auto* products, uint16_t* position) {
      const F32 first = load_partial(products, min_of(taps, kLanes));
      const F32 second = load_partial(products + kLanes, max_of(taps - kLanes, 0));
      if constexpr (kPieces > 1) {
        largest->see(first);
        largest->see(second);
      }
      store_products(first, second, position);
    };
    for (int64_t i = 0; i < width; ++i, to += kAmxDepth) {
      const int64_t start = (block.t0 + i) * step + tap - view_.left;
      if (i < count && start >= 0 && start + taps <= row.length) {
        put(row.data + start, to);
      } else {
        const int64_t defined = i < count ? max_of(0, min_of(taps, view_.end - start)) : 0;
        pack_row<Storage>(row, start, 1, defined, kAmxDepth, rows_);
        put(rows_, to);
      }
    }
  }

  // 16 positions from the i-th on, `count` of which are there.
  void fill_tile(const Positions (&rows)[kAmxDepth], int64_t i, int64_t count, uint16_t* to, Largest* largest) const {
    F32 halves[2][kAmxSide];
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t k = 0; k < kAmxSide; ++k) {
        const auto [data, stride] = rows[half * kAmxSide + k];
        const F32 x = data == nullptr ? broadcast(0.0f) : gather(data + i * stride, stride, count);
        if constexpr (kPieces > 1) largest->see(x);
        halves[half][k] = x;
      }
      transpose(halves[half]);
    }
    for (int64_t position = 0; position < kAmxSide; ++position, to += kAmxDepth) {
      store_products(halves[0][position], halves[1][position], to);
    }
  }

  // Of a position of the panel.
  void store_products(F32 first, F32 second, uint16_t* to) const {
    F32 lower[kPieces], upper[kPieces];
    take_apart<kPieces>(first, lower);
    take_apart<kPieces>(second, upper);
    for (int64_t k = 0; k < kPieces; ++k) {
      store(reinterpret_cast<float*>(to + k * plan_.panel_piece), upper_halves(lower[k], upper[k]));
    }
  }

  Row<Storage> source_row(const Block& block, int64_t n, int64_t channel) const {
    return {
        static_cast<const Storage*>(args_.operands.source) + n * view_.source.batch +
            (block.group * view_.channels + channel) * view_.source.channel,
        view_.source.position, view_.source_length, view_.padding_mode};
  }

  // The positions that a product of steps meets, where they are or in `memory`.
  Positions source_positions(
      const Block& block, int64_t n, const Product& product, int64_t count, float* memory) const {
    if (product.channel < 0) return {nullptr, 1};
    const int64_t step = view_.reversed ? 1 : p_.stride;
    const int64_t start = block.t0 * step + product.tap * p_.dilation - view_.left;
    const Row<Storage> row = source_row(block, n, product.channel);
    const int64_t stride = step * row.position_stride;
    if constexpr (kPieces == 3) {
      if (start >= 0 && start + (count - 1) * step < row.length && stride <= kMostGathered) {
        return {row.data + start * row.position_stride, stride};
      }
    }
    const int64_t defined = max_of(0, min_of(count, ceil_div(view_.end - start, step)));
    if (kPieces == 1 && fetches_next_ && product.tap == 0 && stride < kLine) {
      const Storage* next = row.data + start * row.position_stride + kAmxDepth * view_.source.channel;
      for (int64_t i = 0; i < count * stride; i += kLine) __builtin_prefetch(next + i, 0, 2);
    }
    pack_row<Storage>(row, start, step, defined, count, memory);
    return {memory, 1};
  }

  // Sums of a row tile and a chunk from a column of the panel on.
  struct Sums {
    int64_t tile, column, count;
    int turn;
    const float* data;  // [column][row]; null where there is nothing to do with them
    float* chunks;      // to add them to; null where there is one chunk
    bool last;          // the chunk
  };

  // The row tile's sums, while those before are finished; the last ones are left in `before`.
  void compute(const Block& block, const Chunk& chunk, int64_t tile, int64_t index, Sums* before) const {
    const int64_t rows = min_of(kAmxRows, view_.rows - tile % plan_.row_tiles * kAmxRows);
    const int64_t columns = (block.n1 - block.n0 - 1) * plan_.item_pitch + block.positions();
    const bool one_chunk = plan_.sum_elements == 0;
    const bool last = chunk.end == plan_.channel_steps;
    if (!plan_.all_packed) pack_tile(tile, chunk, tile_weights_);
    AmxProduct product;
    product.a_tile = product.b_tile = kAmxTile;
    product.a_piece = plan_.panel_piece;
    product.b_piece = kPiece;
    product.b_step = kStep;
    product.a_step = a_step_;
    product.b = plan_.all_packed ? shared_weights(tile) : tile_weights_;
    product.steps = (chunk.end - chunk.begin) * plan_.tap_steps;
    product.c_row = kAmxRows;
    float* chunks = one_chunk ? nullptr : chunk_sums_ + index * round_up(columns, kAmxRows) * kAmxRows;
    for (int64_t column = 0; column < columns; column += kAmxRows) {
      const int64_t count = min_of(kAmxRows, columns - column);
      const int turn = 1 - before->turn;
      const bool to_chunks = chunk.begin == 0 && !one_chunk;  // the first ones
      product.a = panel_ + column * kAmxDepth;
      product.c = to_chunks ? chunks : sums_[turn];
      multiply_tiles<kPieces>(product, count, rows, [&](int part) { finish_part(block, *before, part); });
      *before = {tile, column, count, turn, to_chunks ? nullptr : sums_[turn], chunks, last};
      if (!one_chunk) chunks += kAmxRows * kAmxRows;
    }
  }

  // Adds one tile of the sums to those of the chunks before, and stores it if these were the last ones.
  [[gnu::noinline]] void finish_part(const Block& block, const Sums& sums, int part) const {
    if (sums.data == nullptr) return;
    const int64_t row = sums.tile % plan_.row_tiles * kAmxRows + part % 2 * kAmxSide;
    const int64_t rows = min_of(kAmxSide, view_.rows - row);
    const int64_t column = sums.column + part / 2 * kAmxSide;
    const int64_t count = min_of(kAmxSide, sums.column + sums.count - column);
    if (rows <= 0 || count <= 0) return;
    const int64_t offset = part / 2 * kAmxSide * kAmxRows + part % 2 * kAmxSide;
    F32 results[kAmxSide];
    for (int64_t i = 0; i < kAmxSide; ++i) results[i] = load(sums.data + offset + i * kAmxRows);
    if (sums.chunks != nullptr) {
      float* chunks = sums.chunks + offset;
      for (int64_t i = 0; i < kAmxSide; ++i) results[i] = add(load(chunks + i * kAmxRows), results[i]);
      if (!sums.last) {
        for (int64_t i = 0; i < kAmxSide; ++i) store(chunks + i * kAmxRows, results[i]);
        return;
      }
    }
    transpose(results);
    const Storage* bias = static_cast<const Storage*>(args_.operands.bias);
    const int64_t channel = sums.tile / plan_.row_tiles * view_.rows + row;
    for (int64_t r = 0; r < rows && bias != nullptr; ++r) {
      results[r] = add(results[r], broadcast(widen(bias[channel + r])));
    }
    // What of it belongs to which batch item.
    for (int64_t i = column / plan_.item_pitch; i < block.n1 - block.n0; ++i) {
      const int64_t first = i * plan_.item_pitch, begin = max_of(column, first);
      const int64_t end = min_of(column + count, first + block.positions());
      if (begin >= column + count) break;
      if (begin < end) {
        store_results(block.n0 + i, channel, rows, block.t0 + begin - first, end - begin, results, begin - column);
      }
    }
  }

  // Lanes [lane, lane + count) of each row.
  void store_results(
      int64_t n, int64_t channel, int64_t rows, int64_t position, int64_t count, const F32 (&results)[kAmxSide],
      int64_t lane) const {
    Storage* to = static_cast<Storage*>(args_.operands.result) + n * view_.result.batch +
                  channel * view_.result.channel + position * view_.result.position;
    F32 seen = broadcast(0.0f);  // 0 times each
    if (count == kAmxSide && view_.result.position == 1) {
      for (int64_t r = 0; r < rows; ++r, to += view_.result.channel) {
        seen = fma(broadcast(0.0f), results[r], seen);
        store(to, results[r]);
      }
    } else {
      const __mmask16 lanes = __mmask16(first16(count) << lane);
      for (int64_t r = 0; r < rows; ++r, to += view_.result.channel) {
        const F32 result{_mm512_maskz_compress_ps(lanes, results[r].v)};
        seen = fma(broadcast(0.0f), result, seen);
        if (view_.result.position == 1) {
          store_partial(to, result, count);
        } else {
          float row[kAmxSide];
          store(row, result);
          store_row(p_, row, count, to, view_.result.position);
        }
      }
    }
    if (sum(seen) != 0) raise_alarm(n);  // not a number is not 0
  }

  void raise_alarm(int64_t n) const { __atomic_store_n(args_.alarms + n, uint8_t{1}, __ATOMIC_RELAXED); }

  const Conv1dProblem& p_;
  const AmxPlan& plan_;
  const TiledArgs& args_;
  const ForwardView view_;
  const bool fetches_next_ = plan_.chunk_steps >= kManySteps;  // rows of the panel
  uint16_t *panel_, *tile_weights_;
  float *rows_, *sums_[2], *chunk_sums_;  // sums_: in turn
  int64_t* a_step_;
  uint32_t* largest_;  // of each batch item of a panel
};

}  // namespace
}  // namespace conv1d_ext
