#include "cpu/plan.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "cpu/planner.h"

namespace conv1d_ext {
namespace {

// Of a larger L2 cache no more is used: scratch memory, much of which is sized by it, has to stay below 4 MiB, and on a
// CPU with 2 MB a core all of it gained nothing (geometric means of 1.00 over 40 layers, each operator).
constexpr int64_t kMostL2 = 1 << 20;

int64_t cache_size(int name, int64_t fallback) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : fallback;
}

bool made_by_amd() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

CacheSizes& chosen_cache_sizes() {
  static CacheSizes sizes{
      cache_size(_SC_LEVEL1_DCACHE_SIZE, CacheSizes{}.l1),
      std::min(cache_size(_SC_LEVEL2_CACHE_SIZE, CacheSizes{}.l2), kMostL2), made_by_amd()};
  return sizes;
}

}  // namespace

bool leaves_gaps(const Conv1dProblem& problem) {
  return std::min(problem.stride / std::gcd(problem.stride, problem.dilation), problem.kernel_size) < problem.stride;
}

const char* algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kPanel:
      return "panel";
    case Algorithm::kColumns:
      return "columns";
    case Algorithm::kDepthwise:
      return "depthwise";
    case Algorithm::kTaps:
      return "taps";
    case Algorithm::kDot:
      return "dot";
  }
  return "";
}

CacheSizes cache_sizes() { return chosen_cache_sizes(); }

void set_cache_sizes(CacheSizes sizes) { chosen_cache_sizes() = sizes; }

Plan make_plan(Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache) {
  const Planner planner{problem, sizes, tile, cache};
  if (const auto plan = depthwise_plan(op, planner)) return *plan;
  if (const auto plan = columns_plan(op, planner)) return *plan;
  if (const auto plan = taps_plan(op, planner)) return *plan;
  return op == Op::kBackwardWeight ? weight_plan(planner) : panel_plan(op, planner);
}

}  // namespace conv1d_ext
