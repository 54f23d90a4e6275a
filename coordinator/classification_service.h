#ifndef CONCLAVE_COORDINATOR_CLASSIFICATION_SERVICE_H_
#define CONCLAVE_COORDINATOR_CLASSIFICATION_SERVICE_H_

#include "base/executor.h"
#include "coordinator/api_keys.h"
#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/classification.grpc.pb.h"

namespace conclave::coordinator {

// Thin: one engine request per input, each reading one head, or per input and label; then labels
// and scores.
class ClassificationServiceImpl final
    : public v1::ClassificationService::WithRawCallbackMethod_ClassifySequence<
          v1::ClassificationService::WithRawCallbackMethod_ClassifyTokens<
              v1::ClassificationService::WithRawCallbackMethod_ScoreLabels<
                  v1::ClassificationService::Service>>> {
 public:
  // All borrowed; `keys` may be null.
  ClassificationServiceImpl(const ServingModel& model, Engine& engine, base::Executor& executor,
                            ApiKeys* keys = nullptr)
      : model_(model), engine_(engine), executor_(executor), keys_(keys) {}

  grpc::ServerUnaryReactor* ClassifySequence(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* bytes,
                                             grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ClassifyTokens(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* bytes,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ScoreLabels(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* bytes,
                                        grpc::ByteBuffer* response) override;

 private:
  const ServingModel& model_;
  Engine& engine_;
  base::Executor& executor_;
  ApiKeys* const keys_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLASSIFICATION_SERVICE_H_
