// Whether CUDA tensors go to this package's CUDA kernels, and what is known of these above the backends: nothing, where
// they were not built.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace conv1d_ext {

// conv1d_ext.backends.cuda.enabled; for all threads.
bool cuda_enabled();
void set_cuda_enabled(bool enabled);

struct CudaKernels {
  const char* architectures;  // as nvcc names them, with blanks between: sm_80 sm_90 compute_90
  // The arithmetic, by name, that operands of this type get at this time on a GPU of this compute capability
  // (10 * major + minor) and so much shared memory for a block; nullptr where torch's operator serves them.
  const char* (*arithmetic)(at::ScalarType type, int capability, int64_t shared_bytes);
};

// nullptr where they were not built.
const CudaKernels* cuda_kernels();
// For csrc/cuda/, when the library is loaded.
bool register_cuda_kernels(const CudaKernels& kernels);

}  // namespace conv1d_ext
