// csrc/cuda/device.cuh for g++: the same names, on an emulated GPU (machine.h) that checks every access.
#pragma once

#include <bit>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "machine.h"
#include "numbers.h"
#include "problem.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct CUstream_st;

namespace conv1d_ext::cuda {

struct Stream {
  CUstream_st* handle;
  bool starts_early;
};

struct Tf32 {
  float value;
};

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <class T>
struct Global {
  T* data;
  std::remove_const_t<T> load(int64_t i) const {
    emulator::read_global(address(i), sizeof(T), alignof(T));
    return *reinterpret_cast<T*>(address(i));
  }
  void store(int64_t i, T value) const {
    emulator::write_global(address(i), sizeof(T), alignof(T));
    *reinterpret_cast<T*>(address(i)) = value;
  }
  template <int N>
  Pack<std::remove_const_t<T>, N> load_pack(int64_t i) const {
    using Values = Pack<std::remove_const_t<T>, N>;
    emulator::read_global(address(i), sizeof(Values), alignof(Values));
    return *reinterpret_cast<const Values*>(address(i));
  }
  template <int N>
  void store_pack(int64_t i, Pack<T, N> values) const {
    emulator::write_global(address(i), sizeof(values), alignof(Pack<T, N>));
    *reinterpret_cast<Pack<T, N>*>(address(i)) = values;
  }
  Global<T> from(int64_t i) const { return {reinterpret_cast<T*>(address(i))}; }
  bool is_null() const { return data == nullptr; }

  // Also of what is outside of all memory.
  uintptr_t address(int64_t i) const {
    return reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(i) * sizeof(T);
  }
};

struct Shared {
  int64_t start;  // in the block's memory
  template <class T>
  T load(int byte) const {
    return emulator::load_shared<T>(start + byte);
  }
  template <class T>
  void store(int byte, T value) const {
    emulator::store_shared(start + byte, value);
  }
  Shared from(int byte) const { return {start + byte}; }
};

inline Shared shared_memory() { return {0}; }

inline int thread_index() { return emulator::machine.thread; }
inline int64_t block_index() { return emulator::machine.block; }
inline int64_t block_count() { return emulator::machine.blocks; }

inline void sync_block() { emulator::meet(emulator::sync_block); }
inline void sync_warp() { emulator::meet(emulator::sync_warp); }

inline void wait_for_earlier_kernels() {}

inline float shuffle_xor(float value, int mask) {
  emulator::Shuffle<float> lane{value, 0, mask};
  emulator::meet(emulator::shuffle_float, &lane);
  return lane.result;
}
inline double shuffle_xor(double value, int mask) {
  emulator::Shuffle<double> lane{value, 0, mask};
  emulator::meet(emulator::shuffle_double, &lane);
  return lane.result;
}

template <class T>
inline void copy_async(Shared to, int byte, Global<T> from, int64_t i, bool valid) {
  emulator::start_copy(to.start + byte, from.address(i), 16, valid);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int kPending>
inline void wait_copies() {
  emulator::wait_copies(kPending);
}

inline void load_matrices(uint32_t (&result)[4], Shared from, int byte) {
  emulator::Matrices lane{result, from.start + byte};
  emulator::meet(emulator::load_matrices, &lane);
}
inline void load_matrices_transposed(uint32_t (&result)[4], Shared from, int byte) {
  emulator::Matrices lane{result, from.start + byte};
  emulator::meet(emulator::load_matrices_transposed, &lane);
}

template <class T>
inline void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Product lane{sum, a, {b0, b1}};
  if constexpr (std::is_same_v<T, BFloat16>) {
    emulator::meet(emulator::multiply_bfloat16, &lane);
  } else if constexpr (std::is_same_v<T, Float16>) {
    emulator::meet(emulator::multiply_float16, &lane);
  } else {
    static_assert(std::is_same_v<T, Tf32>);
    emulator::meet(emulator::multiply_tf32, &lane);
  }
}

inline uint32_t forget(uint32_t value) { return value; }
inline uint32_t float_to_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline float bits_to_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t round_to_tf32(uint32_t bits) { return emulator::round_to_tf32(bits); }

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return emulator::bfloat16_to_float(x.bits); }
inline float widen(Float16 x) { return emulator::float16_to_float(x.bits); }
template <class T, class Wide>
inline T narrow(Wide x) {
  if constexpr (sizeof(T) != 2) {
    return x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {emulator::float_to_bfloat16(x)};
  } else {
    return {emulator::float_to_float16(x)};
  }
}

constexpr int kThreadsPerSm = 1536;

template <int kThreads, class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int shared_bytes, const Stream&, const Args&... args) {
  static_assert(kThreads > 0 && kThreads % emulator::kWarp == 0 && kThreads <= emulator::kMostThreads);
  static_assert((sizeof(Params) + ... + 0) <= 4096, "more parameters than a kernel may have");
  if (blocks == 0) return;
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  };
  const Call call{kernel, {args...}};
  const auto body = [](const void* call) {
    std::apply(static_cast<const Call*>(call)->kernel, static_cast<const Call*>(call)->params);
  };
  emulator::launch(body, &call, blocks, kThreads, shared_bytes);
}

}  // namespace conv1d_ext::cuda
