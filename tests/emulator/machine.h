// A GPU of one multiprocessor that checks everything. The threads of a block are fibers; one runs until it meets a
// barrier, a warp's common operation or the kernel's end, and then the next one does. A block runs after the other, a
// launch after the other. What a program may not rely on (memory that nobody wrote, an access whose order no barrier
// settles, copies that were not waited for) is not tried out but known from marks on each two bytes: which thread wrote
// or read them last, and between which barriers. All state is the process's: one launch at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace emulator {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 1024;
inline constexpr int kMostShared = 227 << 10;  // bytes that a block may have on the largest of devices
inline constexpr int kCell = 2;                // bytes that have marks of their own

// What threads meet at. An operation of a warp is performed once, on what its 32 lanes brought.
struct Operation {
  const char* name;
  void (*perform)(void* const* lanes);  // null: of all threads of the block
};

// A stretch of global memory, with marks for each cell if it is writable. See `memory.cpp`.
struct Allocation {
  std::string name;
  uintptr_t begin, end;
  bool writable;
  std::vector<uint64_t> writers, readers;
};

struct Machine {
  // Of the device.
  int capability = 80;
  int64_t shared_limit = 99 << 10;
  std::vector<Allocation> allocations;

  // Of the launch.
  int64_t launch = 0;  // number of launches so far
  int64_t blocks = 0;
  int threads = 0;
  int shared_bytes = 0;

  // Of the thread that runs.
  int64_t block = 0;
  int thread = 0;

  // Marks of shared memory: the clock of the thread's warp, over 12 bits that say who. A warp's clock advances with its
  // barriers, and all clocks meet at the block's.
  uint32_t now[kMostThreads / kWarp];
  uint32_t block_began, epoch_began;  // the clock when the block began, and at its last barrier
  alignas(64) uint32_t writers[kMostShared / kCell];
  alignas(64) uint32_t readers[kMostShared / kCell];
  alignas(128) char shared[kMostShared];
};
inline Machine machine;

// Ends the launch with an error that names block and thread.
[[noreturn]] void fail(const std::string& what);

// Waits until the others have come as well: all of the warp, or of the block.
void meet(const Operation& operation, void* lane = nullptr);
extern const Operation sync_block, sync_warp;

// Runs `body(kernel)` in each thread. Throws std::runtime_error with the first error.
void launch(void (*body)(const void*), const void* kernel, int64_t blocks, int threads, int64_t shared_bytes);

// Who accesses shared memory: a thread by its number, or a warp as a whole.
inline constexpr uint32_t kWho = 0xfff, kWholeWarp = kMostThreads, kManyWarps = kWho, kTime = ~kWho;
inline constexpr uint32_t kInFlight = kTime;  // the time of a copy that has not arrived

// Fails if `who` may not do what it does after the access that left the mark.
void check_shared_order(const char* does, const char* did, uint32_t mark, int byte, uint32_t who);
[[noreturn]] void fail_shared(const char* verb, int64_t byte, int64_t bytes, int alignment);
uint32_t joined_readers(uint32_t mark, uint32_t who);

inline void check_shared_bounds(const char* verb, int64_t byte, int64_t bytes, int alignment) {
  if (byte < 0 || byte + bytes > machine.shared_bytes || byte % alignment != 0) [[unlikely]] {
    fail_shared(verb, byte, bytes, alignment);
  }
}

// `who` reads or writes cells that lie within the block's memory.
template <int kCells>
inline void read_cells(int byte, uint32_t who) {
  Machine& m = machine;
  uint32_t* const writers = m.writers + byte / kCell;
  uint32_t* const readers = m.readers + byte / kCell;
  const uint32_t settled = m.epoch_began - m.block_began;  // times from the block's beginning to the last barrier
  const uint32_t mark = m.now[m.thread / kWarp] | who;
  bool unsettled = false, alike = true;
  for (int c = 0; c < kCells; ++c) {
    unsettled |= writers[c] - m.block_began >= settled;
    alike &= readers[c] == readers[0];
  }
  if (unsettled) {
    for (int c = 0; c < kCells; ++c) check_shared_order("reads", "wrote", writers[c], byte + c * kCell, who);
  }
  if (alike) {  // as after all accesses that are as wide as this one
    const uint32_t joined = readers[0] < m.epoch_began ? mark : joined_readers(readers[0], who);
    for (int c = 0; c < kCells; ++c) readers[c] = joined;
  } else {
    for (int c = 0; c < kCells; ++c) readers[c] = joined_readers(readers[c], who);
  }
}
template <int kCells>
inline void write_cells(int byte, uint32_t who, uint32_t time) {
  Machine& m = machine;
  uint32_t* const writers = m.writers + byte / kCell;
  uint32_t* const readers = m.readers + byte / kCell;
  bool unsettled = false;
  for (int c = 0; c < kCells; ++c) unsettled |= (writers[c] >= m.epoch_began) | (readers[c] >= m.epoch_began);
  if (unsettled) {
    for (int c = 0; c < kCells; ++c) {
      const int cell = byte + c * kCell;
      if (writers[c] >= m.epoch_began) check_shared_order("writes", "wrote", writers[c], cell, who);
      if (readers[c] >= m.epoch_began) check_shared_order("writes", "read", readers[c], cell, who);
    }
  }
  for (int c = 0; c < kCells; ++c) writers[c] = time | who;
}

template <class T>
inline T load_shared(int64_t byte) {
  static_assert(sizeof(T) % kCell == 0 && std::is_trivially_copyable_v<T>);
  check_shared_bounds("reads", byte, sizeof(T), alignof(T));
  read_cells<sizeof(T) / kCell>(byte, machine.thread);
  T value;
  std::memcpy(&value, machine.shared + byte, sizeof(T));
  return value;
}
template <class T>
inline void store_shared(int64_t byte, const T& value) {
  static_assert(sizeof(T) % kCell == 0 && std::is_trivially_copyable_v<T>);
  check_shared_bounds("writes", byte, sizeof(T), alignof(T));
  write_cells<sizeof(T) / kCell>(byte, machine.thread, machine.now[machine.thread / kWarp]);
  std::memcpy(machine.shared + byte, &value, sizeof(T));
}

// Global memory, by address. These fail unless the access is right.
void read_global(uintptr_t address, int bytes, int alignment);
void write_global(uintptr_t address, int bytes, int alignment);

// What a kernel may access from now on. `initialised`: it holds something to read.
void allocate(std::string name, const void* begin, int64_t bytes, bool writable, bool initialised);

// Copies to shared memory that arrive when they are waited for.
void start_copy(int64_t byte, uintptr_t from, int bytes, bool valid);
void commit_copies();
void wait_copies(int pending);
void end_copies();     // when a thread ends
void forget_copies();  // after an error

// What warps do. The operands are a lane's, `lane` the struct of one.
struct Matrices {
  uint32_t (&result)[4];
  int64_t byte;
};
struct Product {
  float (&sum)[4];
  const uint32_t (&a)[4];
  uint32_t b[2];
};
template <class T>
struct Shuffle {
  T value, result;
  int mask;
};
extern const Operation load_matrices, load_matrices_transposed;
extern const Operation multiply_bfloat16, multiply_float16, multiply_tf32;
extern const Operation shuffle_float, shuffle_double;

}  // namespace emulator
