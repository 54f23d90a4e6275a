#ifndef CONCLAVE_COORDINATOR_ENGINE_LOOP_H_
#define CONCLAVE_COORDINATOR_ENGINE_LOOP_H_

// The engine: one thread owns the scheduler and the membership; services and workers' streams talk
// to it by message.
//
//   ASSIGN_OR_RETURN(auto engine, EngineLoop::Create(options, clock));
//   WorkerRegistryService registry(*engine, engine->rendezvous());   // workers
//   GenerationServiceImpl generation(*engine, ...);                  // users
//   ...
//   engine->Stop();   // then shut the servers down

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "coordinator/cluster.h"
#include "coordinator/cluster_options.h"
#include "coordinator/drainer.h"
#include "coordinator/engine.h"
#include "coordinator/engine_metrics.h"
#include "coordinator/exchange_policy.h"
#include "coordinator/handover.h"
#include "coordinator/progress.h"
#include "coordinator/rebalancer.h"
#include "coordinator/rendezvous.h"
#include "coordinator/request_limits.h"
#include "coordinator/scheduler.h"
#include "coordinator/worker_link.h"

namespace conclave::coordinator {

struct EngineOptions {
  ClusterOptions cluster;
  // As in SchedulerOptions; the rest of those follow from `cluster`.
  int max_queued = 1024;
  int pipeline_depth = 2;
  bool prefix_cache = true;
  ExchangeChoice exchange = ExchangeChoice::kAuto;
  // What is under way when a drain begins may go on for so long.
  absl::Duration drain_limit = absl::Seconds(30);
};

// Everything that is to be seen of an engine, at one moment.
struct EngineReport {
  v1::GetClusterResponse cluster;
  EngineMetrics metrics;
  int spares = 0;  // workers without a rank
  int plans_in_flight = 0;
};

// INVALID_ARGUMENT names the option and the number. `cluster.shape` is resolved.
absl::Status CheckEngineOptions(const EngineOptions& options);

// Thread-safe.
class EngineLoop final : public Engine, public WorkerEvents {
 public:
  // INVALID_ARGUMENT names the option. Borrows `clock`.
  static absl::StatusOr<std::unique_ptr<EngineLoop>> Create(EngineOptions options,
                                                            const base::Clock& clock);
  ~EngineLoop() override;

  // Ends every request with UNAVAILABLE and every worker's stream, and returns when the thread has
  // ended. Later calls are refused.
  void Stop();

  // Engine.
  absl::StatusOr<std::vector<RequestId>> SubmitForks(std::vector<Request>& requests) override;
  void Cancel(RequestId id) override;
  void Rebalance(const v1::RebalanceRequest& request, RebalanceDone done) override;
  void Drain(const v1::DrainRequest& request, DrainDone done) override;
  v1::GetClusterResponse Snapshot() override { return Report().cluster; }
  CallAccount& calls() override { return calls_; }
  bool Serving() override;

  // A drain before Stop, which nobody can undo.
  void DrainForGood(DrainDone done);

  // The last one if the loop does not answer soon.
  EngineReport Report();

  // The loop answers: it has gone round lately, whatever state the group is in.
  bool Live();

  // WorkerEvents.
  void OnWorkerJoined(WorkerId worker, std::shared_ptr<WorkerLink> link) override;
  void OnWorkerMessage(WorkerId worker, internal::v1::WorkerMessage message) override;
  void OnWorkerGone(WorkerId worker, const std::string& why) override;

  Rendezvous& rendezvous() { return rendezvous_; }

 private:
  // A Report's caller waits for this.
  struct ReportReply {
    absl::Mutex mutex;  // guards both below
    bool done = false;
    EngineReport report;
  };

  struct SubmitMessage {
    RequestId first_id;
    std::vector<Request> requests;  // with consecutive ids
  };
  struct CancelMessage {
    RequestId id;
  };
  struct JoinedMessage {
    WorkerId worker;
    std::shared_ptr<WorkerLink> link;
  };
  struct SaidMessage {
    WorkerId worker;
    internal::v1::WorkerMessage message;
  };
  struct GoneMessage {
    WorkerId worker;
    std::string why;
  };
  struct ReportMessage {
    std::shared_ptr<ReportReply> reply;
  };
  struct RebalanceMessage {
    v1::RebalanceRequest request;
    RebalanceDone done;
  };
  struct DrainMessage {
    std::optional<v1::DrainRequest> request;  // none: for good
    DrainDone done;
  };
  struct StopMessage {};
  using Message =
      std::variant<SubmitMessage, CancelMessage, JoinedMessage, SaidMessage, GoneMessage,
                   ReportMessage, RebalanceMessage, DrainMessage, StopMessage>;

  // What other threads may know without asking the loop.
  struct Published {
    bool ready = false;
    std::string refusal;  // why nothing new is taken; empty: it is
    std::string problem;
    RequestLimits limits;  // of the running epoch
    absl::Duration retry_delay;
    Progress progress;
    absl::Time last_round;
    EngineReport report;  // the last one made
  };

  EngineLoop(EngineOptions options, SchedulerOptions scheduler_options, const base::Clock& clock);

  // All below: the loop's thread.
  void Run();
  bool Hear();
  absl::Duration WaitLimit() const;
  void Handle(SubmitMessage& message);
  void Handle(CancelMessage& message);
  void Handle(JoinedMessage& message);
  void Handle(SaidMessage& message);
  void Handle(GoneMessage& message);
  void Handle(ReportMessage& message);
  void Handle(RebalanceMessage& message);
  void Handle(DrainMessage& message);
  void Handle(StopMessage& message);
  void HandleResult(WorkerId worker, const internal::v1::StepResult& result);
  void FollowCluster();
  void SendPlans();
  void Publish();
  void AnswerReports();
  EngineReport MakeReport() const;
  RequestLimits Limits() const;

  const base::Clock& clock_;
  const SchedulerOptions scheduler_options_;
  CallAccount calls_;
  Rendezvous rendezvous_;
  base::Mailbox<Message> mailbox_;
  std::atomic<RequestId> next_id_{1};

  // Requests that wait: in the mailbox, and in the scheduler's queue. Their sum bounds the queue.
  std::atomic<int> posted_{0};
  std::atomic<int> queued_{0};

  absl::Mutex mutex_;
  Published published_ ABSL_GUARDED_BY(mutex_);

  // Of the loop's thread.
  EngineMetrics metrics_;  // outlives the scheduler's sinks
  Cluster cluster_;
  Scheduler scheduler_;
  Rebalancer rebalancer_;
  std::vector<std::shared_ptr<ReportReply>> reports_asked_;  // in this round
  Drainer drainer_;
  Handover handover_;
  uint64_t scheduled_epoch_ = 0;
  bool stopping_ = false;
  size_t unheard_ = 0;  // of the messages that waited when all before them had been heard

  absl::Mutex stop_mutex_;  // guards joining the thread
  std::thread thread_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ENGINE_LOOP_H_
