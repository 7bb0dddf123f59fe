#include "cuda/run_inl.cuh"

namespace conv1d_ext::cuda {

int64_t run_float64(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice) {
  using Small = FmaUnits<double, 32, 64, 4, 2>;
  using Medium = FmaUnits<double, 32, 128, 4, 4>;
  using Large = FmaUnits<double, 64, 128, 4, 8>;
  return run_with<Small, Medium, Large>(op, problem, device, pointers, workspace, stream, choice);
}

}  // namespace conv1d_ext::cuda
