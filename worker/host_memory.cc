#include "worker/host_memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>

namespace conclave::worker {
namespace {

std::string FirstWord(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// 0 when it does not begin with a number. No stream: a program that holds two C++ libraries, one
// linked statically and one that a shared library brought, cannot read numbers from streams.
uint64_t Number(const std::string& word) {
  uint64_t value = 0;
  std::from_chars(word.data(), word.data() + word.size(), value);
  return value;
}

// Value of `key` in a file of "key value" lines; 0 when there is none.
uint64_t ValueOf(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const size_t key_end = line.find(' ');
    const size_t begin = line.find_first_not_of(' ', key_end);
    if (begin != std::string::npos && line.compare(0, key_end, key) == 0) {
      return Number(line.substr(begin));
    }
  }
  return 0;
}

// Applies a limit and what is used of it, as cgroup files give them ("max": none).
void Limit(HostMemory& memory, const std::string& limit_file, const std::string& used_file,
           uint64_t reclaimable) {
  const uint64_t limit = Number(FirstWord(limit_file));
  if (limit == 0 || limit >= memory.total_bytes) return;
  uint64_t used = Number(FirstWord(used_file));
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
