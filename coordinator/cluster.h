#ifndef CONCLAVE_COORDINATOR_CLUSTER_H_
#define CONCLAVE_COORDINATOR_CLUSTER_H_

// Membership: which workers there are, which rank each has, and whether the group can serve.
//
//            enough workers,            every rank               rank lost or faulty,
//            the model fits             is ready                 or its answer wrong
//   FORMING ---------------> LOADING ------------> READY ---------------------------> RECOVERING
//                               ^  |                                                      |
//                               |  +--- rank lost or faulty -------------------------->   |
//                               +------------------ enough workers again -----------------+
//
// Each LOADING begins a new epoch; leaving LOADING or READY ends it for every rank. A worker keeps
// its rank where it can. Workers beyond the world wait as spares, and replace one that is lost.
//
// Continue leads from READY to LOADING too: an epoch that goes on with the sequences of the one
// before, on the same workers, with other experts. If it fails before it is READY, the next has the
// old placement.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "coordinator/cluster_member.h"
#include "coordinator/cluster_options.h"
#include "coordinator/rendezvous.h"
#include "coordinator/scheduler.h"
#include "coordinator/worker_link.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::coordinator {

// Owned by the engine's thread. Time comes from the clock it is given.
class Cluster {
 public:
  // Borrows the last two.
  Cluster(ClusterOptions options, Rendezvous& rendezvous, const base::Clock& clock);

  // A stream opened. The worker counts once its Register is there.
  void Open(WorkerId worker, std::shared_ptr<WorkerLink> link);
  // Anything but a StepResult. What belongs to an older epoch is dropped.
  void OnMessage(WorkerId worker, const internal::v1::WorkerMessage& message);
  // The stream is over.
  void Gone(WorkerId worker, const std::string& why);
  // The worker broke the epoch by what it answered.
  void Fault(WorkerId worker, const absl::Status& why);

  // Drops workers that have been silent too long, and tries again what had to wait. Call it at
  // least every kTick, after the messages that are there have been delivered.
  void Tick();

  // A rank of the running epoch asks to leave; the others are enough for a group.
  bool leaving() const;
  bool has_substitute() const;
  // Ends the epoch, which is running, and the streams of those that ask to leave; another begins at
  // once if there are enough workers.
  void LetGo();

  // Ends the epoch and every stream; the cluster is of no use afterwards.
  void Shutdown();

  // Begins such an epoch. State READY; every plan has been answered.
  void Continue(model::Placement placement);
  // The current epoch is one.
  bool continues() const { return in_epoch() && continues_; }

  // To every rank. State READY.
  void Send(const WorldPlan& plan);
  // The rank that the worker has in the running epoch; nothing unless READY and `epoch` is it.
  std::optional<int> RankOf(WorkerId worker, uint64_t epoch) const;
  // It was heard of.
  void Touch(WorkerId worker);

  v1::ClusterState state() const { return state_; }
  uint64_t epoch() const { return epoch_; }
  // Of the running epoch.
  const internal::v1::CacheShape& cache() const { return cache_; }
  // Why the state is not READY; empty when it is.
  std::string Problem() const;
  // Why the last epoch ended.
  const std::string& last_end() const { return last_end_; }
  // Members with a rank of the current or the last epoch, ascending.
  std::vector<const ClusterMember*> Ranked() const;
  // How many have none.
  int spares() const;
  const ClusterOptions& options() const { return options_; }

  static constexpr absl::Duration kTick = absl::Milliseconds(100);

  // Silence after which a worker is lost: eight missed heartbeats. Scaled by base::TimeScale().
  static constexpr absl::Duration kHeartbeatLimit = absl::Seconds(4);

  // Spares for each rank. More would be a mistake in someone's deployment.
  static constexpr int kMaxSparesPerRank = 1;

 private:
  struct Stranger {
    std::shared_ptr<WorkerLink> link;
    absl::Time since;
  };

  int world() const { return options_.shape.world(); }
  bool in_epoch() const { return state_ == v1::LOADING || state_ == v1::READY; }
  ClusterMember* Find(WorkerId worker);
  void OnRegister(WorkerId worker, const internal::v1::Register& registration);
  absl::Status CheckRegister(const internal::v1::Register& registration) const;
  void Refuse(WorkerId worker, const std::string& reason);
  void OnReady(ClusterMember& member, const internal::v1::Ready& ready);
  void OnLeave(ClusterMember& member);
  void DropLeavers();

  void TryForm();
  std::vector<ClusterMember*> ChooseRanks();
  void BeginEpoch(const std::vector<ClusterMember*>& by_rank, const internal::v1::CacheShape& cache,
                  bool continues);
  void EndEpoch(const std::string& why);
  void EndEpochAfterFault(const std::string& why);
  void RefuseToForm(const absl::Status& why);
  void DropSilent(absl::Time now, absl::Duration pause);

  ClusterOptions options_;  // constant but for Continue's placement
  Rendezvous& rendezvous_;
  const base::Clock& clock_;
  const absl::Duration heartbeat_limit_;

  v1::ClusterState state_ = v1::FORMING;
  uint64_t epoch_ = 0;
  internal::v1::CacheShape cache_;
  bool continues_ = false;                              // the last epoch begun
  std::optional<model::Placement> previous_placement_;  // until Continue's epoch is READY
  std::map<WorkerId, Stranger> unregistered_;
  std::map<WorkerId, ClusterMember> members_;  // by registration: ids rise
  std::string problem_;
  std::string last_end_;
  bool refusal_logged_ = false;  // of these members, for lack of memory

  // A group whose epochs end in faults forms again only after a while, so that one that cannot work
  // does not load for ever at full speed.
  int faults_in_a_row_ = 0;
  absl::Time form_not_before_ = absl::InfinitePast();
  absl::Time last_tick_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_H_
