#ifndef CONCLAVE_KERNELS_CUDA_STEP_GRAPHS_H_
#define CONCLAVE_KERNELS_CUDA_STEP_GRAPHS_H_

// Decode steps as CUDA graphs: a step whose every run is one token that is sampled is rounded up to
// a bucket, and what is launched for that bucket is recorded once. The buckets are those of
// model::RowBucket up to kMaxRecordedRows, for each power of two of the longest context from 1,024
// on (attention's grid follows it).
//
// A bucket's first step runs eagerly (with the same launches, so the bits are the same): libraries
// load their kernels then, which a capture does not allow, and a bucket seen once costs no graph.
// The second is recorded, which takes some milliseconds.
//
//   StepShape shape = graphs.Begin(batch);   // then stage the batch with that shape
//   if (graphs.use() == kRecord) graphs.StartCapture(stream);
//   ...                                      // launches, unless kReplay
//   graphs.Submit(stream, launches);
//
// One thread. The graphs that were not used for longest go when there are more than kMaxGraphs.

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "absl/status/status.h"
#include "kernels/cuda/step_stage.h"
#include "kernels/ops.h"

namespace conclave::kernels::cuda {

inline constexpr int kMaxRecordedRows = 512;
inline constexpr int kMaxGraphs = 96;

class StepGraphs {
 public:
  enum class Use { kEager, kRecord, kReplay };

  // No bucket exceeds `max_rows`. Without `record`, steps are rounded up just so, but never
  // recorded.
  StepGraphs(int max_rows, bool record) : max_rows_(max_rows), record_(record) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  StepShape Begin(const StepBatch& batch);
  Use use() const { return use_; }

  absl::Status StartCapture(cudaStream_t stream);
  // kRecord: ends the capture and launches what it holds; `launches` is kept with it. kReplay:
  // launches. kEager: nothing.
  absl::Status Submit(cudaStream_t stream, uint64_t launches);
  // What was kept with the graph that Submit launches. kReplay only.
  uint64_t launches() const { return current_->launches; }
  int graphs() const { return graphs_; }
  // Destroys all graphs; none is running.
  void Clear();
  // Ends a capture that will not be submitted; nothing otherwise.
  void Abandon(cudaStream_t stream);

 private:
  struct Entry {
    int steps = 0;
    int64_t last_step = 0;
    uint64_t launches = 0;
    cudaGraphExec_t graph = nullptr;
  };
  void DropOldest();

  const int max_rows_;
  const bool record_;
  // Record key, rows, context, whether a row's logits are changed (another kernel samples then).
  std::map<std::tuple<uint64_t, int, int, bool>, Entry> entries_;
  Entry* current_ = nullptr;
  Use use_ = Use::kEager;
  bool capturing_ = false;
  int graphs_ = 0;
  int64_t steps_ = 0;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STEP_GRAPHS_H_
