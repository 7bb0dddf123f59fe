// Which algorithm a problem gets, and its block sizes: a pure function of the problem, the element types, the tile of
// the instruction set and the cache. It knows nothing of threads, so results cannot depend on their number.
#pragma once

#include <cstddef>

#include "problem.h"

namespace conv1d_ext {

// The register tile of an instruction set: `rows` x (accumulators / rows) vectors of `lanes` elements.
struct TileShape {
  int64_t lanes, rows, accumulators;
};

// Where an algorithm is taken that the direct kernels can do without.
enum class Use {
  kNever,
  kWhereFaster,
  kWherePossible,  // for tests
};

enum class Op { kForward, kBackwardInput, kBackwardWeight };

enum class Algorithm {
  // Blocks of the input (or grad_output) are copied to a padded panel in the cache, split by phase modulo the stride,
  // so that every tap is a unit-stride read; the register tile runs over it.
  kPanel,
  // Outputs of a few positions, where the weights are the traffic: the inputs that each output position meets, or their
  // gradients, are laid out as one row [in_channel][tap], just as the weights are stored, and both are read along it.
  kColumns,
  // Depthwise layers: sums of shifted copies of a row (weight gradients: dot products with them), read where it is, or,
  // for strides, split by phase.
  kDepthwise,
  // Input gradients of few input channels: of a block of grad_output, read where it is, the products of all taps, which
  // are then shifted and added up.
  kTaps,
  // Weight gradients of few output channels, or of few weights for each: dot products along the positions.
  kDot,
};

// Copies of the weights in the order of their use, tile by tile, in the accumulation type.
enum class PackWeight {
  kNo,     // read where they are: by few tiles of columns
  kTiles,  // by each thread, a few tiles at a time, for every panel
  kAll,    // once per call, all of them, or those of a pass
};

const char* algorithm_name(Algorithm algorithm);

// The batch that estimates are for, besides 1, where a choice must not depend on the layer's own.
constexpr int64_t kTypicalBatch = 16;

struct Plan {
  Algorithm algorithm;
  int64_t batch_block;     // batch items side by side in one panel
  int64_t position_block;  // positions per panel and batch item
  int64_t out_block;       // output channels per block of results
  int64_t channel_block;   // channels per panel; pairs that are multiplied together count as one
  int64_t part_channels;   // channels per part of a sum; channel_block is a multiple, so that blocks change no result
  int64_t tap_block;       // taps per panel
  int64_t panel_phases;    // rows of the panel per channel: tap k reads row k % panel_phases, shifted
  int64_t phase_shift;     // ... by k / panel_phases * phase_shift positions
  int64_t panel_stride;    // positions from element to element of a row
  int64_t panel_width;     // elements from row to row
  int64_t item_pitch;      // elements from batch item to batch item in a row
  PackWeight pack_weight;
  int64_t pack_tiles;        // tiles whose weights are packed together
  bool in_place;             // forward and backward_input: rows are read where they lie, where no padding comes in
  bool fetch_rows;           // rows that are read next are fetched meanwhile
  bool direct;               // sums are kept in the result itself, not in scratch memory
  int64_t reduction_block;   // backward_weight: positions between two visits of a sum, at most
  int64_t reduction_chunks;  // backward_weight: parts of the sum over batch and positions, summed up at the end

  // Scratch memory of a thread, in elements of the accumulation type.
  int64_t panel_elements;   // the panel, or the columns
  int64_t weight_elements;  // a tile's weights in the order of their use; backward_weight: grad_output, transposed
  int64_t result_elements;
  int64_t step_table;  // entries of each table of offsets: the most steps that a part of a sum has; kDepthwise: runs of
                       // taps

  int64_t position_blocks, out_tiles;  // factors of `units`
  int64_t pass_tiles;                  // of out_tiles, in one pass over all positions
  int64_t units;                       // of work, to be dealt to the threads in contiguous ranges
  int64_t edge_units;                  // of the second pass of backward_input
  int64_t scratch_bytes;               // per thread, all of the above and the tables of offsets
  int64_t partial_bytes;               // shared, for partial sums
  int64_t packed_bytes;                // shared, for PackWeight::kAll
};

// Products in one part of a sum, about. The rounding errors of a part grow with its length: with 256 of them those of
// outputs were up to 2.5 times torch's, with 128 up to 1.8 times, at the price of 2 % of the time
// (benchmarks/NOTES.md).
constexpr int64_t kLongestPart = 128;

// Elements that packing a tile's weights may write behind them, and tiles that are packed together at most.
constexpr int64_t kPackSlack = 8, kMostPackTiles = 32;

// Phases, or classes of taps, of the strides that kDepthwise takes, at most: many phases next to each other are better
// transposed to a panel.
constexpr int64_t kMostPhases = 7;

// Columns of outputs side by side, at most, and output channels in a work unit of theirs: a multiple of the rows of all
// tiles of dot products.
constexpr int64_t kMostColumns = 48, kColumnRows = 12;

// Input channels in a work unit of the input gradient by columns: whole cache lines of weights of every type.
constexpr int64_t kColumnChannels = 32;

// Whether backward_input leaves input positions that no output meets, as strides beyond the kernel do. They are the
// caller's to clear.
bool leaves_gaps(const Conv1dProblem& problem);

struct ElementSizes {
  int64_t storage, accumulate;  // bytes
  // Channels of the sum in one element of a panel or of packed weights: 2 for bfloat16 where the CPU multiplies pairs.
  int64_t pair;
  // bfloat16 that a matrix unit takes an element for the sum of; 0 where there is none, or it has no such elements.
  int64_t pieces = 0;
};

struct CacheSizes {
  int64_t l1 = 32 << 10, l2 = 1 << 20;  // data bytes per core
  bool amd = false;                     // whose cores they are
};
CacheSizes cache_sizes();                // of this machine, as far as plans use them; read once
void set_cache_sizes(CacheSizes sizes);  // for tests, of blocks that real caches would only need for large problems

// Whether a core multiplies two vectors of 512 bits a clock: a guess, from the 48 KB of L1 cache that most of those
// have. Beside its multiplications, loads and copies weigh more.
inline bool wide_cores(const CacheSizes& cache) { return cache.l1 > 32 << 10; }
// Of those Intel's (Golden Cove was measured) gain by a panel where AMD's (Zen 5) read as fast what lies far apart.
inline bool wide_intel_cores(const CacheSizes& cache) { return wide_cores(cache) && !cache.amd; }

Plan make_plan(Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache);

}  // namespace conv1d_ext
