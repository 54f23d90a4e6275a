#include "bench/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>

namespace conclave::bench {
namespace {

using Lane = uint64_t __attribute__((vector_size(32)));

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CONCLAVE_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONCLAVE_WIDE
#endif

// Four runs of addresses side by side, as prefetchers like it, each with a chain of its own, so
// that loads are all that a core waits for. `size` is a multiple of 32.
CONCLAVE_WIDE uint64_t SumOf(const uint64_t* data, int64_t size) {
  constexpr int kRuns = 4;
  const int64_t run = size / kRuns;
  Lane sums[kRuns] = {};
  for (int64_t i = 0; i < run; i += 8) {
    for (int r = 0; r < kRuns; ++r) {
      Lane first;
      Lane second;
      std::memcpy(&first, data + r * run + i, sizeof(Lane));
      std::memcpy(&second, data + r * run + i + 4, sizeof(Lane));
      sums[r] = (sums[r] + first) ^ second;
    }
  }
  const Lane sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

}  // namespace

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ThreadSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double Quantile(std::vector<double> values, double fraction) {
  const auto at = static_cast<size_t>(fraction * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(at), values.end());
  return values[at];
}

double ReadBandwidth(std::span<const uint64_t> buffer, base::ThreadPool& pool) {
  constexpr int64_t kGrain = 1 << 17;  // 1 MiB
  const auto size = static_cast<int64_t>(buffer.size()) / kGrain * kGrain;
  const auto now = pool.size() == 1 ? ThreadSeconds : WallSeconds;
  std::atomic<uint64_t> sum{0};
  const double start = now();
  pool.ParallelFor(size, kGrain, [&](int64_t begin, int64_t end) {
    sum += SumOf(buffer.data() + begin, end - begin);
  });
  const double seconds = now() - start;
  // Keeps the loop: no sum of a buffer is this one.
  if (sum == 0x5DEECE66D) return 0;
  return static_cast<double>(size) * sizeof(uint64_t) / seconds;
}

}  // namespace conclave::bench
