// The operators on plain pointers: a plan is made, or remembered, and its kernels run on torch's threads.
#pragma once

#include <c10/core/ScalarType.h>

#include "cpu/kernel_table.h"

namespace conv1d_ext {

// Those of a storage type, and the register tile of its arithmetic.
struct Kernels {
  const KernelSet& run;
  const TileShape& tile;
};

Kernels kernels_for(at::ScalarType real_type);

// By whichever algorithm is planned. `packed_weight` and `partial_sums` of the arguments are for these functions to
// set.
void run(const Kernels& kernels, const Conv1dProblem& problem, const ForwardArgs& args);
void run(const Kernels& kernels, const Conv1dProblem& problem, BackwardInputArgs args);
void run(const Kernels& kernels, const Conv1dProblem& problem, const BackwardWeightArgs& args);
void run(const Kernels& kernels, const Conv1dProblem& problem, const BackwardBiasArgs& args);

// By the direct kernels, which alone know problem.accumulate and problem.negate.
void run_direct(const Kernels& kernels, const Conv1dProblem& problem, ForwardArgs args);
void run_direct(const Kernels& kernels, const Conv1dProblem& problem, BackwardInputArgs args);
void run_direct(const Kernels& kernels, const Conv1dProblem& problem, BackwardWeightArgs args);

}  // namespace conv1d_ext
