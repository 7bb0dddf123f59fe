// The arithmetic limit that benchmarks compare with: fused multiply-adds on registers alone.
#pragma once

namespace conv1d_ext {
namespace {

// Does `iterations` x kTileAccumulators FMAs on vectors of floats, of which none waits for the one before.
inline float run_fmas(int64_t iterations) {
  F32 acc[kTileAccumulators];
  for (int i = 0; i < kTileAccumulators; ++i) acc[i] = broadcast(float(i));
  const F32 a = broadcast(0.5f), b = broadcast(1.0f);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kTileAccumulators; ++i) acc[i] = fma(acc[i], a, b);
  }
  for (int i = 1; i < kTileAccumulators; ++i) acc[0] = add(acc[0], acc[i]);
  return sum(acc[0]);
}

}  // namespace
}  // namespace conv1d_ext
