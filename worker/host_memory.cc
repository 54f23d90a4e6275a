#include "worker/host_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace conclave::worker {
namespace {

std::string FirstWord(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// Value of `key` in a file of "key value" lines; 0 when there is none.
uint64_t ValueOf(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return 0;
}

// Applies a limit and what is used of it, as cgroup files give them ("max": none).
void Limit(HostMemory& memory, const std::string& limit_file, const std::string& used_file,
           uint64_t reclaimable) {
  uint64_t limit = 0;
  if (!(std::istringstream(FirstWord(limit_file)) >> limit) || limit == 0) return;
  if (limit >= memory.total_bytes) return;
  uint64_t used = 0;
  std::istringstream(FirstWord(used_file)) >> used;
  used -= std::min(used, reclaimable);
  memory.total_bytes = limit;
  memory.free_bytes = std::min(memory.free_bytes, limit - std::min(limit, used));
}

}  // namespace

HostMemory ReadHostMemory(const std::string& root) {
  HostMemory memory;
  memory.total_bytes = ValueOf(root + "proc/meminfo", "MemTotal:") * 1024;
  memory.free_bytes = ValueOf(root + "proc/meminfo", "MemAvailable:") * 1024;
  const std::string v2 = root + "sys/fs/cgroup/";
  Limit(memory, v2 + "memory.max", v2 + "memory.current",
        ValueOf(v2 + "memory.stat", "inactive_file") + ValueOf(v2 + "memory.stat", "active_file"));
  const std::string v1 = root + "sys/fs/cgroup/memory/";
  Limit(memory, v1 + "memory.limit_in_bytes", v1 + "memory.usage_in_bytes",
        ValueOf(v1 + "memory.stat", "total_inactive_file") +
            ValueOf(v1 + "memory.stat", "total_active_file"));
  return memory;
}

std::string HostId(const std::string& root) {
  return FirstWord(root + "proc/sys/kernel/random/boot_id");
}

}  // namespace conclave::worker
