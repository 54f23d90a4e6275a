#ifndef CONCLAVE_WORKER_HOST_MEMORY_H_
#define CONCLAVE_WORKER_HOST_MEMORY_H_

// How much memory this process may use: the machine's, or its control group's where that is less.

#include <cstdint>
#include <string>

namespace conclave::worker {

struct HostMemory {
  uint64_t total_bytes = 0;
  // What could be allocated without swapping: pages that only cache files count as free.
  uint64_t free_bytes = 0;
};

// `root` is "/" but in tests.
HostMemory ReadHostMemory(const std::string& root = "/");

// Equal for processes that share a machine's memory, different from machine to machine and from
// boot to boot.
std::string HostId(const std::string& root = "/");

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_HOST_MEMORY_H_
