#ifndef CONCLAVE_COORDINATOR_CHAT_CALL_H_
#define CONCLAVE_COORDINATOR_CHAT_CALL_H_

// One streaming Chat call: takes tokens from the scheduler, writes typed events to the client.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/executor.h"
#include "coordinator/call_record.h"
#include "coordinator/chat_reply.h"
#include "coordinator/engine.h"
#include "coordinator/reply.h"
#include "coordinator/serving_model.h"
#include "coordinator/unread_events.h"
#include "coordinator/write_limit.h"

namespace conclave::coordinator {

// As GenerateCall: the scheduler thread only queues; one pump at a time parses and writes.
class ChatCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                       public RequestSink,
                       public std::enable_shared_from_this<ChatCall> {
 public:
  ChatCall(const ServingModel& model, Engine& engine, base::Executor& executor,
           grpc::CallbackServerContext& context);

  // Submits `request`, or finishes the call with the engine's refusal.
  void Start(Request request, ChatContext context);
  // Finishes a call that never started.
  void Refuse(const absl::Status& status);

  void OnTokens(std::span<const TokenEvent> tokens) override;
  void OnHeadLogits(int head, int first_position, std::span<const float> logits) override;
  void OnEnd(const Outcome& outcome) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What the next pump has to do: tokens to parse, maybe the reply's end after them; or to finish.
  struct Work {
    std::vector<TokenEvent> tokens;
    bool last = false;
    std::optional<grpc::Status> finish;
  };

  void Schedule();
  Work TakeWork();
  void Pump();
  void Close(const grpc::Status& status);
  void Parse(const Work& work);
  bool WriteNext();

  const ServingModel& model_;
  Engine& engine_;
  base::Executor& executor_;
  WriteLimit write_limit_;
  std::shared_ptr<ChatCall> self_;  // until OnDone: gRPC holds a bare pointer
  // Of the pump, which busy_ makes one at a time.
  std::optional<ReplyBuilder> accounts_;  // usage, timings and seed
  std::optional<ChatReply> reply_;
  std::deque<grpc::ByteBuffer> unwritten_;
  grpc::ByteBuffer written_;  // lives until OnWriteDone

  absl::Mutex mutex_;  // guards the fields below
  CallRecord record_;
  UnreadEvents<TokenEvent> pending_;
  std::optional<Outcome> outcome_;  // set once, then constant
  RequestId id_ = 0;
  bool submitted_ = false;
  bool cancelled_ = false;
  bool busy_ = false;         // a pump is scheduled or a write is under way
  bool last_parsed_ = false;  // the response that carries `finish` is made
  bool finished_ = false;     // Finish was called
  bool broken_ = false;       // a write failed, the client is gone; or it reads too slowly
  absl::Status status_;       // not OK: in place of the outcome's
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CHAT_CALL_H_
