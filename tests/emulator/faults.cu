// Small kernels that are right, and the same ones with a fault, for tests/test_emulator.py to see told apart.
#include <cstring>
#include <exception>
#include <map>
#include <string>

#include "cuda/device.cuh"

namespace conv1d_ext::cuda {
namespace {

using Float4 = Pack<float, 4>;

struct Data {
  Global<const float> input;
  int64_t inputs;
  Global<float> result;
  int64_t results;
};

// Each block of 64 reverses its part: what a thread reads, another one wrote.
template <bool kBarrier, bool kWarpBarrierOnly = false>
__global__ void reverse(Data data) {
  const Shared shared = shared_memory();
  const int64_t start = block_index() * 64;
  const int i = thread_index();
  shared.store(4 * i, data.input.load(start + i));
  if (kBarrier) sync_block();
  if (kWarpBarrierOnly) sync_warp();
  data.result.store(start + i, shared.load<float>(4 * (63 - i)));
}

// Twice, in the same memory: the second time what is there may not have been read yet.
template <bool kBarrier>
__global__ void reverse_twice(Data data) {
  const Shared shared = shared_memory();
  const int i = thread_index();
  float value = data.input.load(i);
  for (int round = 0; round < 2; ++round) {
    shared.store(4 * i, value);
    sync_block();
    value = shared.load<float>(4 * (63 - i));
    if (kBarrier) sync_block();
  }
  data.result.store(i, value);
}

// The same within a warp, for which a warp's barrier suffices; between warps 0 and 1 where `kAcross`.
template <bool kBarrier, bool kAcross>
__global__ void reverse_warp(Data data) {
  const Shared shared = shared_memory();
  const int i = thread_index();
  for (int round = 0; round < 3; ++round) {
    shared.store(4 * i, data.input.load(i));
    if (kBarrier) sync_warp();
    const float value = shared.load<float>(4 * (i ^ (kAcross ? 63 : 31)));
    if (round == 2) data.result.store(i, value);
    if (kBarrier) sync_warp();
  }
}

// Threads next to each other write 16-bit numbers into one word, and all read all: none of it is a race.
__global__ void share_words(Data data) {
  const Shared shared = shared_memory();
  shared.store<uint16_t>(2 * thread_index(), thread_index());
  sync_block();
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += shared.load<uint16_t>(2 * i);
  sync_block();
  shared.store<uint16_t>(2 * (63 - thread_index()), 0);
  data.result.store(thread_index(), sum);
}

// Reads by some, then a write with no barrier but a warp's between.
template <int kReaders, int kWriter>
__global__ void write_after_read(Data data) {
  const Shared shared = shared_memory();
  const int i = thread_index();
  if (i == 0) shared.store(0, 1.0f);
  sync_block();
  const float value = i < kReaders ? shared.load<float>(0) : 0;
  sync_warp();
  if (i == kWriter) shared.store(0, 2.0f);
  data.result.store(i, value);
}

template <class Condition>
__device__ void sync_block_if(Condition condition) {
  if (condition(thread_index())) sync_block();
}
__global__ void barrier_of_some_lanes(Data) {
  sync_block_if([](int i) { return i != 40; });
}
__global__ void barrier_of_some_warps(Data) {
  sync_block_if([](int i) { return i < 32; });
}
__global__ void barriers_of_two_kinds(Data) { thread_index() == 5 ? sync_warp() : sync_block(); }
__global__ void shuffle_of_some(Data data) {
  if (thread_index() < 31) data.result.store(thread_index(), shuffle_xor(1.0f, 1));
}

template <int kSlack>
__global__ void double_all(Data data) {
  const int64_t i = block_index() * 64 + thread_index();
  if (i < data.results + kSlack) data.result.store(i, 2 * data.input.load(i));
}
__global__ void read_before(Data data) { data.result.store(0, data.input.load(-1)); }
__global__ void read_null(Data) { Global<const float>{nullptr}.load(0); }
__global__ void write_input(Data data) { Global<float>{const_cast<float*>(data.input.data)}.store(0, 0); }
__global__ void read_result(Data data) { data.result.store(1, data.result.load(0)); }
__global__ void write_twice(Data data) { data.result.store(block_index() / 2, 1); }
__global__ void read_others(Data data) {
  const int64_t i = block_index();
  if (thread_index() != 0) return;
  data.result.store(i, i);
  if (i > 0) data.result.load(i - 1);
}
__global__ void write_what_others_read(Data data) {
  const int64_t i = block_index();
  if (thread_index() == 0) i == 0 ? void(data.result.load(1)) : data.result.store(i, 0);
}
__global__ void fill(Data data) { data.result.store(block_index() * 64 + thread_index(), 1); }

__global__ void read_shared_unwritten(Data) {
  const Shared shared = shared_memory();
  if (thread_index() < 63) shared.store(4 * thread_index(), 0.0f);
  sync_block();
  shared.load<float>(4 * thread_index());
}
__global__ void read_shared_of_last_block(Data) {
  if (block_index() == 0) shared_memory().store(4 * thread_index(), 0.0f);
  sync_block();
  shared_memory().load<float>(4 * thread_index());
}
__global__ void read_shared_beyond(Data) {
  shared_memory().store(4 * thread_index(), 0.0f);
  sync_block();
  shared_memory().load<float>(4 * thread_index() + 4);
}
__global__ void write_shared_before(Data) { shared_memory().from(-4).store(4 * thread_index(), 0.0f); }
__global__ void misaligned_shared(Data) { shared_memory().store(8, Float4{}); }
__global__ void misaligned_global(Data data) {
  Global<const Float4>{reinterpret_cast<const Float4*>(data.input.from(1).data)}.load(0);
}

// Copies of 16 bytes, two stages under way: a block sums what its threads copied.
enum class CopyFault { kNone, kWait, kEarly, kNoBarrier, kNoWaitAtEnd, kNoCommit, kOverwrite, kTail };
template <CopyFault kFault>
__global__ void sum_stages(Data data) {
  using enum CopyFault;
  const Shared shared = shared_memory();
  const int i = thread_index();
  const int64_t stages = data.inputs / 256 + (data.inputs % 256 != 0);
  const auto start_copy = [&](int64_t stage) {
    const int64_t from = stage * 256 + 4 * i;
    const bool valid = kFault == kTail || from + 4 <= data.inputs;
    if (stage < stages) copy_async(shared, (stage % 2 * 64 + i) * 16, data.input, from, valid);
    if (kFault != kNoCommit) commit_copies();
  };
  float sum = 0;
  start_copy(0);
  for (int64_t stage = 0; stage < stages; ++stage) {
    start_copy(stage + 1);
    if (kFault == kEarly) {
      wait_copies<2>();
    } else if (kFault != kWait) {
      wait_copies<1>();
    }
    if (kFault != kNoBarrier) sync_block();
    const Float4 values = shared.load<Float4>(static_cast<int>((stage % 2 * 64 + (63 - i)) * 16));
    sum += values.at[0] + values.at[1] + values.at[2] + values.at[3];
    if (kFault == kOverwrite) continue;
    if (kFault == kNoWaitAtEnd && stage == 0) break;
    sync_block();
  }
  data.result.store(i, sum);
}

// result[16 x 8 n] = a[16 x k] * b[k x 8 n], a row by row and b column by column or row by row, in shared memory as T.
// A warp per 8 columns; b's fragments come from rows of b where `kTransposed`.
template <class T, bool kTransposed, int kColumnOfB = 0>
__global__ void multiply(Data data, int depth) {
  constexpr int kSize = sizeof(T), kStep = 32 / kSize;
  const Shared a = shared_memory(), b = a.from(16 * depth * kSize);
  const int columns = static_cast<int>(data.results) / 16, lane = thread_index() % 32, column = thread_index() / 32 * 8;
  const auto store = [](Shared to, int i, float value) {
    if constexpr (kSize == 2) {
      to.store(2 * i, narrow<T>(value));
    } else {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      to.store(4 * i, round_to_tf32(bits));
    }
  };
  const int threads = columns / 8 * 32;
  for (int i = thread_index(); i < 16 * depth; i += threads) store(a, i, data.input.load(i));
  for (int i = thread_index(); i < depth * columns; i += threads) {
    const int k = i / columns, c = i % columns;
    store(b, kTransposed ? i : c * depth + k, data.input.load(16 * depth + i));
  }
  sync_block();
  float sum[4] = {};
  for (int k = 0; k < depth; k += kStep) {
    uint32_t of_a[4], of_b[4];
    // The matrices lie as the fragments do: two of 8 rows, then those 16 bytes further.
    load_matrices(of_a, a, (lane % 16 * depth + k) * kSize + lane / 16 * 16);
    if constexpr (kTransposed) {
      load_matrices_transposed(of_b, b, ((k + lane % 16) * columns + column) * kSize);
    } else {
      load_matrices(of_b, b, ((column + lane % 8) * depth + k) * kSize + lane / 8 % 2 * 16);
    }
    multiply_matrices<T>(sum, of_a, of_b[kColumnOfB], of_b[1 - kColumnOfB]);
  }
  for (int i = 0; i < 4; ++i) {
    data.result.store((lane / 4 + i / 2 * 8) * columns + column + lane % 4 * 2 + i % 2, sum[i]);
  }
}

__global__ void sum_warp(Data data) {
  double exact = data.input.load(thread_index());
  float sum = data.input.load(thread_index());
  for (int mask = 16; mask > 0; mask /= 2) {
    sum += shuffle_xor(sum, mask);
    exact += shuffle_xor(exact, mask);
  }
  data.result.store(2 * thread_index(), sum);
  data.result.store(2 * thread_index() + 1, static_cast<float>(exact));
}

template <class T>
__global__ void convert(Data data) {
  const int64_t i = block_index() * 64 + thread_index();
  if constexpr (std::is_same_v<T, Tf32>) {
    const float value = data.input.load(i);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = round_to_tf32(bits);
    float rounded;
    std::memcpy(&rounded, &bits, 4);
    data.result.store(i, rounded);
  } else {
    data.result.store(i, widen(narrow<T>(data.input.load(i))));
  }
}

using Start = void (*)(const Data&);

template <int kThreads, auto kernel, int kSharedBytes = 256>
void start(const Data& data) {
  launch<kThreads>(kernel, (data.results + 63) / 64, kSharedBytes, Stream{}, data);
}
template <auto kernel>
void start_product(const Data& data) {
  const int columns = static_cast<int>(data.results / 16), depth = static_cast<int>(data.inputs / (16 + columns));
  launch<64>(kernel, 1, 40000, Stream{}, data, depth);
}
template <CopyFault kFault>
void start_copies(const Data& data) {
  launch<64>(sum_stages<kFault>, 1, 2048, Stream{}, data);
}

const std::map<std::string, Start> kKernels = {
    {"reverse", start<64, reverse<true>>},
    {"reverse without barrier", start<64, reverse<false>>},
    {"reverse with a warp's barrier", start<64, reverse<false, true>>},
    {"reverse_twice", start<64, reverse_twice<true>>},
    {"reverse_twice without barrier", start<64, reverse_twice<false>>},
    {"reverse_warp", start<64, reverse_warp<true, false>>},
    {"reverse_warp without barrier", start<64, reverse_warp<false, false>>},
    {"reverse_warp across warps", start<64, reverse_warp<true, true>>},
    {"share_words", start<64, share_words>},
    {"write after its warp read", start<64, write_after_read<32, 0>>},
    {"write before others read", start<64, write_after_read<64, 0>>},
    {"write after others read", start<64, write_after_read<32, 40>>},
    {"write after all read", start<64, write_after_read<64, 40>>},
    {"barrier of some lanes", start<64, barrier_of_some_lanes>},
    {"barrier of some warps", start<64, barrier_of_some_warps>},
    {"barriers of two kinds", start<64, barriers_of_two_kinds>},
    {"shuffle of some", start<64, shuffle_of_some>},
    {"double_all", start<64, double_all<0>>},
    {"double_all, one too many", start<64, double_all<1>>},
    {"read before", start<32, read_before>},
    {"read null", start<32, read_null>},
    {"write input", start<32, write_input>},
    {"read result", start<32, read_result>},
    {"write twice", start<32, write_twice>},
    {"read others", start<32, read_others>},
    {"write what others read",
     [](const Data& data) {
       start<64, fill>(data);
       start<32, write_what_others_read>(data);
     }},
    {"fill twice",
     [](const Data& data) {
       start<64, fill>(data);
       start<64, fill>(data);
     }},
    {"read shared unwritten", start<64, read_shared_unwritten>},
    {"read shared of the last block", start<64, read_shared_of_last_block>},
    {"read shared beyond", start<64, read_shared_beyond>},
    {"write shared before", start<64, write_shared_before>},
    {"misaligned shared", start<64, misaligned_shared>},
    {"misaligned global", start<32, misaligned_global>},
    {"sum_stages", start_copies<CopyFault::kNone>},
    {"sum_stages without wait", start_copies<CopyFault::kWait>},
    {"sum_stages, one group early", start_copies<CopyFault::kEarly>},
    {"sum_stages without barrier", start_copies<CopyFault::kNoBarrier>},
    {"sum_stages without wait at the end", start_copies<CopyFault::kNoWaitAtEnd>},
    {"sum_stages without commit", start_copies<CopyFault::kNoCommit>},
    {"sum_stages overwritten", start_copies<CopyFault::kOverwrite>},
    {"sum_stages beyond the tail", start_copies<CopyFault::kTail>},
    {"multiply BFloat16", start_product<multiply<BFloat16, false>>},
    {"multiply Float16", start_product<multiply<Float16, false>>},
    {"multiply Tf32", start_product<multiply<Tf32, false>>},
    {"multiply BFloat16 transposed", start_product<multiply<BFloat16, true>>},
    {"multiply Float16 transposed", start_product<multiply<Float16, true>>},
    {"multiply Float16, fragments exchanged", start_product<multiply<Float16, false, 1>>},
    {"sum_warp", [](const Data& data) { launch<32>(sum_warp, 1, 0, Stream{}, data); }},
    {"convert BFloat16", start<64, convert<BFloat16>>},
    {"convert Float16", start<64, convert<Float16>>},
    {"convert Tf32", start<64, convert<Tf32>>},
    {"too many blocks", [](const Data& data) { launch<32>(fill, int64_t{1} << 31, 0, Stream{}, data); }},
    {"too much shared memory", [](const Data& data) { launch<32>(fill, 1, 101377, Stream{}, data); }},
};

}  // namespace
}  // namespace conv1d_ext::cuda

// Null, or the error of the kernel of this name; valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* run_kernel(
    const char* name, const float* input, int64_t inputs, float* result, int64_t results) {
  static std::string error;
  emulator::machine.allocations.clear();
  emulator::allocate("input", input, 4 * inputs, false, true);
  emulator::allocate("result", result, 4 * results, true, false);
  try {
    conv1d_ext::cuda::kKernels.at(name)({{input}, inputs, {result}, results});
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
  return nullptr;
}
