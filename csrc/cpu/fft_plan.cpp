#include "cpu/fft_plan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numbers>

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

// With fewer there is little to save, whatever the estimates say.
constexpr int64_t kFewestTaps = 6;
constexpr int64_t kMostLength = int64_t{1} << 18;

// In L2 caches. Memory for spectra that threads share: of weights, and backward_weight's of input and grad_output.
constexpr int64_t kSpectra = 64, kSignals = 16;
// A thread's spectra of blocks that are multiplied together, and how many of those at most: each vector of the weights'
// spectra is read once for all of them. In the L2 cache, unless those of the weights are not either. (256 -> 256, k 41,
// with 2, 6 and 12 blocks: 101, 50 and 42 ms; 4 -> 256, k 15, with 4 and 12: 10.5 and 12.3 ms.)
constexpr int64_t kTile = 2, kLargeTile = 12, kMostBlocks = 12;
// Of one block, at most.
constexpr int64_t kMostTile = 16;
// In L2 caches: spectra of weights of one group beyond which they come from memory, not from a near cache.
constexpr int64_t kNearSpectra = 2, kNearSpectraOfWideCores = 8;

// On cores that multiply twice as fast products of spectra gain less than the direct kernels do, by these factors: a
// fit to 64 measurements of 23 layers on a Xeon, of which 58 then go the faster way.
constexpr double kWideProducts = 1.65, kWideProductsOfWeightGradients = 1.3;

// A batch shares the spectra of its weights. The transform is taken where it is faster by kGain for an item alone, and
// where it is faster by kBatchGain for a batch of kTypicalBatch and takes 1 / kLeastAlone times as long alone, at most:
// what an item gives must not depend on the batch that it is in. (Estimates are off by some percent.)
constexpr double kGain = 1.1, kBatchGain = 1.5, kLeastAlone = 0.85;

struct FftPlanner {
  const Op op;
  const Conv1dProblem& p;
  const ElementSizes sizes;
  const TileShape& tile;
  const CacheSizes cache;
  const Use use;
  const int64_t spectra_bytes = kSpectra * cache.l2, signal_bytes = kSignals * cache.l2;
  const int64_t most_tile_bytes = kMostTile * cache.l2;
  const int64_t in_per_group = p.in_channels / p.groups, out_per_group = p.out_channels / p.groups;

  // What follows estimates cycles, of vectors of any length alike: the figures are those of AVX-512
  // (benchmarks/NOTES.md).

  // A transform of one row. Of `taps` numbers the first levels are copies.
  double transform(int64_t length, int64_t taps) const {
    const double vectors = double(length) / 2 / tile.lanes;  // of complex numbers
    const double levels = std::log2(std::min<double>(double(length) / 2, 2.0 * taps));
    return vectors * 4.5 * levels * (length * sizes.storage > cache.l1 ? 1.2 : 1);
  }

  // The copy between a row and its tensor, by vectors, or one by one where the elements of a row lie apart. `memory`:
  // for what has to come from there or go there. Results are written in runs of a few blocks, and backward_weight's
  // spectra are kept (4 -> 768, k 15, is 1.2 times as fast by the direct kernels, its weight gradient 1.1 times).
  double copy(int64_t length, double memory) const {
    const double one_by_one = p.stride > 1 || p.dilation > 1 ? 2.0 * tile.lanes : 0;
    return double(length) / 2 / tile.lanes * (memory + one_by_one);
  }

  const bool weights = op == Op::kBackwardWeight, wide = wide_cores(cache);
  const double product_time = !wide ? 1 : weights ? kWideProductsOfWeightGradients : kWideProducts;

  double direct(int64_t items) const {
    const double products = double(items) * p.out_channels * in_per_group * p.kernel_size * p.out_length;
    // The kernels reach 90 % of the peak, with a single channel 60 %: a tap is a load.
    const bool single = p.in_channels == 1 && p.out_channels == 1;
    return products / tile.lanes * (single ? 1.6 : 1.1);
  }

  // Sets what depends on the length, and returns the cycles of so many batch items.
  double cost(FftPlan& plan, int64_t items) const {
    plan.block = plan.length - plan.taps + 1;
    plan.blocks = ceil_div(plan.elements, plan.block);
    const int64_t row_bytes = plan.length * sizes.storage;
    // Groups and rows whose spectra fit the memory for them, all rows of a group where that can be.
    const int64_t pairs = plan.source_rows * plan.result_rows, all_rows = plan.source_rows + plan.result_rows;
    int64_t groups = spectra_bytes / (pairs * row_bytes);
    if (weights) groups = std::min(groups, signal_bytes / (all_rows * row_bytes));
    plan.most_groups = std::clamp<int64_t>(groups, 1, p.groups);
    plan.row_block = balanced_block(
        plan.result_rows,
        std::min(spectra_bytes / (plan.source_rows * row_bytes), most_tile_bytes / row_bytes - plan.source_rows), 1);
    const int64_t tile_row_bytes = (plan.source_rows + plan.row_block) * row_bytes;
    if (tile_row_bytes > most_tile_bytes) return std::numeric_limits<double>::infinity();
    const bool far =
        plan.row_block * plan.source_rows * row_bytes > (wide ? kNearSpectraOfWideCores : kNearSpectra) * cache.l2;
    const int64_t tile_bytes = (far ? kLargeTile : kTile) * cache.l2;
    const auto block_tile = [&](int64_t batch) {
      const int64_t all_blocks = std::max<int64_t>(1, batch) * plan.phases * plan.blocks;
      return weights ? balanced_block(all_blocks, signal_bytes / (plan.most_groups * tile_row_bytes), 1)
                     : std::clamp<int64_t>(tile_bytes / tile_row_bytes, 1, std::min(kMostBlocks, all_blocks));
    };
    plan.block_tile = block_tile(p.batch);

    const double blocks = double(plan.phases) * plan.blocks * items;
    const double sources = blocks * plan.source_rows * ceil_div(plan.result_rows, plan.row_block);
    const double results = blocks * plan.result_rows;
    const double vectors = double(plan.length) / 2 / tile.lanes;
    // Each second number of a level is multiplied by a complex number, and in a product of spectra each.
    const double batch = weights ? 1 : p.batch;
    plan.multiplications =
        p.groups * plan.length *
        (std::log2(plan.length / 2) * (pairs + batch * (sources + results)) + 2 * batch * pairs * blocks);
    // Vectors of the weights' spectra are written once, a spectrum's far apart, and read once for each tile.
    const double write = far ? std::min(140.0, 20 * row_bytes / 2048.0) : 5, read = far ? 30 : 5;
    const double tiles = std::ceil(blocks / block_tile(items));
    const double multiply = product_time * pairs * vectors * (4.4 * blocks + write + read * tiles);
    // What a row costs to begin with shows where few products come after it: 4->768 channels, k 15, were taken for
    // faster by transforms of 128 doubles, and took twice as long (Zen 5).
    const double row_begin = std::min(plan.source_rows, plan.result_rows) < 8 ? 100 : 0;
    const double signals = (sources + results) * (row_begin + transform(plan.length, plan.length)) +
                           sources * copy(plan.length, weights ? 52 : 24) +
                           results * copy(plan.length, weights ? 52 : 68);
    const double spectra = pairs * (transform(plan.length, weights ? plan.length : plan.taps) + copy(plan.length, 24));
    return p.groups * (spectra + signals + multiply);
  }

  FftPlan plan() const {
    FftPlan best{};
    const bool plain = !p.accumulate && !p.negate && sizes.storage == sizes.accumulate;
    if (use == Use::kNever || !plain || (p.stride > 1 && p.dilation > 1) || p.stride > p.kernel_size) return best;
    if (use == Use::kWhereFaster && p.kernel_size / p.stride < kFewestTaps) return best;
    FftPlan plan{};
    plan.taps = ceil_div(p.kernel_size, p.stride);
    plan.phases = p.dilation;
    plan.step = p.stride * p.dilation;
    const int64_t in_rows = in_per_group * p.stride;
    plan.source_rows = op == Op::kBackwardInput ? out_per_group : in_rows;
    plan.result_rows = op == Op::kBackwardInput ? in_rows : out_per_group;
    plan.first = op == Op::kBackwardInput ? p.padding_left / plan.step : 0;
    const int64_t end = op == Op::kBackwardInput ? ceil_div(p.padding_left + p.in_length, plan.step)
                                                 : ceil_div(p.out_length, plan.phases);
    plan.elements = end - plan.first;
    // Padding modes: the padding's share of input gradients remains with the direct kernel.
    const double edges = op == Op::kBackwardInput && p.padding_mode != PaddingMode::kZeros
                             ? double(p.padding_left + p.padding_right) / p.in_length
                             : 0;
    const auto cycles = [&](FftPlan& of, int64_t items) { return cost(of, items) + direct(items) * edges; };
    // What decides must not depend on the batch; gradients of weights are sums over it.
    const int64_t alone = weights ? p.batch : 1;
    best.cycles = std::numeric_limits<double>::infinity();
    const int64_t shortest = 2 * tile.lanes * tile.lanes;
    for (int64_t length = std::max<int64_t>(shortest, std::bit_ceil(uint64_t(plan.taps))); length <= kMostLength;
         length *= 2) {
      plan.length = length;
      plan.cycles = cycles(plan, alone);
      if (plan.cycles < best.cycles) best = plan;
      if (plan.blocks == 1) break;
    }
    if (best.length == 0) return {};
    plan = best;
    best.batch_cycles = weights ? best.cycles : cycles(plan, kTypicalBatch);
    const auto worth_it = [&] {
      const double gain = direct(alone) / best.cycles;
      if (weights || gain >= kGain || gain < kLeastAlone) return gain >= kGain;
      return direct(kTypicalBatch) / best.batch_cycles >= kBatchGain;
    };
    if (use == Use::kWhereFaster && !worth_it()) return {};
    const int64_t row_bytes = best.length * sizes.storage;
    const auto bytes = [&](int64_t spectra) { return spectra_stride(spectra) * row_bytes; };
    const int64_t sources = best.source_rows * best.block_tile, results = best.row_block * best.block_tile;
    best.scratch_bytes = int64_t{4} * 64 + row_bytes + (weights ? 0 : bytes(sources) + bytes(results));
    best.weight_bytes = bytes(best.row_block * best.source_rows);
    best.signal_bytes = weights ? bytes(sources) + bytes(results) : 0;
    // As many as stay in the L2 cache from pass to pass.
    best.fewest_groups = std::clamp<int64_t>(cache.l2 / (best.weight_bytes + best.signal_bytes), 1, best.most_groups);
    return best;
  }
};

// exp(2 pi i * numerator / denominator)
struct Root {
  double re, im;
};
Root root(uint64_t numerator, uint64_t denominator) {
  const double angle = 2 * std::numbers::pi * double(numerator) / double(denominator);
  return {std::cos(angle), std::sin(angle)};
}

// The s of block b of `blocks`: the square root of the block's c = exp(2 pi i * n / (4 * blocks)), where n is 1 for the
// only block at first; its halves have c = s and c = -s.
Root block_root(int64_t blocks, int64_t b) {
  uint64_t numerator = 1;
  for (int64_t level = blocks / 2, denominator = 8; level > 0; level /= 2, denominator *= 2) {
    if (b & level) numerator += uint64_t(denominator) / 2;
  }
  return root(numerator, uint64_t(blocks) * 8);
}

int64_t fft_root_count(int64_t length, int64_t lanes) {
  const int64_t vectors = length / 2 / lanes;
  return 2 * vectors + vectors / lanes * (lanes - 1) * 2 * lanes;
}

template <class T>
void fill_fft_roots(int64_t length, int64_t lanes, T* roots) {
  const int64_t vectors = length / 2 / lanes;
  for (int64_t blocks = 1; blocks < vectors; blocks *= 2) {
    for (int64_t b = 0; b < blocks; ++b) {
      const Root s = block_root(blocks, b);
      roots[2 * (blocks + b)] = T(s.re);
      roots[2 * (blocks + b) + 1] = T(s.im);
    }
  }
  T* next = roots + 2 * vectors;
  for (int64_t group = 0; group < vectors / lanes; ++group) {
    for (int64_t parts = 1; parts < lanes; parts *= 2) {
      for (int64_t part = 0; part < parts; ++part, next += 2 * lanes) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const Root s = block_root(vectors * parts, (group * lanes + lane) * parts + part);
          next[lane] = T(s.re);
          next[lanes + lane] = T(s.im);
        }
      }
    }
  }
}

}  // namespace

FftPlan make_fft_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use) {
  return FftPlanner{op, problem, sizes, tile, cache, use}.plan();
}

template <class T>
const T* fft_roots(int64_t length, int64_t lanes) {
  static std::atomic<const T*> tables[8][64];  // by the logarithms of lanes and length
  std::atomic<const T*>& table = tables[std::bit_width(uint64_t(lanes))][std::bit_width(uint64_t(length))];
  if (const T* known = table.load(std::memory_order_acquire)) return known;
  constexpr std::align_val_t kLine{64};
  T* made = new (kLine) T[fft_root_count(length, lanes)]();
  fill_fft_roots(length, lanes, made);
  const T* other = nullptr;  // of a thread that was as early
  if (table.compare_exchange_strong(other, made, std::memory_order_acq_rel)) return made;
  operator delete[](made, kLine);
  return other;
}

template const float* fft_roots(int64_t, int64_t);
template const double* fft_roots(int64_t, int64_t);

}  // namespace conv1d_ext
