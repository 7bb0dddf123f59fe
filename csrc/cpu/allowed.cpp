#include "cpu/allowed.h"

#include <ATen/Context.h>

#include <atomic>

namespace conv1d_ext {
namespace {

std::atomic<Use>& use_of(Family family) {
  static std::atomic<Use> fft{Use::kWhereFaster}, toom_cook{Use::kNever}, amx{Use::kWhereFaster};
  return family == Family::kFft ? fft : family == Family::kToomCook ? toom_cook : amx;
}

}  // namespace

Use chosen_use(Family family) { return use_of(family).load(std::memory_order_relaxed); }
void set_use(Family family, Use use) { use_of(family).store(use, std::memory_order_relaxed); }

Uses allowed_uses() {
  Uses uses{chosen_use(Family::kFft), chosen_use(Family::kToomCook), chosen_use(Family::kAmx)};
  if (uses.toom_cook == Use::kNever) {
    const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::CONV);
    if (precision == at::Float32Precision::TF32 || precision == at::Float32Precision::BF16) {
      uses.toom_cook = Use::kWhereFaster;
    }
  }
  return uses;
}

}  // namespace conv1d_ext
