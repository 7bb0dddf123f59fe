// Which algorithms the user allows besides the direct kernels.
#pragma once

#include "cpu/plans.h"

namespace conv1d_ext {

// The switches of this process, one for each family but Family::kDirect.
Use chosen_use(Family family);
void set_use(Family family, Use use);

// Whether errors of float32 may be some times those of direct sums.
bool reduced_precision();
void set_reduced_precision(bool allowed);

// By these switches; reduced precision also where torch.backends.mkldnn.conv.fp32_precision (or what it inherits from)
// is tf32 or bf16: its error is far below either's.
Uses allowed_uses();

}  // namespace conv1d_ext
