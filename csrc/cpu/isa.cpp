#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
// glibc has it, and declares it nowhere.
extern "C" int arch_prctl(int code, unsigned long address);
#endif

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace conv1d_ext {
namespace {

#if defined(__x86_64__)
constexpr bool kX86 = true;
// GCC 12's own check doesn't know it.
bool has_amx_bf16() {
  unsigned a, b, c, d;
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) != 0 && (d & kBf16) != 0;
}
// Linux gives a process the tile registers on request, since they are large to save.
bool may_use_tiles() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = arch_prctl(kRequestPermission, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}

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
    case Isa::kAmx:
      return cpu_has(Isa::kAvx512Bf16) && has_amx_bf16() && may_use_tiles();
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
        stderr, "conv1d_ext: CONV1D_EXT_ISA='%s' is not portable, avx2, avx512, avx512_bf16 or amx; using %s\n", wish,
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
    case Isa::kAmx:
      return "amx";
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
  if (isa == Isa::kAvx512Bf16 || isa == Isa::kAmx) {
    static const KernelTable bf16 = [] {
      KernelTable changed = avx512::kernel_table;
      changed.bfloat16 = avx512_bf16::bfloat16_kernels;
      return changed;
    }();
    static const KernelTable amx = [] {
      KernelTable changed = bf16;
      changed.float32.amx = amx::float32_kernels;
      changed.float32.sizes.pieces = 3;
      changed.bfloat16.amx = amx::bfloat16_kernels;
      changed.bfloat16.sizes.pieces = 1;
      return changed;
    }();
    return isa == Isa::kAmx ? amx : bf16;
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
