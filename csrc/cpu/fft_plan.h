// When and how a convolution goes through the discrete Fourier transform (fft_inl.h): a pure function like plan.h, and
// the tables that the transforms need.
//
// In blocks: a transform of N numbers of a row and the transform of a kernel of J taps multiply to N - J + 1 sums that
// nothing has wrapped into. Strides and dilation are taken apart first, so that taps are neighbours. A row of the input
// is, where the layer has a stride, `stride` rows, one for each residue of the position, with every stride-th tap each
// and one sum for all of them; where it has a dilation, `dilation` rows of layers of their own, with all taps. A layer
// that has both is left to the direct kernels.
#pragma once

#include "cpu/plan.h"

namespace conv1d_ext {

struct FftPlan {
  int64_t length;       // N: real numbers in a transform; 0 where the direct kernels are taken
  int64_t taps;         // J: of a row
  int64_t source_rows;  // in a group: what is summed over. backward_weight: rows of the input
  int64_t result_rows;  // in a group. backward_weight: of grad_output
  int64_t phases;       // layers of their own: the dilation
  int64_t step;         // positions of the input from element to element of a row
  int64_t first;        // the element of a row that the first block begins with
  int64_t elements;     // of a row, in all blocks
  int64_t block;        // new elements in a transform: N - J + 1
  int64_t blocks;       // in a row
  // Groups whose spectra are held at a time: the fewest that are worth a pass, and the most that memory allows. In
  // between it is the number of threads that decides, since it changes no result.
  int64_t fewest_groups, most_groups;
  int64_t row_block;       // result rows of a group whose spectra of weights are held at a time
  int64_t block_tile;      // blocks that are multiplied together; backward_weight: whose spectra are held at a time
  int64_t scratch_bytes;   // per thread
  int64_t weight_bytes;    // shared, for each group held: spectra of weights, or of their gradients
  int64_t signal_bytes;    // shared, for each group held, backward_weight: spectra of input and grad_output
  double multiplications;  // of real numbers, in all; the direct method has one for each tap
  double cycles;           // as estimated, of vector FMAs at the peak; alone, or for backward_weight's batch
  double batch_cycles;     // the same of kTypicalBatch, or for backward_weight's batch
};

FftPlan make_fft_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use);

// The table for transforms of `length` numbers with vectors of `lanes`: the roots s of fft_inl.h. First those of blocks
// of at least two vectors, at 2 * (blocks + b) for block b of so many; then, for each group of `lanes` blocks of one
// vector, the vectors of roots of each level below. Made once for the whole process.
template <class T>
const T* fft_roots(int64_t length, int64_t lanes);

}  // namespace conv1d_ext
