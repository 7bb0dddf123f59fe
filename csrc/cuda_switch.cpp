#include "cuda_switch.h"

#include <atomic>

namespace conv1d_ext {
namespace {

std::atomic<bool> enabled{true};
std::atomic<const CudaKernels*> registered{nullptr};

}  // namespace

bool cuda_enabled() { return enabled.load(std::memory_order_relaxed); }
void set_cuda_enabled(bool value) { enabled.store(value, std::memory_order_relaxed); }

const CudaKernels* cuda_kernels() { return registered; }
bool register_cuda_kernels(const CudaKernels& kernels) {
  registered = &kernels;
  return true;
}

}  // namespace conv1d_ext
