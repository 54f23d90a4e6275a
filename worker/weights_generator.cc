#include "worker/weights_generator.h"

#include <algorithm>

namespace conclave::worker {
namespace {

constexpr int64_t kRoundBytes = int64_t{64} << 20;
// A multiple of the pages that a thread should touch alone.
constexpr int64_t kPieceBytes = int64_t{2} << 20;

// A whole region of one row, or some rows of one with gaps.
void GenerateRows(const model::Checkpoint& checkpoint, const MappedRegion& region, int64_t begin,
                  int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    checkpoint.Generate({region.data + row * region.stride, static_cast<size_t>(region.row_bytes)});
  }
}

}  // namespace

absl::Status GenerateWeights(const model::Checkpoint& checkpoint,
                             std::span<const MappedRegion> regions, base::ThreadPool& pool,
                             const std::function<bool(int64_t bytes)>& progress) {
  for (const MappedRegion& region : regions) {
    if (region.rows > 1) {
      const int64_t grain = std::max<int64_t>(1, kPieceBytes / region.row_bytes);
      pool.ParallelFor(region.rows, grain, [&](int64_t begin, int64_t end) {
        GenerateRows(checkpoint, region, begin, end);
      });
      if (!progress(region.bytes())) {
        return absl::CancelledError("making up of weights was cancelled");
      }
      continue;
    }
    for (int64_t at = 0; at < region.row_bytes; at += kRoundBytes) {
      const int64_t round = std::min(kRoundBytes, region.row_bytes - at);
      pool.ParallelFor(round, kPieceBytes, [&](int64_t begin, int64_t end) {
        checkpoint.Generate({region.data + at + begin, static_cast<size_t>(end - begin)});
      });
      if (!progress(round)) return absl::CancelledError("making up of weights was cancelled");
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::worker
