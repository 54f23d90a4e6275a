#ifndef CONCLAVE_COORDINATOR_GENERATE_CALL_H_
#define CONCLAVE_COORDINATOR_GENERATE_CALL_H_

// One streaming Generate call: takes tokens from the scheduler, writes responses to the client.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/executor.h"
#include "coordinator/engine.h"
#include "coordinator/reply.h"
#include "coordinator/serving_model.h"

namespace conclave::coordinator {

// Events arrive on the scheduler thread, which only queues them; responses are built on the
// executor or on gRPC's threads, one at a time. A slow reader delays its own stream alone: what
// waits for it is at most the token events of its one sequence.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public RequestSink,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(const ServingModel& model, Engine& engine, base::Executor& executor);

  // Submits `request`, or finishes the call with the engine's refusal.
  void Start(Request request);
  // Finishes a call that never started.
  void Refuse(const absl::Status& status);

  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override;
  void OnTokens(std::span<const TokenEvent> tokens) override;
  void OnHeadLogits(int head, int first_position, std::span<const float> logits) override;
  void OnEnd(const Outcome& outcome) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What the next pump has to do: tokens to write, the last response among them or not, or the end.
  struct Work {
    std::vector<PromptLogprob> prompt;
    std::vector<TokenEvent> tokens;
    bool last = false;
    std::optional<grpc::Status> finish;

    bool writes() const { return !prompt.empty() || !tokens.empty() || last; }
  };

  void Schedule();
  Work TakeWork();
  void Pump();

  const ServingModel& model_;
  Engine& engine_;
  base::Executor& executor_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone: gRPC holds a bare pointer
  // Of the pump, which busy_ makes one at a time.
  std::optional<ReplyBuilder> builder_;
  grpc::ByteBuffer written_;  // lives until OnWriteDone

  absl::Mutex mutex_;  // guards the fields below
  std::vector<PromptLogprob> pending_prompt_;
  std::vector<TokenEvent> pending_;
  std::optional<Outcome> outcome_;  // set once, then constant
  RequestId id_ = 0;
  bool submitted_ = false;
  bool cancelled_ = false;
  bool busy_ = false;          // a pump is scheduled or a write is under way
  bool last_written_ = false;  // the response that carries `finish` was handed to gRPC
  bool finished_ = false;      // Finish was called
  bool broken_ = false;        // a write failed: the client is gone
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_GENERATE_CALL_H_
