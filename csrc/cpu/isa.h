// Which instruction set the kernels use. The word is at once file suffix, namespace, enum value and the value of the
// environment variable CONV1D_EXT_ISA, which caps the choice ("avx2" on an AVX-512 machine, say).
#pragma once

#include <string_view>

#include "cpu/kernel_table.h"

namespace conv1d_ext {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

inline constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

const char* isa_name(Isa isa);
bool parse_isa(std::string_view name, Isa* isa);

// Built into this binary, and the CPU and the operating system have it.
bool isa_supported(Isa isa);

// The best supported one, or CONV1D_EXT_ISA if that is lower. Decided at the first call.
Isa current_isa();

// For tests and comparisons: false, and no change, where `isa` is not supported. Not to be called while kernels run.
bool set_isa(Isa isa);

// The kernels of an instruction set, and those in use.
const KernelTable& kernel_table(Isa isa);
const KernelTable& kernel_table();

}  // namespace conv1d_ext
