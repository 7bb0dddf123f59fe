// What all launches of an operator share: the device, the stream, and the memory that is handed out to kernels.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace conv1d_ext::cuda {
namespace {

template <class T, class P>
Global<T> global(P* pointer) {
  return {static_cast<T*>(pointer)};
}

// Memory handed out piece by piece; without a beginning it only counts.
class Workspace {
 public:
  explicit Workspace(void* begin) : begin_(static_cast<char*>(begin)) {}
  void* take(int64_t bytes) {
    void* piece = begin_ == nullptr ? nullptr : begin_ + taken_;
    taken_ += (bytes + 15) / 16 * 16;
    most_ = std::max(most_, taken_);
    return piece;
  }
  // For kernels to come, which start after those that use it now.
  void give_back_to(int64_t mark) { taken_ = mark; }
  int64_t mark() const { return taken_; }
  int64_t most_taken() const { return most_; }

 private:
  char* begin_;
  int64_t taken_ = 0, most_ = 0;
};

bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

class Launcher {
 public:
  // Without a workspace nothing is launched; what would be taken of it is counted.
  Launcher(const Device& device, void* workspace, CUstream_st* stream)
      : device_(device),
        launches_(workspace != nullptr),
        workspace_(workspace),
        stream_{stream, device.capability >= 90} {}  // older code does not wait for the kernel before

  // Blocks take more than one part of the work where there are more parts than a launch may have blocks.
  int64_t grid(int64_t parts) const { return std::min(parts, device_.most_blocks); }

  void* take(int64_t bytes) { return workspace_.take(bytes); }
  const Stream& stream() const { return stream_; }

 protected:
  Device device_;
  bool launches_;
  Workspace workspace_;
  Stream stream_;
};

}  // namespace
}  // namespace conv1d_ext::cuda
