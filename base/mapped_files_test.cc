#include "base/mapped_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <deque>
#include <string>

namespace conclave::base {
namespace {

constexpr size_t kBytes = 64 << 10;

// A map whose file has lost all but its first page.
class MappedFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    path_ = testing::TempDir() + "/mapped_" + std::to_string(getpid());
    const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, kBytes), 0);
    map_ = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fd, 0));
    ASSERT_NE(map_, MAP_FAILED);
    ASSERT_EQ(ftruncate(fd, 1), 0);
    close(fd);
  }
  void TearDown() override {
    munmap(map_, kBytes);
    unlink(path_.c_str());
  }
  void TouchTheLostPart() const {
    static_cast<void>(*static_cast<volatile char*>(map_ + kBytes - 1));
  }

  std::string path_;
  char* map_ = nullptr;
};

TEST_F(MappedFilesTest, TheLostFileIsNamedAndTheProcessEnds) {
  EXPECT_EXIT(
      {
        ReportUnreadableFiles("a-program");
        const MappedFileName name(map_, kBytes, "/models/a.safetensors");
        TouchTheLostPart();
      },
      testing::ExitedWithCode(1), "^a-program: /models/a\\.safetensors: the file became shorter");
}

TEST_F(MappedFilesTest, OfALongPathTheEndIsSaid) {
  EXPECT_EXIT(
      {
        ReportUnreadableFiles("a-program");
        std::string path(4000, 'x');
        path += "/shard.safetensors";
        const MappedFileName name(map_, kBytes, path);
        TouchTheLostPart();
      },
      testing::ExitedWithCode(1), "x/shard\\.safetensors: the file became shorter");
}

TEST_F(MappedFilesTest, ElsewhereTheSignalKillsAsBefore) {
  EXPECT_EXIT(
      {
        ReportUnreadableFiles("a-program");
        { const MappedFileName gone(map_, kBytes, "no longer mapped"); }
        TouchTheLostPart();
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST_F(MappedFilesTest, MoreMapsThanAreKeptDoNoHarm) {
  EXPECT_EXIT(
      {
        ReportUnreadableFiles("a-program");
        std::deque<MappedFileName> names;
        names.emplace_back(map_, kBytes, "the first");
        for (int i = 0; i < 2000; ++i) names.emplace_back(map_ + kBytes, 1, "another");
        TouchTheLostPart();
      },
      testing::ExitedWithCode(1), "a-program: the first: ");
}

}  // namespace
}  // namespace conclave::base
