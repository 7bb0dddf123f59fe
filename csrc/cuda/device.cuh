// What the kernels say to the GPU, as vec_*.h is for the CPU: memory, copies, barriers, matrix units. Kernels use this
// vocabulary and plain C++ alone, so that tests/emulator, which has a file of the same name, runs them on a CPU and
// checks every access. No torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "problem.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the CUDA kernels need compute capability 8.0 or newer: see TORCH_CUDA_ARCH_LIST"
#endif

namespace conv1d_ext::cuda {

struct Stream {
  cudaStream_t handle;
  bool starts_early;  // kernels, beside the last blocks of the one before
};

struct Tf32 {  // a float of which the matrix units read 10 bits of mantissa
  float value;
};

// N values that are moved as one, aligned to their size: of 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

// Global memory, from an element of it on.
template <class T>
struct Global {
  T* data;
  __device__ T load(int64_t i) const { return data[i]; }
  __device__ void store(int64_t i, T value) const { data[i] = value; }
  // N elements as one, element i aligned to all their bytes; of 16-bit numbers the compiler would move parts.
  template <int N>
  __device__ Pack<std::remove_const_t<T>, N> load_pack(int64_t i) const {
    using Values = Pack<std::remove_const_t<T>, N>;
    if constexpr (sizeof(Values) == 16) {
      return __builtin_bit_cast(Values, *reinterpret_cast<const uint4*>(data + i));
    } else {
      return *reinterpret_cast<const Values*>(data + i);
    }
  }
  template <int N>
  __device__ void store_pack(int64_t i, Pack<T, N> values) const {
    if constexpr (sizeof(values) == 16) {
      const auto words = __builtin_bit_cast(uint4, values);
      asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(data + i), "r"(words.x), "r"(words.y), "r"(words.z),
                   "r"(words.w)
                   : "memory");
    } else {
      *reinterpret_cast<Pack<T, N>*>(data + i) = values;
    }
  }
  __host__ __device__ Global<T> from(int64_t i) const { return {data + i}; }
  __device__ bool is_null() const { return data == nullptr; }
};

// The block's shared memory, from a byte on. Nothing is in there until it is written.
struct Shared {
  char* data;
  template <class T>
  __device__ T load(int byte) const {
    return *reinterpret_cast<const T*>(data + byte);
  }
  template <class T>
  __device__ void store(int byte, T value) const {
    *reinterpret_cast<T*>(data + byte) = value;
  }
  __device__ Shared from(int byte) const { return {data + byte}; }
};

__device__ inline Shared shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return {memory};
}

__device__ inline int thread_index() { return threadIdx.x; }
__device__ inline int64_t block_index() { return blockIdx.x; }
__device__ inline int64_t block_count() { return gridDim.x; }

// Barriers: for all threads of the block, for the 32 of a warp.
__device__ inline void sync_block() { __syncthreads(); }
__device__ inline void sync_warp() { __syncwarp(); }

// What every kernel begins with: where `launch` has let it start early, beside the last blocks of the kernel before, it
// waits here until that has ended and its results are in memory.
__device__ inline void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The value of the lane whose number differs in the bits of `mask`; called by all lanes.
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ inline double shuffle_xor(double value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

// Starts to copy 16 bytes, aligned to them on both sides, to shared memory, past the L1 cache; zeros, without reading
// anything, where not `valid`. A thread's copies since its last commit_copies form a group. wait_copies waits for all
// but the thread's last kPending groups; what other threads copied is there after a barrier besides.
template <class T>
__device__ inline void copy_async(Shared to, int byte, Global<T> from, int64_t i, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to.data + byte));
  const int bytes_read = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from.data + i), "r"(bytes_read)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The value, of which the compiler no longer knows whence it comes: what was computed from it before is computed again
// from the result, rather than kept in registers all the while.
__device__ inline uint32_t forget(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Four matrices of 8 rows of 16 bytes. Lane l gives the place of row l % 8 of matrix l / 8, and gets of each matrix the
// 4 bytes at row l / 4, column l % 4; transposed, of 16-bit numbers: those of rows 2 (l % 4) and one further, column
// l / 4. Called by all lanes.
__device__ inline void load_matrices(uint32_t (&result)[4], Shared from, int byte) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from.data + byte));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&result)[4], Shared from, int byte) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from.data + byte));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
}

// sum[16 x 8] += a[16 x 32 bytes] * b[32 bytes x 8] by a warp on its matrix units, in the lanes' layout of PTX's
// mma.m16n8k16 (16-bit numbers, two to a register) and m16n8k8 (TF32). With g = lane / 4 and i = lane % 4:
//   sum  0: [g][2i]  1: [g][2i+1]  2: [g+8][2i]  3: [g+8][2i+1]
//   a    0: [g][i]   1: [g+8][i]   2: [g][i+4]   3: [g+8][i+4]     in columns of 4 bytes
//   b    0: [i][g]   1: [i+4][g]                                   in rows of 4 bytes
template <class T>
__device__ inline void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define CONV1D_EXT_MMA(instruction)                                                                               \
  asm volatile("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <>
__device__ inline void multiply_matrices<BFloat16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CONV1D_EXT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ inline void multiply_matrices<Float16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CONV1D_EXT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
__device__ inline void multiply_matrices<Tf32>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  CONV1D_EXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef CONV1D_EXT_MMA

// A float's bits rounded to TF32: to nearest, ties away from zero.
__device__ inline uint32_t round_to_tf32(uint32_t bits) {
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(bits)));
  return bits;
}

__device__ inline uint32_t float_to_bits(float value) { return __float_as_uint(value); }
__device__ inline float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }

// Between storage and arithmetic; to nearest, ties to even.
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T, class Wide>
__device__ inline T narrow(Wide x) {
  if constexpr (sizeof(T) != 2) {
    return x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return {__half_as_ushort(__float2half_rn(x))};
  }
}

constexpr int kThreadsPerSm = 1536;  // for which every multiprocessor has room; some have more

// Starts `kernel` on so many blocks (at most 2^31 - 1) of kThreads threads. What goes wrong is the runtime's last
// error.
template <int kThreads, class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, int shared_bytes, const Stream& stream, const Args&... args) {
  if (blocks == 0) return;
  constexpr int kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.handle;
  config.attrs = &early;
  config.numAttrs = stream.starts_early ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

}  // namespace conv1d_ext::cuda
