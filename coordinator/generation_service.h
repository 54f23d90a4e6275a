#ifndef CONCLAVE_COORDINATOR_GENERATION_SERVICE_H_
#define CONCLAVE_COORDINATOR_GENERATION_SERVICE_H_

#include "base/executor.h"
#include "coordinator/api_keys.h"
#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/generation.grpc.pb.h"

namespace conclave::coordinator {

// Thin: validates, translates, streams. Raw bytes on the wire side, see raw_request.h.
class GenerationServiceImpl final
    : public v1::GenerationService::WithRawCallbackMethod_Generate<
          v1::GenerationService::WithRawCallbackMethod_GenerateBatch<
              v1::GenerationService::WithRawCallbackMethod_Chat<v1::GenerationService::Service>>> {
 public:
  // All borrowed; `keys` may be null.
  GenerationServiceImpl(const ServingModel& model, Engine& engine, base::Executor& executor,
                        ApiKeys* keys = nullptr)
      : model_(model), engine_(engine), executor_(executor), keys_(keys) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override;
  grpc::ServerUnaryReactor* GenerateBatch(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* bytes,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* bytes) override;

 private:
  const ServingModel& model_;
  Engine& engine_;
  base::Executor& executor_;
  ApiKeys* const keys_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_GENERATION_SERVICE_H_
