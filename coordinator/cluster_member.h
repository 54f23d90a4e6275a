#ifndef CONCLAVE_COORDINATOR_CLUSTER_MEMBER_H_
#define CONCLAVE_COORDINATOR_CLUSTER_MEMBER_H_

#include <memory>
#include <optional>

#include "absl/time/time.h"
#include "coordinator/worker_link.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// One registered worker, as it last described itself.
struct ClusterMember {
  WorkerId id = 0;
  std::shared_ptr<WorkerLink> link;
  internal::v1::Register registration;
  absl::Time last_heard;

  bool leaving = false;  // it was told to stop and waits to be let go

  // In the current epoch, or the last one while there is none; -1: a spare, or new.
  int rank = -1;
  // Of the last epoch, here or as the worker told: its weights are resident.
  std::optional<int> previous_rank;

  internal::v1::LoadProgress progress;       // of the current epoch
  std::optional<internal::v1::Ready> ready;  // of the current epoch, or the last one
  internal::v1::RankStats stats;             // of the current epoch
  // As last reported, all three by one message.
  uint64_t free_memory_bytes = 0;
  uint64_t kv_bytes = 0;      // allocated
  uint64_t weight_bytes = 0;  // resident
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_MEMBER_H_
