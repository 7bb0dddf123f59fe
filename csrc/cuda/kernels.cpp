// See kernels.h.
#include "cuda/kernels.h"

#include "cuda/run.h"

namespace conv1d_ext::cuda {
namespace {

Run* run_for(Type type) {
  switch (type) {
    case Type::kFloat64:
      return run_float64;
    case Type::kFloat32:
      return run_float32;
    case Type::kTf32:
      return run_tf32;
    case Type::kBFloat16:
      return run_bfloat16;
    case Type::kFloat16:
      return run_float16;
  }
  return nullptr;
}

}  // namespace

bool runs_on(const Device& device) {
  // Of sm_75 a block has 64 KiB of shared memory, the copies in the background are missing, and so are the matrix units
  // of these shapes.
  return device.capability >= 80;
}

bool fits(const Conv1dProblem& p) {
  constexpr int64_t kLimit = (1 << 30) - 2;  // twice a length is formed where it is reflected
  const int64_t padded = p.padding_left + p.in_length + p.padding_right;
  return padded < kLimit && p.kernel_size < kLimit && p.stride < kLimit && p.dilation < kLimit &&
         p.in_channels < kLimit && p.out_channels < kLimit;
}

int64_t workspace_bytes(
    Op op, Type type, const Conv1dProblem& problem, const Device& device, const Pointers& pointers,
    const Choice& choice) {
  return run_for(type)(op, problem, device, pointers, nullptr, nullptr, choice);
}

void run(
    Op op, Type type, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice) {
  alignas(16) static char none[16];  // not null: the kernels are to be launched, and need nothing
  run_for(type)(op, problem, device, pointers, workspace != nullptr ? workspace : none, stream, choice);
}

}  // namespace conv1d_ext::cuda
