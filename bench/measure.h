#ifndef CONCLAVE_BENCH_MEASURE_H_
#define CONCLAVE_BENCH_MEASURE_H_

// Clocks and statistics of the benchmarks.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/thread_pool.h"

namespace conclave::bench {

// Seconds that have passed.
double WallSeconds();

// Seconds that this thread has run: what other processes take does not count, though their use of
// caches and memory still shows.
double ThreadSeconds();

// `values` is not empty. 0 <= fraction <= 1; 0.5 is the median.
double Quantile(std::vector<double> values, double fraction);
inline double Median(std::vector<double> values) { return Quantile(std::move(values), 0.5); }

// Bytes per second of one pass of a loop that only reads `buffer`, on the threads of `pool`: by
// ThreadSeconds on one thread, by WallSeconds on several. Take a buffer larger than the caches.
double ReadBandwidth(std::span<const uint64_t> buffer, base::ThreadPool& pool);

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_MEASURE_H_
