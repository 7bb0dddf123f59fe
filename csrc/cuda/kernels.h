// The CUDA kernels, for a host that has pointers, memory and a stream. No torch: conv1d_cuda.cpp calls these with
// torch's, tests/emulator with a CPU's.
#pragma once

#include <cstdint>

#include "problem.h"

// As the runtime declares it; no header of CUDA's is needed to call the kernels.
struct CUstream_st;

namespace conv1d_ext::cuda {

enum class Op { kForward, kBackwardInput, kBackwardWeight, kBackwardBias };

// How numbers are stored and multiplied. All but float64 are added up in float32.
enum class Type {
  kFloat64,
  kFloat32,
  kTf32,  // stored as float32, multiplied by the matrix units with 10 bits of mantissa
  kBFloat16,
  kFloat16,
};

struct Device {
  int capability;                   // 10 * major + minor, of the code that runs there: no newer than the device
  int64_t shared_bytes;             // that a block may have, when it asks for them
  int64_t most_blocks = INT32_MAX;  // of a launch
};

// Whether the device has what the kernels need.
bool runs_on(const Device& device);

// Whether the problem's positions fit into the kernels' 32 bits; sizes and offsets of tensors have 64.
bool fits(const Conv1dProblem& problem);

// For tests: what is chosen by the sizes of the problem otherwise.
struct Choice {
  enum class Algorithm { kAny, kNarrow, kMatrix } algorithm = Algorithm::kAny;
  enum class Tile { kAny, kSmall, kMedium, kLarge } tile = Tile::kAny;
  enum class Staging { kAny, kWindow, kGather, kUnfold } staging = Staging::kAny;
};

struct Pointers {
  const void* signal;  // input; in backward_input and backward_bias: grad_output
  const void* factor;  // weight; in backward_weight: grad_output; in backward_bias: null
  const void* bias;    // [C_out], contiguous, or null; in forward alone
  void* result;
};

// Global memory that `run` needs for what it computes on the way, aligned to 16 bytes.
int64_t workspace_bytes(
    Op op, Type type, const Conv1dProblem& problem, const Device& device, const Pointers& pointers,
    const Choice& choice = {});

// Starts the kernels that compute `op`. Batch, channels and lengths are at least 1. Errors of launches are the CUDA
// runtime's last error.
void run(
    Op op, Type type, const Conv1dProblem& problem, const Device& device, const Pointers& pointers, void* workspace,
    CUstream_st* stream, const Choice& choice = {});

}  // namespace conv1d_ext::cuda
