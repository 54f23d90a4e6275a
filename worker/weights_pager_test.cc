#include "worker/weights_pager.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

namespace conclave::worker {
namespace {

constexpr int64_t kFileBytes = int64_t{40} << 20;

class WeightsPagerTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/pager.bin";
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    ASSERT_GE(fd_, 0);
    ASSERT_EQ(ftruncate(fd_, kFileBytes), 0);
    void* map = mmap(nullptr, kFileBytes, PROT_READ, MAP_SHARED, fd_, 0);
    ASSERT_NE(map, MAP_FAILED);
    map_ = static_cast<std::byte*>(map);
  }
  void TearDown() override {
    munmap(map_, kFileBytes);
    close(fd_);
    unlink(path_.c_str());
  }

  // Pages of [offset, offset + bytes) that are in this process's page table.
  int64_t MappedPages(int64_t offset, int64_t bytes) const {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int pagemap = open("/proc/self/pagemap", O_RDONLY);
    EXPECT_GE(pagemap, 0);
    std::vector<uint64_t> entries(bytes / page);
    const off_t at =
        static_cast<off_t>((reinterpret_cast<uintptr_t>(map_) + offset) / page * sizeof(uint64_t));
    EXPECT_EQ(pread(pagemap, entries.data(), entries.size() * sizeof(uint64_t), at),
              static_cast<ssize_t>(entries.size() * sizeof(uint64_t)));
    close(pagemap);
    int64_t present = 0;
    for (uint64_t entry : entries) present += static_cast<int64_t>(entry >> 63);
    return present;
  }

  std::string path_;
  int fd_ = -1;
  std::byte* map_ = nullptr;
};

TEST_F(WeightsPagerTest, GivesBackWholePagesOfItsRegionsOnly) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const std::vector<MappedRegion> all = {{map_, 1, kFileBytes, kFileBytes, path_}};
  ASSERT_TRUE(PageIn(all, [](int64_t) { return true; }).ok());
  ASSERT_EQ(MappedPages(0, kFileBytes), kFileBytes / page);
  // Half a page, three pages, half a page.
  const std::vector<MappedRegion> part = {{map_ + page / 2, 1, 4 * page, 4 * page, path_}};
  GiveBack(part);
  EXPECT_EQ(MappedPages(0, kFileBytes), kFileBytes / page - 3);
  // Rows without a gap are one run, whatever their length.
  const std::vector<MappedRegion> rows = {{map_ + 8 * page, 8, page / 2, page / 2, path_}};
  GiveBack(rows);
  EXPECT_EQ(MappedPages(0, kFileBytes), kFileBytes / page - 7);
}

TEST_F(WeightsPagerTest, EveryPageOfTheRegionsIsReadAndProgressAddsUp) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t half = kFileBytes / 2;
  const std::vector<MappedRegion> regions = {{map_, 1, half, half, path_}};
  int64_t reported = 0;
  int calls = 0;
  ASSERT_TRUE(PageIn(regions, [&](int64_t bytes) {
                reported += bytes;
                ++calls;
                return true;
              }).ok());
  EXPECT_EQ(reported, half);
  EXPECT_GE(calls, 2);
  EXPECT_EQ(MappedPages(0, half), half / page);
}

TEST_F(WeightsPagerTest, BytesOfAStridedRegionAreThoseOfItsRows) {
  const std::vector<MappedRegion> regions = {{map_, 100, 4096, 65536, path_}};
  int64_t reported = 0;
  ASSERT_TRUE(PageIn(regions, [&](int64_t bytes) {
                reported += bytes;
                return true;
              }).ok());
  EXPECT_EQ(reported, 100 * 4096);
  for (int64_t row = 0; row < 100; ++row) EXPECT_EQ(MappedPages(row * 65536, 4096), 1) << row;
}

TEST_F(WeightsPagerTest, AFileThatShrankIsAnErrorWithItsNameAndNotACrash) {
  ASSERT_EQ(ftruncate(fd_, kFileBytes / 4), 0);
  const std::vector<MappedRegion> regions = {{map_, 1, kFileBytes, kFileBytes, path_}};
  const absl::Status status = PageIn(regions, [](int64_t) { return true; });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path_));
}

TEST_F(WeightsPagerTest, OlderKernelsReadEveryPageToo) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  ASSERT_TRUE(ReadPages(map_, map_ + kFileBytes / 2 + 1, path_).ok());
  EXPECT_EQ(MappedPages(0, kFileBytes / 2 + page), kFileBytes / 2 / page + 1);
}

TEST_F(WeightsPagerTest, OlderKernelsSayThatAFileShrankToo) {
  ASSERT_EQ(ftruncate(fd_, kFileBytes / 4), 0);
  EXPECT_TRUE(ReadPages(map_, map_ + kFileBytes / 4, path_).ok());
  const absl::Status status = ReadPages(map_, map_ + kFileBytes, path_);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path_));
}

TEST_F(WeightsPagerTest, ProgressCancels) {
  const std::vector<MappedRegion> regions = {{map_, 1, kFileBytes, kFileBytes, path_}};
  int calls = 0;
  const absl::Status status = PageIn(regions, [&](int64_t) {
    ++calls;
    return false;
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace conclave::worker
