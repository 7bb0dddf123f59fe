// The operators by another algorithm than the direct one: the Fourier transform, Toom-Cook's, the matrix unit.
#pragma once

#include <vector>

#include "cpu/plans.h"
#include "cpu/run.h"

namespace conv1d_ext {

// Returns the alarms, one for each batch item, of backward_weight one: where they are not 0, results may be wrong, and
// are for the direct kernels to compute again. Padding modes: backward_input is without the padding's share.
std::vector<uint8_t> run_indirect(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const Plans& plans, const Operands& operands);

}  // namespace conv1d_ext
