#ifndef CONCLAVE_WORKER_AGENT_H_
#define CONCLAVE_WORKER_AGENT_H_

// A worker's life with its coordinator: join, take assignments, hand plans to the step thread, send
// heartbeats, and join again when the stream is lost.
//
//   WorkerAgent agent(options, runtime);
//   absl::Status ended = agent.Run();   // until Stop, a refusal, or a lost stream without rejoin
//
// Threads: Run's caller is the control thread, which reads the stream and owns the epoch; the step
// thread (agent_step_thread.h) owns the model and sends its own answers, so that a result waits for
// nobody; a third sends heartbeats.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/credentials.h"
#include "proto/conclave/internal/v1/worker.grpc.pb.h"
#include "worker/agent_step_thread.h"
#include "worker/agent_stream.h"
#include "worker/rank_runtime.h"

namespace conclave::worker {

struct AgentOptions {
  std::string coordinator;  // HOST:PORT
  // How the coordinator knows this worker. Read anew for every stream.
  base::TlsFiles tls = {};       // none: plaintext
  std::string secret_file = {};  // its first secret is shown; empty: none
  // Device, kernel, memory, host, pid. Version, free memory and previous rank are the agent's.
  internal::v1::Register registration;
  std::function<uint64_t()> free_memory_bytes;
  bool rejoin = true;
  absl::Duration heartbeat_interval = absl::Milliseconds(500);
  absl::Duration min_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(2);
  // The step thread's time to leave an epoch that has ended.
  absl::Duration end_limit = absl::Seconds(2);
  // Called when it did not. Must not return: nothing in this process can be relied on; the
  // supervisor starts another, which joins with nothing resident.
  std::function<void()> on_stuck;
  // Called when this process can use its device no more (base/device_lost.h), on the step
  // thread. Must not return, as above.
  std::function<void()> on_device_lost;
};

// INVALID_ARGUMENT when a file of `options` does not hold what it should.
absl::Status CheckCredentials(const AgentOptions& options);

class WorkerAgent {
 public:
  // `runtime` outlives the agent.
  WorkerAgent(AgentOptions options, RankRuntime& runtime);
  ~WorkerAgent();

  // OK after Stop or Leave; FAILED_PRECONDITION, with the reason, when the coordinator refuses this
  // worker; without rejoin UNAVAILABLE when the stream is lost.
  absl::Status Run();

  // Any thread. Asks the coordinator to be let go; Run goes on until it is, and then returns OK.
  // The same as Stop where the coordinator has not spoken yet (as to a spare).
  void Leave();

  // Any thread.
  void Stop();

  // Any thread. The control loop has not been inside one message for longer than `limit`.
  bool Alive(absl::Duration limit) const;

 private:
  // One stream, start to end. Returns why it ended.
  absl::Status Serve();
  // Sets refusal_ when the coordinator does not want this worker.
  void Handle(const std::shared_ptr<AgentStream>& stream, internal::v1::CoordinatorMessage message);
  void Assign(const std::shared_ptr<AgentStream>& stream, internal::v1::Assignment assignment);
  // `continues`: the next assignment goes on with this epoch's sequences.
  void EndEpoch(bool continues = false);
  bool WaitForHeartbeat(AgentStream& stream, const bool& ended, bool& said_leave);
  void SendHeartbeat(AgentStream& stream);
  internal::v1::WorkerMessage Registration() const;
  // False when stopped meanwhile.
  bool WaitBackoff(absl::Duration backoff);

  const AgentOptions options_;
  StepThread steps_;

  // Of the control thread.
  std::shared_ptr<internal::v1::WorkerRegistry::StubInterface> stub_;  // of the last stream
  Generation generation_ = 0;
  bool epoch_open_ = false;
  bool lost_before_ = false;  // some stream has ended
  std::optional<std::string> refusal_;
  std::optional<uint32_t> last_rank_;

  std::atomic<bool> registered_{false};  // a message came on this stream

  // 0: none. Written by the control thread, read by the heartbeats.
  std::atomic<uint64_t> epoch_{0};
  // base::SteadyNow, in nanoseconds, at which the message now handled was begun, 0: none.
  std::atomic<int64_t> handling_since_{0};

  absl::Mutex mutex_;  // guards all below
  bool stopped_ = false;
  bool leaving_ = false;
  std::shared_ptr<AgentStream> stream_;  // for Stop; null between streams
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_AGENT_H_
