#ifndef CONCLAVE_COORDINATOR_BATCH_CALL_H_
#define CONCLAVE_COORDINATOR_BATCH_CALL_H_

// One unary call that runs many requests through the engine: GenerateBatch and classification.
// Finishes when all have ended; the first failure cancels the rest and is the call's status. So are
// results of more than max_reply_bytes (RESOURCE_EXHAUSTED).

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/executor.h"
#include "coordinator/call_record.h"
#include "coordinator/engine.h"
#include "coordinator/raw_request.h"
#include "coordinator/serving_model.h"
#include "coordinator/write_limit.h"

namespace conclave::coordinator {

// Everything one request produced.
struct BatchItem {
  std::vector<PromptLogprob> prompt;
  std::vector<TokenEvent> tokens;
  std::vector<float> head_logits;  // [rows, labels], rows in order of position
  Outcome outcome;
};

// Submits a part of its requests at a time, so that a batch may be larger than the queue and leaves
// room in it for others. When the queue is full it goes on as its own requests end; only a batch
// that has none there fails.
class BatchCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<BatchCall> {
 public:
  // Makes the response of a call in which every request ended well. Runs on the executor.
  using Compose = std::function<void(std::span<const BatchItem>, ReplyParts&)>;

  // `response` is the one gRPC gave the handler.
  BatchCall(const ServingModel& model, Engine& engine, base::Executor& executor, Method method,
            grpc::CallbackServerContext& context, grpc::ByteBuffer* response);

  // At least one request, in groups of forks (Engine::SubmitForks). Items come in the same order.
  void Start(std::vector<std::vector<Request>> requests, Compose compose);
  void Refuse(const absl::Status& status);

  void OnCancel() override;
  void OnDone() override;

 private:
  class ItemSink;

  bool TakeNext(size_t& next);
  void SubmitForks(size_t next);
  void Pump();
  void Ended(size_t index, const Outcome& outcome);
  // Whether so many more bytes of results may be kept; else the call fails.
  bool Holds(size_t bytes);
  absl::Status ComposeReply();
  void Fail(const absl::Status& status);
  // Keeps the first failure and returns the requests to cancel. mutex_ is held.
  std::vector<RequestId> NoteFailure(const absl::Status& status);
  void FinishCall();
  void Close(const grpc::Status& status);

  Engine& engine_;
  base::Executor& executor_;
  grpc::ByteBuffer* response_;
  const size_t most_open_;
  const int max_bytes_;  // of the results, and of the reply
  WriteLimit write_limit_;
  std::atomic<size_t> bytes_{0};  // of the results so far
  Compose compose_;
  std::vector<std::vector<Request>> requests_;  // of the pump; empty ones once it has finished
  std::vector<BatchItem> items_;                // item i belongs to its sink until the sink's OnEnd
  std::shared_ptr<BatchCall> self_;             // until OnDone: gRPC holds a bare pointer

  absl::Mutex mutex_;  // guards the fields below
  CallRecord record_;
  std::vector<RequestId> ids_;
  size_t next_ = 0;       // of requests_, to submit
  size_t open_ = 0;       // items submitted that have not ended
  size_t ends_ = 0;       // items that have ended since the last were submitted
  bool pumping_ = false;  // one thread submits
  bool waits_ = false;    // the queue was full; until an item ends
  bool finished_ = false;
  absl::Status status_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_BATCH_CALL_H_
