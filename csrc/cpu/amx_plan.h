// When and how a convolution goes through the matrix unit of CPUs that have one, AMX: a pure function like plan.h.
//
// The unit multiplies tiles of bfloat16 and adds up in float. A float is the sum of three bfloat16, of 8 bits each:
// x = x0 + x1 + x2, and x * w is the sum of the six products xi * wj with i + j <= 2, but for some 2^-24 of it (Henry,
// Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019).
// Products are exact, so errors are those of direct sums in float, or below.
//
// In forward and backward_input, the sum over channels and taps is cut into steps of kAmxDepth products: so many
// channels of one tap, or, of fewer channels, all of them for a few taps.
#pragma once

#include "cpu/plan.h"

namespace conv1d_ext {

// A tile: rows of a matrix, its columns (numbers of 32 bits), and products in each sum of an instruction.
constexpr int64_t kAmxSide = 16, kAmxDepth = 32;

// Rows of results that are computed together: two tiles. The same number of columns is.
constexpr int64_t kAmxRows = 2 * kAmxSide;

struct AmxPlan {
  int64_t pieces;  // bfloat16 that an element is the sum of; 0 where another algorithm is taken

  int64_t step_taps;      // taps of a step
  int64_t channel_steps;  // steps for the channels of a tap
  int64_t tap_steps;      // steps, or rows of those, for the taps
  int64_t steps;          // in all: those of all taps for one step of the channels after the other
  int64_t chunk_steps;    // of the channels, whose products are in a panel at a time
  int64_t panel_phases;   // sets of positions for each step of the channels: step j of the taps reads j % panel_phases
  int64_t phase_shift;    // ... shifted by j / panel_phases * phase_shift positions

  int64_t position_block;  // positions of results in one panel and batch item, at most
  int64_t position_blocks;
  int64_t batch_block;  // batch items side by side in one panel
  int64_t item_pitch;   // elements from item to item of a row
  int64_t panel_width;  // positions of a panel, of kAmxDepth products each
  int64_t panel_piece;  // elements from piece to piece
  int64_t panel_elements;
  bool all_packed;       // weights, once for a pass; else by each thread, those of a tile and chunk at a time
  int64_t row_tiles;     // of kAmxRows result rows of a group
  int64_t pass_tiles;    // of all groups, whose weights, or sums of the chunks before, are held at a time
  int64_t sum_elements;  // those sums; backward_weight: of a block

  // backward_weight: products are of positions, rows are output channels and columns input channels, and steps are
  // those of a visit of positions.
  int64_t parities;             // 2 where there are taps an odd number of positions apart, in a phase
  int64_t in_block, out_block;  // channels of a work unit, at most
  int64_t grad_elements;
  int64_t reduction_chunks;  // of the sum over positions and batch
  int64_t partial_bytes;     // shared: their sums

  int64_t units;                // of work; forward and backward_input: for each row tile of a pass
  int64_t scratch_bytes;        // per thread
  int64_t packed_bytes;         // shared: weights of a pass, where all are packed
  double cycles, batch_cycles;  // as FftPlan's
};

// Input gradients of strides are gradients of stride 1, one for each class of taps (tap_classes_inl.h). Their plan is
// that of the first class, but for the estimates, which are of all.
struct AmxClass {
  Conv1dProblem problem;
  int64_t weight_offset, result_offset;  // elements
};
int64_t amx_classes(const Conv1dProblem& problem);
AmxClass amx_class(const Conv1dProblem& problem, int64_t tap_class);

AmxPlan make_amx_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use);

}  // namespace conv1d_ext
