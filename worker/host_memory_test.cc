#include "worker/host_memory.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace conclave::worker {
namespace {

class HostMemoryTest : public testing::Test {
 protected:
  void Put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void SetUp() override {
    std::filesystem::remove_all(root_);
    Put("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n");
  }
  std::string root_ = testing::TempDir() + "/host_memory/";
};

TEST_F(HostMemoryTest, WithoutALimitItIsTheMachines) {
  Put("sys/fs/cgroup/memory.max", "max\n");
  const HostMemory memory = ReadHostMemory(root_);
  EXPECT_EQ(memory.total_bytes, 1000u * 1024);
  EXPECT_EQ(memory.free_bytes, 600u * 1024);
}

TEST_F(HostMemoryTest, AControlGroupsLimitCountsAndItsFilePagesAreFree) {
  Put("sys/fs/cgroup/memory.max", "512000\n");
  Put("sys/fs/cgroup/memory.current", "300000\n");
  Put("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 40000\nactive_file 60000\n");
  const HostMemory memory = ReadHostMemory(root_);
  EXPECT_EQ(memory.total_bytes, 512'000u);
  EXPECT_EQ(memory.free_bytes, 312'000u);
}

TEST_F(HostMemoryTest, TheOlderControlGroupsTooAndUseBeyondTheLimitLeavesNothing) {
  Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "512000\n");
  Put("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n");
  const HostMemory memory = ReadHostMemory(root_);
  EXPECT_EQ(memory.total_bytes, 512'000u);
  EXPECT_EQ(memory.free_bytes, 0u);
}

TEST_F(HostMemoryTest, ThisMachineHasMemoryAndAnIdentity) {
  const HostMemory memory = ReadHostMemory();
  EXPECT_GT(memory.total_bytes, memory.free_bytes);
  EXPECT_GT(memory.free_bytes, 0u);
  EXPECT_FALSE(HostId().empty());
  EXPECT_EQ(HostId(), HostId());
}

}  // namespace
}  // namespace conclave::worker
