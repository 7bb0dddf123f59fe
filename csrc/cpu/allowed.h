// Which algorithms the user allows besides the direct kernels.
#pragma once

#include "cpu/plans.h"

namespace conv1d_ext {

// By the switches of this process, and for Toom-Cook's also where torch.backends.mkldnn.conv.fp32_precision (or what it
// inherits from) is tf32 or bf16: its error is far below either's.
Uses allowed_uses();

}  // namespace conv1d_ext
