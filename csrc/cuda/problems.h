// From a Conv1dProblem to what the kernels solve, and from one such problem to another that has the same results. Plain
// functions of sizes, as those of plan.h; no CUDA.
#pragma once

#include "cuda/plan.h"

namespace conv1d_ext::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// What `fits` has seen to.
inline int to_int(int64_t size) { return static_cast<int>(size); }

Signal input_of(const Conv1dProblem& p);
// forward, or backward_input with the result a plain [N, C_in, L_in].
Correlation correlation(Op op, const Conv1dProblem& p);
OuterProduct outer_product(const Conv1dProblem& p);

// grad_output as a signal of which nothing but its own positions is read.
Signal grads_of(const OuterProduct& o);
// Of one tap, from each position of the signal to the same one of the result; rows and result are to be filled in.
Correlation pointwise(int64_t batch, int64_t groups, int64_t channels, const Signal& signal);
// What the tiles compute where pack_signal makes the pairs of channel and tap to channels: a pointwise convolution.
Correlation unfolded(Correlation c);

// The rows that a chunk of the columns of `c` reads, and the signal that they are. Unfolded, positions are columns.
SignalPacking packing_of(const Correlation& c, bool unfold, const Chunk& chunk, int row_channels);
PackedSignal packed_by(const SignalPacking& p, const Chunk& chunk, int row_channels);

}  // namespace conv1d_ext::cuda
