// Launches: the threads of a block as fibers, and what happens when they meet. One fiber hands over to the next by
// the compiler's own longjmp, a few instructions; ucontext, whose switches are system calls, only starts them.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "machine.h"

namespace emulator {
namespace {

// Stacks lie so far apart, the beginnings shifted, lest all threads' variables fall into the same cache lines.
constexpr size_t kStack = 128 << 10, kGuard = 4 << 10, kShifts = 32, kShift = 320;

struct Fiber {
  void* state[5];
  bool started = false;
  const Operation* waits_at = nullptr;
  void* lane = nullptr;
};

Fiber fibers[kMostThreads];
void* launcher[5];
void (*body)(const void*);
const void* kernel;
std::string error;

const Operation kernel_end = {"the kernel's end", nullptr};

constexpr int kLauncher = -1;  // where a thread is expected

char* stack_of(int thread) {
  static char* const stacks = [] {
    void* memory = mmap(
        nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    for (int i = 0; i < kMostThreads; ++i) mprotect(static_cast<char*>(memory) + i * kStack, kGuard, PROT_NONE);
    return static_cast<char*>(memory);
  }();
  return stacks + thread * kStack;
}

void run_forever() {
  for (;;) {
    body(kernel);
    end_copies();
    meet(kernel_end);
  }
}

[[noreturn, gnu::noinline]] void resume(int thread) {
  if (thread == kLauncher) __builtin_longjmp(launcher, 1);
  machine.thread = thread;
  Fiber& fiber = fibers[thread];
  if (fiber.started) __builtin_longjmp(fiber.state, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(thread) + kGuard;
  context.uc_stack.ss_size = kStack - kGuard - thread % kShifts * kShift;
  context.uc_link = nullptr;
  makecontext(&context, run_forever, 0);
  setcontext(&context);
  std::abort();
}

// Returns when what is `from` is resumed.
[[gnu::noinline]] void hand_over(void** from, int thread) {
  if (__builtin_setjmp(from) == 0) resume(thread);
}

void begin_block() {
  Machine& m = machine;
  constexpr uint32_t kTick = kWho + 1;
  uint32_t clock = *std::max_element(m.now, m.now + kMostThreads / kWarp) + kTick;
  if (clock > kTime / 2) {
    std::fill(std::begin(m.writers), std::end(m.writers), 0);
    std::fill(std::begin(m.readers), std::end(m.readers), 0);
    clock = kTick;
  }
  std::fill(std::begin(m.now), std::end(m.now), clock);
  m.block_began = m.epoch_began = clock;
}

void pass_block_barrier() {
  Machine& m = machine;
  const uint32_t clock = *std::max_element(m.now, m.now + kMostThreads / kWarp) + kWho + 1;
  if (clock >= kInFlight - kWho) fail("more barriers in a block than the emulator counts");
  std::fill(std::begin(m.now), std::end(m.now), clock);
  m.epoch_began = clock;
}

// The threads from `first` on are all waiting at one operation, or else there is an error.
void check_same_operation(int first, int count) {
  for (int i = first + 1; i < first + count; ++i) {
    if (fibers[i].waits_at != fibers[first].waits_at) {
      const auto [other, waits] = fibers[first].waits_at == &kernel_end ? std::pair(first, i) : std::pair(i, first);
      machine.thread = waits;
      fail(
          "waits at " + std::string(fibers[waits].waits_at->name) + ", but thread " + std::to_string(other) +
          " is at " + fibers[other].waits_at->name);
    }
  }
}

// The next thread to run after all those of a warp have come to a stop, or the launcher after the last block.
int next_after_warp(int first) {
  Machine& m = machine;
  check_same_operation(first, kWarp);
  const Operation& operation = *fibers[first].waits_at;
  if (operation.perform != nullptr) {
    void* lanes[kWarp];
    for (int i = 0; i < kWarp; ++i) lanes[i] = fibers[first + i].lane;
    operation.perform(lanes);
    return first;
  }
  if (first + kWarp < m.threads) return first + kWarp;
  for (int warp = 0; warp + kWarp < m.threads; warp += kWarp) {  // one thread of each warp stands for all
    if (fibers[warp].waits_at != fibers[warp + kWarp].waits_at) check_same_operation(0, m.threads);
  }
  if (&operation == &sync_block) {
    pass_block_barrier();
  } else {
    if (++m.block == m.blocks) return kLauncher;
    begin_block();
  }
  return 0;
}

}  // namespace

const Operation sync_block = {"sync_block", nullptr};
const Operation sync_warp = {"sync_warp", [](void* const*) { machine.now[machine.thread / kWarp] += kWho + 1; }};

void meet(const Operation& operation, void* lane) {
  const int thread = machine.thread;
  Fiber& fiber = fibers[thread];
  fiber.waits_at = &operation;
  fiber.lane = lane;
  int next = thread + 1;
  if (next % kWarp == 0) {
    next = next_after_warp(next - kWarp);
  }
  hand_over(fiber.state, next);
}

void fail(const std::string& what) {
  error = "block " + std::to_string(machine.block) + ", thread " + std::to_string(machine.thread) + ": " + what;
  resume(kLauncher);
}

void launch(void (*launched)(const void*), const void* call, int64_t blocks, int threads, int64_t shared_bytes) {
  Machine& m = machine;
  if (blocks < 0 || blocks > INT32_MAX) throw std::runtime_error("launch of " + std::to_string(blocks) + " blocks");
  if (shared_bytes < 0 || shared_bytes > std::min<int64_t>(m.shared_limit, kMostShared)) {
    throw std::runtime_error(
        "launch with " + std::to_string(shared_bytes) + " bytes of shared memory, of which there are " +
        std::to_string(m.shared_limit));
  }
  body = launched;
  kernel = call;
  ++m.launch;
  m.blocks = blocks;
  m.threads = threads;
  m.shared_bytes = static_cast<int>(shared_bytes);
  m.block = 0;
  begin_block();
  error.clear();
  hand_over(launcher, 0);
  if (!error.empty()) {  // the threads stopped anywhere: they start anew next time
    for (Fiber& fiber : fibers) fiber.started = false;
    forget_copies();
    std::fill(std::begin(m.writers), std::end(m.writers), 0);
    throw std::runtime_error(error);
  }
}

}  // namespace emulator
