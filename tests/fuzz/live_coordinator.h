#ifndef CONCLAVE_TESTS_FUZZ_LIVE_COORDINATOR_H_
#define CONCLAVE_TESTS_FUZZ_LIVE_COORDINATOR_H_

// A coordinator of the shipped checkpoint inside this process: all its services behind an
// in-process channel, the engine's thread, and one worker that invents its answers.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <variant>

#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/executor.h"
#include "base/mailbox.h"
#include "coordinator/classification_service.h"
#include "coordinator/cluster_service.h"
#include "coordinator/engine_loop.h"
#include "coordinator/engine_testing.h"
#include "coordinator/generation_service.h"
#include "coordinator/model_service.h"
#include "coordinator/serving_model.h"
#include "coordinator/worker_registry_service.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::tests {

// The only member of the group. Everything of a rank happens on its own thread; what the engine
// sends is queued. Let go, it joins anew.
class FakeWorker final : public coordinator::WorkerLink,
                         public std::enable_shared_from_this<FakeWorker> {
 public:
  FakeWorker(coordinator::EngineLoop& engine, const coordinator::ClusterOptions& options);

  // Registers and starts the thread, which runs as long as the process.
  static void Start(const std::shared_ptr<FakeWorker>& worker);
  // The worker says `message` just before its next answer to a plan. Where the two carry one, the
  // message's epoch (and step) become those of the plan if `current`. Notified when both are said:
  // what was said may end a stream, and the answer the epoch after it.
  std::shared_ptr<absl::Notification> SayBeforeNextAnswer(internal::v1::WorkerMessage message,
                                                          bool current);

  void Send(internal::v1::CoordinatorMessage message) override;
  void Close() override;
  void Abort() override;

 private:
  struct Injection {
    internal::v1::WorkerMessage message;
    bool current = false;
    std::shared_ptr<absl::Notification> said = std::make_shared<absl::Notification>();
  };

  struct Closed {};

  void Join();
  void Run();
  void Hear(const internal::v1::CoordinatorMessage& message);
  void Load(const internal::v1::Assignment& assignment);
  void Answer(const internal::v1::StepPlan& plan);
  void Inject(Injection injection, const internal::v1::StepPlan& plan);

  coordinator::EngineLoop& engine_;
  const coordinator::ClusterOptions options_;
  base::Mailbox<std::variant<internal::v1::CoordinatorMessage, Closed>> mailbox_;
  base::Mailbox<Injection> injections_;
  coordinator::WorkerId id_;                   // of the stream
  std::optional<coordinator::FakeRank> rank_;  // of the running epoch
};

class LiveCoordinator {
 public:
  // Made at the first call, never destroyed. Ends the process when that fails.
  static LiveCoordinator& Get();

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  FakeWorker& worker() { return *worker_; }

  // Until the group serves, all that was said to it before considered; ends the process when it
  // does not.
  void WaitServing();

 private:
  LiveCoordinator();

  // The engine's time moves only here, so that faults cost no waiting and silence is no fault.
  base::FakeClock clock_;
  coordinator::ServingModel model_;
  std::unique_ptr<coordinator::EngineLoop> engine_;
  base::Executor executor_;
  std::optional<coordinator::GenerationServiceImpl> generation_;
  std::optional<coordinator::ClassificationServiceImpl> classification_;
  std::optional<coordinator::ModelServiceImpl> models_;
  std::optional<coordinator::ClusterServiceImpl> cluster_;
  std::optional<coordinator::WorkerRegistryService> registry_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::shared_ptr<FakeWorker> worker_;
};

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_FUZZ_LIVE_COORDINATOR_H_
