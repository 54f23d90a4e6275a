#include "client/bench_session.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

class BenchProgressTest : public testing::Test {
 protected:
  ~BenchProgressTest() override {
    std::fclose(out_);
    std::free(text_);
  }

  // What was printed since the last call.
  std::string Printed() {
    std::fflush(out_);
    const std::string all(text_, size_);
    const std::string part = all.substr(seen_);
    seen_ = all.size();
    return part;
  }

  char* text_ = nullptr;
  size_t size_ = 0;
  std::FILE* out_ = open_memstream(&text_, &size_);
  size_t seen_ = 0;
};

LoadProgress After(double seconds) {
  return {.completed = 3, .output_tokens = 70, .elapsed = absl::Seconds(seconds)};
}

TEST_F(BenchProgressTest, ALineEveryTenSecondsWhereThereIsNoTerminal) {
  BenchProgress progress(out_, /*terminal=*/false);
  progress.Show("8 streams", After(0.5));
  progress.Show("8 streams", After(9.9));
  EXPECT_EQ(Printed(), "");
  progress.Show("8 streams", After(10.2));
  EXPECT_EQ(Printed(), "conclave bench: 8 streams: 10 s, 3 requests done, 70 tokens generated\n");
  progress.Show("8 streams", After(19.9));
  EXPECT_EQ(Printed(), "");
  progress.Show("8 streams", After(20.3));
  EXPECT_NE(Printed(), "");
  progress.End();
  EXPECT_EQ(Printed(), "");
  // The next run starts from nothing.
  progress.Show("16 streams", After(9));
  EXPECT_EQ(Printed(), "");
  progress.Show("16 streams", After(10));
  EXPECT_NE(Printed(), "");
}

TEST_F(BenchProgressTest, ATerminalHasOneLineThatIsErasedAtTheEnd) {
  BenchProgress progress(out_, /*terminal=*/true);
  progress.Show("1 streams", After(0.5));
  EXPECT_EQ(Printed(), "\r\x1b[K1 streams: 0 s, 3 requests done, 70 tokens generated");
  progress.End();
  EXPECT_EQ(Printed(), "\r\x1b[K");
  progress.End();
  EXPECT_EQ(Printed(), "");
}

}  // namespace
}  // namespace conclave::client
