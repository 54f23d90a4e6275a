#include "kernels/cpu/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "base/check.h"

namespace conclave::kernels {
namespace {

// MemAvailable of /proc/meminfo in bytes, or no limit when it cannot be read.
int64_t AvailableBytes() {
  constexpr int64_t kKib = 1024;
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  int64_t value = 0;
  std::string unit;
  while (meminfo >> name >> value && std::getline(meminfo, unit)) {
    if (name == "MemAvailable:") return value * kKib;
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

absl::StatusOr<Buffer> AllocatePages(int64_t bytes) {
  CONCLAVE_CHECK(bytes >= 0);
  constexpr int64_t kSmall = int64_t{16} << 20;  // not worth a look at the machine
  const size_t length = std::max<int64_t>(bytes, 1);
  const bool fits = bytes <= kSmall || bytes <= AvailableBytes();
  void* pages =
      fits ? mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
           : MAP_FAILED;
  if (pages == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("cannot allocate {} bytes, {} are free", bytes, AvailableBytes()));
  }
  return Buffer{std::shared_ptr<void>(pages, [length](void* p) { munmap(p, length); }), bytes};
}

}  // namespace conclave::kernels
