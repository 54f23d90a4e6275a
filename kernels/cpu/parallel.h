#ifndef CONCLAVE_KERNELS_CPU_PARALLEL_H_
#define CONCLAVE_KERNELS_CPU_PARALLEL_H_

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"

namespace conclave::kernels {

// The grain of a loop whose items cost `work` multiply-adds (or moves) each: a range is worth a
// thread's wake-up, and holds whole register tiles.
inline int64_t GrainOf(int64_t work) {
  constexpr int64_t kWorkPerRange = 64 * 1024;
  constexpr int64_t kTile = 8;
  const int64_t items = kWorkPerRange / std::max<int64_t>(work, 1);
  return std::max<int64_t>((items + kTile - 1) / kTile, 1) * kTile;
}

// Calls body(outer, begin, end) over pieces that cover [0, inner) for every outer < outer_count.
template <class Body>
void ForEachPiece(base::ThreadPool& pool, int64_t outer_count, int64_t inner, int64_t grain,
                  const Body& body) {
  if (inner == 0) return;
  pool.ParallelFor(outer_count * inner, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t outer = begin / inner;
      const int64_t stop = std::min(end, (outer + 1) * inner);
      body(outer, begin - outer * inner, stop - outer * inner);
      begin = stop;
    }
  });
}

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_PARALLEL_H_
