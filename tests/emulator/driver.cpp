// csrc/cuda/kernels.h for ctypes, on the emulator. Numbers come as int64 in the order of the structs' members; errors
// go back as text.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "machine.h"

using namespace conv1d_ext;
using namespace conv1d_ext::cuda;

namespace {

struct Call {
  Op op;
  Type type;
  Device device;
  Choice choice;
  Conv1dProblem problem;
};

Call parse(const int64_t* numbers, int64_t count) {
  int64_t next = 0;
  const auto number = [&] {
    if (next == count) throw std::invalid_argument("fewer numbers than the structs have");
    return numbers[next++];
  };
  const auto word = [&](auto& to) { to = static_cast<std::remove_reference_t<decltype(to)>>(number()); };
  Call call;
  word(call.op);
  word(call.type);
  word(call.device.capability);
  word(call.device.shared_bytes);
  word(call.device.most_blocks);
  word(call.choice.algorithm);
  word(call.choice.tile);
  word(call.choice.staging);
  Conv1dProblem& p = call.problem;
  for (int64_t* to :
       {&p.batch, &p.in_channels, &p.out_channels, &p.groups, &p.in_length, &p.out_length, &p.kernel_size, &p.stride,
        &p.dilation, &p.padding_left, &p.padding_right}) {
    *to = number();
  }
  word(p.padding_mode);
  for (TensorStrides* to : {&p.input, &p.output}) *to = {number(), number(), number()};
  p.weight = {number(), number(), number()};
  word(p.accumulate);
  word(p.negate);
  if (next != count) throw std::invalid_argument("more numbers than the structs have");
  return call;
}

struct Operand {
  void* data;
  void* storage;  // that data lies in
  int64_t storage_bytes;
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The operands are Pointers' members. Null, or what went wrong; valid until the next call.
EXPORTED const char* emulated_run(const int64_t* numbers, int64_t count, const Operand* operands) try {
  const Call call = parse(numbers, count);
  const Pointers pointers{operands[0].data, operands[1].data, operands[2].data, operands[3].data};
  const int64_t bytes = workspace_bytes(call.op, call.type, call.problem, call.device, pointers, call.choice);
  // On 16 bytes and no more, and not a number in any type.
  constexpr int kAlignment = 16;
  const auto memory = std::make_unique<char[]>(bytes + 4 * kAlignment);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory.get()) + 2 * kAlignment;
  char* const workspace = reinterpret_cast<char*>(begin / (2 * kAlignment) * (2 * kAlignment) + kAlignment);
  std::memset(workspace, 0xff, bytes);

  emulator::machine.capability = call.device.capability;
  emulator::machine.shared_limit = call.device.shared_bytes;
  emulator::machine.allocations.clear();
  constexpr const char* kNames[] = {"signal", "factor", "bias", "result"};
  for (int i = 0; i < 4; ++i) {
    const bool is_result = i == 3;
    if (operands[i].data == nullptr) continue;
    emulator::allocate(
        kNames[i], operands[i].storage, operands[i].storage_bytes, is_result, !is_result || call.problem.accumulate);
  }
  emulator::allocate("workspace", workspace, bytes, true, false);
  run(call.op, call.type, call.problem, call.device, pointers, workspace, nullptr, call.choice);
  return nullptr;
} catch (const std::exception& e) {
  static std::string error;
  error = e.what();
  return error.c_str();
}
