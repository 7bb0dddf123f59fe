#include "cpu/allowed.h"

#include <ATen/Context.h>

#include <atomic>

namespace conv1d_ext {
namespace {

std::atomic<Use>& use_of(Family family) {
  static std::atomic<Use> fft{Use::kWhereFaster}, toom_cook{Use::kWhereFaster}, amx{Use::kWhereFaster};
  return family == Family::kFft ? fft : family == Family::kToomCook ? toom_cook : amx;
}

std::atomic<bool> reduced_precision_allowed{false};

}  // namespace

Use chosen_use(Family family) { return use_of(family).load(std::memory_order_relaxed); }
void set_use(Family family, Use use) { use_of(family).store(use, std::memory_order_relaxed); }

bool reduced_precision() { return reduced_precision_allowed.load(std::memory_order_relaxed); }
void set_reduced_precision(bool allowed) { reduced_precision_allowed.store(allowed, std::memory_order_relaxed); }

Uses allowed_uses() {
  bool reduced = reduced_precision();
  if (!reduced) {
    const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::CONV);
    reduced = precision == at::Float32Precision::TF32 || precision == at::Float32Precision::BF16;
  }
  return {chosen_use(Family::kFft), chosen_use(Family::kToomCook), chosen_use(Family::kAmx), reduced};
}

}  // namespace conv1d_ext
