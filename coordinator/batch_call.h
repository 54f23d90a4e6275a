#ifndef CONCLAVE_COORDINATOR_BATCH_CALL_H_
#define CONCLAVE_COORDINATOR_BATCH_CALL_H_

// One unary call that runs many requests through the engine: GenerateBatch and classification.
// Finishes when all have ended; the first failure cancels the rest and is the call's status.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/executor.h"
#include "coordinator/engine.h"

namespace conclave::coordinator {

// Everything one request produced.
struct BatchItem {
  std::vector<PromptLogprob> prompt;
  std::vector<TokenEvent> tokens;
  std::vector<float> head_logits;  // [rows, labels], rows in order of position
  Outcome outcome;
};

class BatchCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<BatchCall> {
 public:
  // Makes the response of a call in which every request ended well. Runs on the executor.
  using Compose = std::function<grpc::ByteBuffer(std::span<const BatchItem>)>;

  // `response` is the one gRPC gave the handler.
  BatchCall(Engine& engine, base::Executor& executor, grpc::ByteBuffer* response);

  // At least one request.
  void Start(std::vector<Request> requests, Compose compose);
  void Refuse(const absl::Status& status);

  void OnCancel() override;
  void OnDone() override;

 private:
  class ItemSink;

  void Ended(size_t index, const Outcome& outcome);
  void Fail(const absl::Status& status);
  // Keeps the first failure and returns the requests to cancel. mutex_ is held.
  std::vector<RequestId> NoteFailure(const absl::Status& status);
  void FinishCall();

  Engine& engine_;
  base::Executor& executor_;
  grpc::ByteBuffer* response_;
  Compose compose_;
  std::vector<BatchItem> items_;     // item i belongs to its sink until the sink's OnEnd
  std::shared_ptr<BatchCall> self_;  // until OnDone: gRPC holds a bare pointer

  absl::Mutex mutex_;  // guards the fields below
  std::vector<RequestId> ids_;
  size_t open_ = 0;  // requests not ended yet, and one for Start itself
  absl::Status status_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_BATCH_CALL_H_
