#ifndef CONCLAVE_COORDINATOR_GENERATE_CALL_H_
#define CONCLAVE_COORDINATOR_GENERATE_CALL_H_

// One streaming Generate call: takes tokens from the scheduler, writes responses to the client.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/executor.h"
#include "coordinator/call_record.h"
#include "coordinator/engine.h"
#include "coordinator/reply.h"
#include "coordinator/serving_model.h"
#include "coordinator/unread_events.h"
#include "coordinator/write_limit.h"

namespace conclave::coordinator {

// Events arrive on the scheduler thread, which only queues them; responses are built on the
// executor or on gRPC's threads, one at a time. A slow reader delays its own stream alone, and ends
// it when more than max_unread_bytes wait (RESOURCE_EXHAUSTED), or one message does for too long.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(const ServingModel& model, Engine& engine, base::Executor& executor,
               grpc::CallbackServerContext& context);

  // Submits one request for each completion, or finishes the call with the engine's refusal.
  void Start(std::vector<Request> completions);
  // Finishes a call that never started.
  void Refuse(const absl::Status& status);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Sink;

  struct Completion {
    UnreadEvents<PromptLogprob> pending_prompt;
    UnreadEvents<TokenEvent> pending;
    std::optional<Outcome> outcome;  // set once, then constant
    bool last_written = false;       // the response that carries `finish` was handed to gRPC
  };

  // What the next pump has to do: write something of one completion, its last response or not, or
  // end the call.
  struct Work {
    int completion = -1;
    std::vector<PromptLogprob> prompt;
    std::vector<TokenEvent> tokens;
    bool last = false;
    std::optional<grpc::Status> finish;
  };

  void OnPromptLogprobs(int completion, std::span<const PromptLogprob> logprobs);
  void OnTokens(int completion, std::span<const TokenEvent> tokens);
  void OnEnd(int completion, const Outcome& outcome);
  // Ends all when too much waits. mutex_ is held.
  void CheckUnread();
  // Of all completions. mutex_ is held.
  void DropPending();
  void Schedule();
  Work TakeWork();
  void Pump();
  void Close(const grpc::Status& status);
  void CancelAll();

  const ServingModel& model_;
  Engine& engine_;
  base::Executor& executor_;
  WriteLimit write_limit_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone: gRPC holds a bare pointer
  // Of the pump, which busy_ makes one at a time.
  std::vector<ReplyBuilder> builders_;  // [completions]
  grpc::ByteBuffer written_;            // lives until OnWriteDone

  absl::Mutex mutex_;  // guards the fields below
  CallRecord record_;
  std::vector<Completion> completions_;
  size_t open_ = 0;         // completions that have not ended
  size_t next_writer_ = 0;  // completions take turns
  absl::Status status_;     // of the first completion that failed
  std::vector<RequestId> ids_;
  bool cancelled_ = false;
  bool busy_ = false;      // a pump is scheduled or a write is under way
  bool finished_ = false;  // Finish was called
  bool broken_ = false;    // a write failed, the client is gone; or it reads too slowly
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_GENERATE_CALL_H_
