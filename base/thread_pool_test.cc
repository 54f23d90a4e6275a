#include "base/thread_pool.h"

#include <atomic>
#include <vector>

#include "absl/synchronization/barrier.h"
#include "gtest/gtest.h"

namespace conclave::base {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceInRangesOfWholeGrains) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t count : {0, 1, 7, 8, 9, 64, 1000}) {
      for (int64_t grain : {1, 3, 8, 2000}) {
        std::vector<std::atomic<int>> seen(count);
        std::atomic<int> odd_ranges = 0;
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          if (end != count && (end - begin) % grain != 0) ++odd_ranges;
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        EXPECT_EQ(odd_ranges, 0);
        for (const std::atomic<int>& times : seen) ASSERT_EQ(times, 1);
      }
    }
  }
}

TEST(ThreadPoolTest, RangesRunAtTheSameTime) {
  constexpr int kThreads = 3;
  ThreadPool pool(kThreads);
  // Each range waits for two others: it ends only when all threads take part.
  absl::Barrier* barrier = new absl::Barrier(kThreads);
  pool.ParallelFor(kThreads, 1, [&](int64_t, int64_t) {
    if (barrier->Block()) delete barrier;
  });
}

TEST(ThreadPoolTest, ManyShortLoopsFollowEachOther) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum = 0;
  for (int loop = 0; loop < 5000; ++loop) {
    pool.ParallelFor(16, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    ASSERT_EQ(sum, int64_t{16} * (loop + 1));  // all of this loop ended before it returned
  }
}

}  // namespace
}  // namespace conclave::base
