// One function for each type of numbers, each compiled from a file of its own. Without a workspace nothing is launched;
// the result is how large it has to be.
#pragma once

#include "cuda/kernels.h"

namespace conv1d_ext::cuda {

using Run = int64_t(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice);

Run run_float64, run_float32, run_tf32, run_bfloat16, run_float16;

}  // namespace conv1d_ext::cuda
