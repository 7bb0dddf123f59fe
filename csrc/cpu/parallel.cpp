#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sys/mman.h>

namespace conv1d_ext {
namespace {

// A child of fork has none of its parent's OpenMP threads, but GNU's runtime would wait for them, forever, for torch's
// own operators as well. So the parent dismisses its threads before, and either starts new ones when it needs them.
[[maybe_unused]] const int fork_handler =
    pthread_atfork([] { omp_pause_resource_all(omp_pause_soft); }, nullptr, nullptr);

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t before = int64_t(-reinterpret_cast<uintptr_t>(data) % kHugePage);
  const int64_t pages = (bytes - before) / kHugePage;
  if (pages > 0) madvise(static_cast<char*>(data) + before, pages * kHugePage, MADV_HUGEPAGE);
#endif
}

at::DataPtr allocate(int64_t bytes) {
  at::DataPtr data = c10::GetCPUAllocator()->allocate(bytes);
  advise_huge_pages(data.get(), bytes);
  return data;
}

void* scratch_memory(int64_t bytes) {
  constexpr int64_t kKeptBytes = 4 << 20;
  thread_local at::DataPtr kept;
  thread_local int64_t size = 0;
  if (bytes > size || size > kKeptBytes) {
    kept.clear();
    size = 0;
    kept = c10::GetCPUAllocator()->allocate(bytes);
    size = bytes;
  }
  return kept.get();
}

}  // namespace conv1d_ext
