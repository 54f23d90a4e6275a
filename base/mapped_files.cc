#include "base/mapped_files.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>

namespace conclave::base {
namespace {

enum State : int { kFree, kChanging, kUsed };

// Fixed storage: the handler may run at any point of any thread and must not allocate or lock.
struct Slot {
  std::atomic<int> state{kFree};
  uintptr_t begin = 0;
  uintptr_t end = 0;
  std::array<char, 240> path = {};  // ends with a zero byte
};
std::array<Slot, 1024> g_slots;

std::atomic<const char*> g_program{"conclave"};

const Slot* Find(uintptr_t address) {
  for (const Slot& slot : g_slots) {
    if (slot.state.load(std::memory_order_acquire) != kUsed) continue;
    if (address >= slot.begin && address < slot.end) return &slot;
  }
  return nullptr;
}

void Write(const char* text) {
  const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
  static_cast<void>(ignored);
}

// Async-signal-safe.
void OnBusError(int, siginfo_t* info, void*) {
  const Slot* slot = Find(reinterpret_cast<uintptr_t>(info->si_addr));
  if (slot == nullptr) {
    std::signal(SIGBUS, SIG_DFL);  // the same access again, and the process ends
    return;
  }
  Write(g_program.load());
  Write(": ");
  Write(slot->path.data());
  Write(": the file became shorter, or cannot be read any more, while it was in use\n");
  ::_exit(1);
}

}  // namespace

MappedFileName::MappedFileName(const void* begin, size_t bytes, const std::string& path)
    : slot_(-1) {
  for (size_t i = 0; i < g_slots.size(); ++i) {
    Slot& slot = g_slots[i];
    int expected = kFree;
    if (!slot.state.compare_exchange_strong(expected, kChanging)) continue;
    slot.begin = reinterpret_cast<uintptr_t>(begin);
    slot.end = slot.begin + bytes;
    const size_t kept = std::min(path.size(), slot.path.size() - 1);
    std::memcpy(slot.path.data(), path.data() + path.size() - kept, kept);
    slot.path[kept] = '\0';
    slot.state.store(kUsed, std::memory_order_release);
    slot_ = static_cast<int>(i);
    return;
  }
}

MappedFileName::~MappedFileName() {
  if (slot_ >= 0) g_slots[static_cast<size_t>(slot_)].state.store(kFree);
}

void ReportUnreadableFiles(const char* program) {
  g_program.store(program);
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace conclave::base
