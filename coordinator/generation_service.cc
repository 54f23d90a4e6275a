#include "coordinator/generation_service.h"

#include <fmt/format.h>

#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/status_macros.h"
#include "coordinator/batch_call.h"
#include "coordinator/generate_call.h"
#include "coordinator/raw_request.h"
#include "coordinator/reply.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

absl::StatusOr<Request> ParseGenerate(const ServingModel& model, const grpc::ByteBuffer& bytes) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  return TranslateGenerate(model, request, "");
}

absl::StatusOr<std::vector<Request>> ParseBatch(const ServingModel& model,
                                                const grpc::ByteBuffer& bytes) {
  v1::GenerateBatchRequest batch;
  RETURN_IF_ERROR(ParseRequest(bytes, &batch));
  RETURN_IF_ERROR(CheckBatchSize(model, "requests", batch.requests_size()));
  std::vector<Request> requests;
  for (int i = 0; i < batch.requests_size(); ++i) {
    ASSIGN_OR_RETURN(Request request,
                     TranslateGenerate(model, batch.requests(i), fmt::format("requests[{}].", i)));
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServiceImpl::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  auto call = std::make_shared<GenerateCall>(model_, engine_, executor_);
  absl::StatusOr<Request> request = ParseGenerate(model_, *bytes);
  if (request.ok()) {
    request->deadline = absl::FromChrono(context->deadline());
    call->Start(*std::move(request));
  } else {
    call->Refuse(request.status());
  }
  return call.get();
}

grpc::ServerUnaryReactor* GenerationServiceImpl::GenerateBatch(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* bytes,
                                                               grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(engine_, executor_, response);
  absl::StatusOr<std::vector<Request>> requests = ParseBatch(model_, *bytes);
  if (!requests.ok()) {
    call->Refuse(requests.status());
    return call.get();
  }
  auto builders = std::make_shared<std::vector<ReplyBuilder>>();
  for (Request& request : *requests) {
    request.deadline = absl::FromChrono(context->deadline());
    builders->emplace_back(model_, request);
  }
  call->Start(*std::move(requests), [builders](std::span<const BatchItem> items) {
    v1::GenerateBatchResponse batch;
    for (size_t i = 0; i < items.size(); ++i) {
      v1::GenerateBatchResult* result = batch.add_results();
      (*builders)[i].AppendPrompt(items[i].prompt, result);
      (*builders)[i].Append(items[i].tokens, result);
      (*builders)[i].Finish(items[i].outcome, result);
    }
    return SerializeResponse(batch);
  });
  return call.get();
}

}  // namespace conclave::coordinator
