// Threads, and the memory of a call: how work units are dealt, and what the kernels write to besides their results.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdint>

namespace conv1d_ext {

// Of small pages the first touch costs more than many a convolution.
void advise_huge_pages(void* data, int64_t bytes);

// Memory for the duration of a call, in huge pages.
at::DataPtr allocate(int64_t bytes);

// Memory of a thread for the duration of a call, kept for its next one unless it is unusually large.
void* scratch_memory(int64_t bytes);

// Calls run(begin, end) for ranges that make up [0, units), on as many threads as torch may use and `work`, the
// multiply-adds of all units, is worth.
template <class Run>
void for_ranges(int64_t units, double work, const Run& run) {
  // Multiply-adds that outweigh waking a thread (a few microseconds, at some 20 a nanosecond).
  constexpr double kWorkPerThread = 1 << 17;
  const double range = work > 0 ? units * kWorkPerThread / work : 1;
  const int64_t grain = range < 1 ? 1 : int64_t(std::min(range, 0x1p62));
  if (units <= grain || at::get_num_threads() == 1) {
    if (units > 0) run(int64_t{0}, units);
    return;
  }
  at::parallel_for(0, units, grain, run);
}

}  // namespace conv1d_ext
