#include "cpu/isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace conv1d_ext {
namespace {

#if defined(__x86_64__)
constexpr bool kX86 = true;
// libgcc checks cpuid and, through xgetbv, that the operating system saves the wide registers.
bool cpu_has(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx512Bf16:
      return cpu_has(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}
#else
constexpr bool kX86 = false;
bool cpu_has(Isa isa) { return isa == Isa::kPortable; }
#endif

Isa choose_isa() {
  Isa best = Isa::kPortable;
  for (Isa isa : kAllIsas) {
    if (isa_supported(isa)) best = isa;
  }
  const char* wish = std::getenv("CONV1D_EXT_ISA");  // NOLINT(concurrency-mt-unsafe): once, as torch does
  if (wish == nullptr || *wish == '\0') return best;
  Isa isa;
  if (!parse_isa(wish, &isa)) {
    std::fprintf(
        stderr, "conv1d_ext: CONV1D_EXT_ISA='%s' is not portable, avx2, avx512 or avx512_bf16; using %s\n", wish,
        isa_name(best));
  } else if (!isa_supported(isa)) {
    std::fprintf(stderr, "conv1d_ext: this CPU or build has no %s; using %s\n", wish, isa_name(best));
  } else {
    best = isa;
  }
  return best;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{choose_isa()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

bool parse_isa(std::string_view name, Isa* isa) {
  for (Isa candidate : kAllIsas) {
    if (name == isa_name(candidate)) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

bool isa_supported(Isa isa) { return (kX86 || isa == Isa::kPortable) && cpu_has(isa); }

Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

bool set_isa(Isa isa) {
  if (!isa_supported(isa)) return false;
  chosen_isa().store(isa, std::memory_order_relaxed);
  return true;
}

const KernelTable& kernel_table(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16) {
    static const KernelTable table = [] {
      KernelTable changed = avx512::kernel_table;
      changed.bfloat16 = avx512_bf16::bfloat16_kernels;
      return changed;
    }();
    return table;
  }
  if (isa == Isa::kAvx512) return avx512::kernel_table;
  if (isa == Isa::kAvx2) return avx2::kernel_table;
#else
  (void)isa;
#endif
  return portable::kernel_table;
}

const KernelTable& kernel_table() { return kernel_table(current_isa()); }

}  // namespace conv1d_ext
