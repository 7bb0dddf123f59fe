#include "cpu/allowed.h"

#include <ATen/Context.h>

namespace conv1d_ext {

Uses allowed_uses() {
  Uses uses{fft_use(), toom_cook_use(), amx_use()};
  if (uses.toom_cook == Use::kNever) {
    const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::CONV);
    if (precision == at::Float32Precision::TF32 || precision == at::Float32Precision::BF16) {
      uses.toom_cook = Use::kWhereFaster;
    }
  }
  return uses;
}

}  // namespace conv1d_ext
