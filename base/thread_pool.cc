#include "base/thread_pool.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace conclave::base {

using Body = std::function<void(int64_t, int64_t)>;

// A loop is open while next_ < count_ and over when done_ == count_: a helper that wakes late finds
// it closed and goes back to waiting, so nobody waits for a thread that took no range.
class ThreadPool::Impl {
 public:
  explicit Impl(int threads) {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { Help(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  int size() const { return static_cast<int>(helpers_.size()) + 1; }

  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    if (helpers_.empty() || count <= grain) {
      if (count > 0) body(0, count);
      return;
    }
    std::unique_lock lock(mutex_);
    CONCLAVE_CHECK(done_ == count_);
    body_ = &body;
    range_ = RangeLength(count, grain);
    next_ = done_ = 0;
    count_ = count;
    work_.notify_all();
    RunRanges(lock);
    over_.wait(lock, [this] { return done_ == count_; });
  }

 private:
  // A few ranges per thread: the last one to end is not far behind, and each reads a long stretch.
  int64_t RangeLength(int64_t count, int64_t grain) const {
    constexpr int64_t kRangesPerThread = 4;
    const int64_t grains = (count + grain - 1) / grain;
    return grain * std::max<int64_t>(1, grains / (kRangesPerThread * size()));
  }

  void Help() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return stop_ || next_ < count_; });
      if (stop_) return;
      RunRanges(lock);
    }
  }

  // Takes ranges of the open loop until none is left; `lock` is held on entry and return.
  void RunRanges(std::unique_lock<std::mutex>& lock) {
    while (next_ < count_) {
      const int64_t begin = next_;
      const int64_t end = std::min(begin + range_, count_);
      next_ = end;
      const Body& body = *body_;
      lock.unlock();
      body(begin, end);
      lock.lock();
      done_ += end - begin;
      if (done_ == count_) over_.notify_one();
    }
  }

  std::mutex mutex_;  // guards everything below but helpers_
  std::condition_variable work_;
  std::condition_variable over_;
  const Body* body_ = nullptr;
  int64_t range_ = 1;
  int64_t count_ = 0;
  int64_t next_ = 0;
  int64_t done_ = 0;
  bool stop_ = false;
  std::vector<std::thread> helpers_;
};

ThreadPool::ThreadPool(int threads) {
  CONCLAVE_CHECK(threads >= 1);
  impl_ = std::make_unique<Impl>(threads);
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::size() const { return impl_->size(); }

void ThreadPool::ParallelFor(int64_t count, int64_t grain, const Body& body) {
  CONCLAVE_CHECK(grain >= 1);
  impl_->ParallelFor(count, grain, body);
}

}  // namespace conclave::base
