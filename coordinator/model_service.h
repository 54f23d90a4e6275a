#ifndef CONCLAVE_COORDINATOR_MODEL_SERVICE_H_
#define CONCLAVE_COORDINATOR_MODEL_SERVICE_H_

#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/model.grpc.pb.h"

namespace conclave::coordinator {

// What is served, and its tokenizer. Answers from what was loaded at start-up.
class ModelServiceImpl final
    : public v1::ModelService::WithRawCallbackMethod_GetModel<
          v1::ModelService::WithRawCallbackMethod_Tokenize<
              v1::ModelService::WithRawCallbackMethod_Detokenize<v1::ModelService::Service>>> {
 public:
  // Borrowed.
  ModelServiceImpl(const ServingModel& model, Engine& engine) : model_(model), engine_(engine) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override;

 private:
  const ServingModel& model_;
  Engine& engine_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_MODEL_SERVICE_H_
