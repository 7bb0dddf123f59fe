#include "cuda/run_inl.cuh"

namespace conv1d_ext::cuda {

int64_t run_float32(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice) {
  using Small = FmaUnits<float, 32, 128, 4, 4>;
  using Medium = FmaUnits<float, 64, 128, 8, 4>;
  using Large = FmaUnits<float, 128, 128, 8, 8>;
  return run_with<Small, Medium, Large>(op, problem, device, pointers, workspace, stream, choice);
}

}  // namespace conv1d_ext::cuda
