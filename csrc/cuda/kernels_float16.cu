#include "cuda/run_inl.cuh"

namespace conv1d_ext::cuda {

int64_t run_float16(
    Op op, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice) {
  using Small = MatrixUnits<Float16, 32, 128>;
  using Medium = MatrixUnits<Float16, 64, 128>;
  using Large = MatrixUnits<Float16, 128, 128>;
  return run_with<Small, Medium, Large>(op, problem, device, pointers, workspace, stream, choice);
}

}  // namespace conv1d_ext::cuda
