// Shared and global memory: the checks of each access, and copies from one to the other.
#include <algorithm>
#include <utility>

#include "machine.h"

namespace emulator {
namespace {

std::string thread_name(uint32_t thread) { return "thread " + std::to_string(thread); }

uint32_t warp_of(uint32_t who) { return who < kWholeWarp ? who / kWarp : who - kWholeWarp; }

std::string name_of(uint32_t who) {
  if (who == kManyWarps) return "several warps";
  return who < kWholeWarp ? thread_name(who) : "warp " + std::to_string(warp_of(who));
}

std::string at_byte(int64_t byte) { return " (byte " + std::to_string(byte) + ")"; }

// Whether a mark's access is before what `who` does now, by program order or barriers.
bool is_before(uint32_t mark, uint32_t who) {
  const uint32_t by = mark & kWho;
  if (mark < machine.epoch_began || by == who) return true;
  return by != kManyWarps && warp_of(by) == warp_of(who) && (mark & kTime) < machine.now[warp_of(who)];
}

}  // namespace

void fail_shared(const char* verb, int64_t byte, int64_t bytes, int alignment) {
  if (byte < 0 || byte + bytes > machine.shared_bytes) {
    fail(
        std::string(verb) + " " + std::to_string(bytes) + " bytes of shared memory out of bounds, at byte " +
        std::to_string(byte) + " of " + std::to_string(machine.shared_bytes));
  }
  fail(std::string(verb) + " shared memory misaligned to " + std::to_string(alignment) + at_byte(byte));
}

void check_shared_order(const char* does, const char* did, uint32_t mark, int byte, uint32_t who) {
  const auto fail_as = [=](const std::string& what) {
    fail(std::string(does) + " shared memory " + what + at_byte(byte));
  };
  if (mark < machine.block_began) fail_as("that nothing has written");
  if ((mark & kTime) == kInFlight) fail_as("to which a copy of " + name_of(mark & kWho) + " is under way");
  if (!is_before(mark, who)) fail_as("that " + name_of(mark & kWho) + " " + did + ", with no barrier between");
}

// One mark for all readers whose order is not settled.
uint32_t joined_readers(uint32_t mark, uint32_t who) {
  const uint32_t by = mark & kWho, warp = warp_of(who), now = machine.now[warp];
  if (is_before(mark, who)) return now | who;
  return now | (by != kManyWarps && warp_of(by) == warp ? kWholeWarp + warp : kManyWarps);
}

namespace {

// A thread's copies in the order in which it started them; those before `arrived` have.
struct Copies {
  struct Copy {
    int byte, bytes;
    const void* from;  // null: zeros
  };
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
  size_t arrived = 0, groups_arrived = 0;
  void clear() {
    copies.clear();
    group_ends.clear();
    arrived = groups_arrived = 0;
  }
};
Copies copies_of[kMostThreads];

void mark_copy(int byte, int bytes, uint32_t time) {
  for (int b = 0; b < bytes; b += 2 * kCell) write_cells<2>(byte + b, machine.thread, time);
}

void arrive(const Copies::Copy& copy) {
  for (int b = 0; b < copy.bytes; b += kCell) machine.writers[(copy.byte + b) / kCell] = 0;  // no longer under way
  mark_copy(copy.byte, copy.bytes, machine.now[machine.thread / kWarp]);
  if (copy.from == nullptr) {
    std::memset(machine.shared + copy.byte, 0, copy.bytes);
  } else {
    std::memcpy(machine.shared + copy.byte, copy.from, copy.bytes);
  }
}

}  // namespace

void start_copy(int64_t byte, uintptr_t from, int bytes, bool valid) {
  check_shared_bounds("copies to", byte, bytes, bytes);
  if (valid) read_global(from, bytes, bytes);
  mark_copy(byte, bytes, kInFlight);
  Copies& mine = copies_of[machine.thread];
  mine.copies.push_back({static_cast<int>(byte), bytes, valid ? reinterpret_cast<const void*>(from) : nullptr});
  if (machine.capability < 80) {  // no such copies there: loads and stores
    arrive(mine.copies.back());
    mine.copies.pop_back();
  }
}

void commit_copies() {
  Copies& mine = copies_of[machine.thread];
  mine.group_ends.push_back(mine.copies.size());
}

void wait_copies(int pending) {
  Copies& mine = copies_of[machine.thread];
  for (; mine.groups_arrived + pending < mine.group_ends.size(); ++mine.groups_arrived) {
    for (; mine.arrived < mine.group_ends[mine.groups_arrived]; ++mine.arrived) arrive(mine.copies[mine.arrived]);
  }
  if (mine.arrived == mine.copies.size() && mine.groups_arrived == mine.group_ends.size()) mine.clear();
}

void end_copies() {
  Copies& mine = copies_of[machine.thread];
  if (mine.arrived < mine.copies.size()) {
    fail("ends with copies that nothing waited for" + at_byte(mine.copies[mine.arrived].byte));
  }
  mine.clear();
}

void forget_copies() {
  for (Copies& copies : copies_of) copies.clear();
}

namespace {

// Threads of one launch have nothing to say to each other in global memory: in what one of them wrote, or in what one
// of them read and another would write, there is an order only by luck, or by barriers that no kernel here uses for it.
// Marks: the launch, over 41 bits that say which block and thread; 1 where there was something before.
constexpr int kLaunchBit = 41, kBlockBit = 10;
constexpr uintptr_t kNull = 1 << 16;                            // addresses below are null pointers
constexpr uint64_t kSeveral = (uint64_t{1} << kLaunchBit) - 1;  // threads; no launch has 2^31 blocks

uint64_t mark_of_thread() {
  const Machine& m = machine;
  return static_cast<uint64_t>(m.launch) << kLaunchBit | static_cast<uint64_t>(m.block) << kBlockBit | m.thread;
}
bool is_of_launch(uint64_t mark) { return mark >> kLaunchBit == static_cast<uint64_t>(machine.launch); }

std::string thread_of_mark(uint64_t mark) {
  if ((mark & kSeveral) == kSeveral) return "several threads";
  return "block " + std::to_string((mark & kSeveral) >> kBlockBit) + ", " + thread_name(mark % kMostThreads);
}

Allocation& allocation_at(const char* does, uintptr_t address, unsigned bytes, int alignment) {
  static size_t last = 0;
  std::vector<Allocation>& all = machine.allocations;
  const auto holds = [=](const Allocation& a) {
    return address >= a.begin && address < a.end && a.end - address >= bytes;
  };
  if (last >= all.size() || !holds(all[last])) {
    last = std::find_if(all.begin(), all.end(), holds) - all.begin();
    if (last == all.size()) {
      const auto distance = [=](const Allocation& a) {
        return address < a.begin ? a.begin - address : address - a.end;
      };
      std::string place = "byte " + std::to_string(address) + " of null";
      if (!all.empty() && address >= kNull) {
        const Allocation& near = *std::min_element(
            all.begin(), all.end(), [=](const auto& a, const auto& b) { return distance(a) < distance(b); });
        place = "byte " + std::to_string(static_cast<int64_t>(address - near.begin)) + " of " + near.name + "'s " +
                std::to_string(near.end - near.begin);
      }
      fail(std::string(does) + " " + std::to_string(bytes) + " bytes of global memory out of bounds, at " + place);
    }
  }
  if (address % alignment != 0) {
    fail(
        std::string(does) + " " + all[last].name + " misaligned to " + std::to_string(alignment) +
        at_byte(address - all[last].begin));
  }
  return all[last];
}

}  // namespace

void read_global(uintptr_t address, int bytes, int alignment) {
  Allocation& a = allocation_at("reads", address, bytes, alignment);
  if (!a.writable) return;
  const uint64_t me = mark_of_thread();
  for (uintptr_t cell = (address - a.begin) / kCell; cell < (address + bytes - a.begin) / kCell; ++cell) {
    const uint64_t writer = a.writers[cell];
    uint64_t& reader = a.readers[cell];
    if (writer == 0) fail("reads " + a.name + " where nothing has written" + at_byte(cell * kCell));
    if (is_of_launch(writer) && writer != me) {
      fail("reads what " + thread_of_mark(writer) + " of the same launch wrote in " + a.name + at_byte(cell * kCell));
    }
    reader = !is_of_launch(reader) || reader == me ? me : me | kSeveral;
  }
}

void write_global(uintptr_t address, int bytes, int alignment) {
  Allocation& a = allocation_at("writes", address, bytes, alignment);
  if (!a.writable) fail("writes " + a.name + ", which is to be read only");
  const uint64_t me = mark_of_thread();
  for (uintptr_t cell = (address - a.begin) / kCell; cell < (address + bytes - a.begin) / kCell; ++cell) {
    for (const uint64_t mark : {a.writers[cell], a.readers[cell]}) {
      if (is_of_launch(mark) && mark != me) {
        fail(
            "writes what " + thread_of_mark(mark) + " of the same launch " +
            (mark == a.writers[cell] ? "wrote" : "read") + " in " + a.name + at_byte(cell * kCell));
      }
    }
    a.writers[cell] = me;
  }
}

void allocate(std::string name, const void* begin, int64_t bytes, bool writable, bool initialised) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const size_t cells = writable ? (bytes + kCell - 1) / kCell : 0;
  machine.allocations.push_back(
      {std::move(name), address, address + bytes, writable, std::vector<uint64_t>(cells, initialised ? 1 : 0),
       std::vector<uint64_t>(cells, 0)});
}

}  // namespace emulator
