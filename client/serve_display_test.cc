#include "client/serve_display.h"

#include <cstdio>
#include <memory>
#include <string>

#include "gtest/gtest.h"

namespace conclave::client {
namespace {

v1::GetClusterResponse Loading(double progress) {
  v1::GetClusterResponse cluster;
  cluster.set_state(v1::LOADING);
  cluster.set_load_progress(progress);
  cluster.set_problem(
      "the workers are loading the model");  // as the coordinator says all the while
  return cluster;
}

// A file in memory for the display to write to.
class Screen {
 public:
  Screen() : file_(open_memstream(&data_, &size_)) {}
  ~Screen() {
    std::fclose(file_);
    std::free(data_);
  }
  std::FILE* file() { return file_; }
  std::string Text() {
    std::fflush(file_);
    return {data_, size_};
  }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
  std::FILE* file_;
};

TEST(ServeDisplayTest, WithoutATerminalLoadingIsALineNowAndThen) {
  Screen screen;
  ServeDisplay display(screen.file(), /*terminal=*/false);
  for (int percent = 0; percent <= 100; ++percent) display.Progress(Loading(percent / 100.0));
  EXPECT_EQ(screen.Text(),
            "conclave serve: loading weights, 0 %\n"
            "conclave serve: loading weights, 25 %\n"
            "conclave serve: loading weights, 50 %\n"
            "conclave serve: loading weights, 75 %\n"
            "conclave serve: loading weights, 100 %\n");
}

TEST(ServeDisplayTest, OnATerminalABarIsRedrawnBelowTheLines) {
  Screen screen;
  ServeDisplay display(screen.file(), /*terminal=*/true);
  display.Progress(Loading(0.5));
  display.ChildLine("rank 1", "hello");
  display.EndProgress();
  const std::string bar = "[###############...............] loading weights, 50 %";
  EXPECT_EQ(screen.Text(), "\r\x1b[K" + bar + "\r\x1b[K[rank 1] hello\n" + bar + "\r\x1b[K");
}

TEST(ServeDisplayTest, AChangeOfStateIsALine) {
  Screen screen;
  ServeDisplay display(screen.file(), /*terminal=*/false);
  v1::GetClusterResponse cluster;
  for (const auto state : {v1::FORMING, v1::FORMING, v1::READY, v1::RECOVERING}) {
    cluster.set_state(state);
    display.Progress(cluster);
  }
  cluster.set_problem("rank 1 needs 9 GiB, 8 are free");
  display.Progress(cluster);
  EXPECT_EQ(screen.Text(),
            "conclave serve: waiting for workers\n"
            "conclave serve: a worker was lost, waiting for another\n"
            "conclave serve: rank 1 needs 9 GiB, 8 are free\n");
}

}  // namespace
}  // namespace conclave::client
