#ifndef CONCLAVE_BASE_THREAD_POOL_H_
#define CONCLAVE_BASE_THREAD_POOL_H_

// A fixed set of threads for data-parallel loops inside one step.

#include <cstdint>
#include <functional>
#include <memory>

namespace conclave::base {

class ThreadPool {
 public:
  // `threads` >= 1, the caller's own counted: 1 runs everything inline.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(begin, end) over disjoint ranges that cover [0, count), each a multiple of `grain`
  // long but the last, and returns when all have ended. One caller at a time; `body` must not call
  // ParallelFor. Which thread runs a range is not defined; results must not depend on it.
  void ParallelFor(int64_t count, int64_t grain,
                   const std::function<void(int64_t begin, int64_t end)>& body);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_THREAD_POOL_H_
