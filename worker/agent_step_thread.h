#ifndef CONCLAVE_WORKER_AGENT_STEP_THREAD_H_
#define CONCLAVE_WORKER_AGENT_STEP_THREAD_H_

// The one thread that touches the model: loads, executes plans in order, answers each. The agent's
// control thread hands it epochs and plans and takes it out of an epoch.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/coordinator_rendezvous.h"
#include "worker/rank_runtime.h"

namespace conclave::worker {

// One epoch as this process lives it.
struct EpochTask {
  Generation generation = 0;
  internal::v1::Assignment assignment;
  std::shared_ptr<CoordinatorRendezvous> rendezvous;
  // Towards the coordinator that assigned it. Called from the step thread; may wait for the
  // network.
  std::function<void(const internal::v1::WorkerMessage&)> send;
};

class StepThread {
 public:
  // `on_device_lost`: see AgentOptions; called by the step thread.
  StepThread(RankRuntime& runtime, std::function<void()> on_device_lost);
  // Waits for what runs: end the epoch first.
  ~StepThread();
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  // --- Control thread. ---

  // The last epoch must have been ended. Answers with LoadProgress and Ready, or Fault.
  void Begin(EpochTask epoch);
  // Answered with StepResult, or Fault: for a failed step, or one that is not the next. After a
  // Fault nothing is executed or said until the next Begin.
  void Push(internal::v1::StepPlan plan);
  // Drops what is queued and aborts what runs. `continues` as in RankRuntime::End. False when the
  // thread did not come back within `limit`: the process is of no more use.
  [[nodiscard]] bool End(absl::Duration limit, bool continues);

  // --- Any thread. ---

  // As of now where the step thread is free within `patience`, else as it last said.
  internal::v1::RankStats Stats(absl::Duration patience);

 private:
  struct Task {
    enum class Kind { kBegin, kPlan, kEnd, kStats } kind;
    std::optional<EpochTask> begin = std::nullopt;              // kBegin
    std::optional<internal::v1::StepPlan> plan = std::nullopt;  // kPlan
    bool continues = false;                                     // kEnd
  };

  struct PlanId {
    uint64_t epoch;
    uint64_t step;
  };

  void Post(Task task);
  void Run();
  // The next task. Waits for one, but not long while results are due; nullopt: none in that time.
  std::optional<Task> Next();
  void Execute(Task task);
  void RunBegin();
  void RunPlan(const internal::v1::StepPlan& plan);
  // Answers the oldest plan that was started.
  void FinishOldest();
  void FinishAll();
  void Answer(const PlanId& plan, absl::StatusOr<internal::v1::StepResult> result);
  void RunEnd(bool continues);
  void SendFault(const absl::Status& status);
  void PublishStats();
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return queue_.empty() && !busy_; }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return closed_ || !queue_.empty(); }

  RankRuntime& runtime_;
  const std::function<void()> on_device_lost_;

  absl::Mutex mutex_;  // guards the following
  std::deque<Task> queue_;
  bool busy_ = false;
  bool closed_ = false;
  internal::v1::RankStats stats_;
  bool stats_wanted_ = false;  // a kStats task is queued

  // Of the control thread: what End is to abort.
  Generation current_generation_ = 0;
  std::shared_ptr<CoordinatorRendezvous> current_rendezvous_;

  // Of the step thread.
  std::optional<EpochTask> epoch_;
  uint64_t next_step_ = 0;
  bool faulted_ = false;
  std::deque<PlanId> started_;  // their results are due, in this order

  std::thread thread_;  // last: runs with all of the above
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_AGENT_STEP_THREAD_H_
