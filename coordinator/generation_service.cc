#include "coordinator/generation_service.h"

#include <fmt/format.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "coordinator/batch_call.h"
#include "coordinator/caller.h"
#include "coordinator/chat_call.h"
#include "coordinator/generate_call.h"
#include "coordinator/raw_request.h"
#include "coordinator/reply.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

absl::StatusOr<std::vector<Request>> ParseGenerate(const ServingModel& model,
                                                   const grpc::ByteBuffer& bytes,
                                                   const std::string& peer) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  return TranslateCompletions(model, request, "", peer);
}

// The completions of each request.
absl::StatusOr<std::vector<std::vector<Request>>> ParseBatch(const ServingModel& model,
                                                             const grpc::ByteBuffer& bytes,
                                                             const std::string& peer) {
  v1::GenerateBatchRequest batch;
  RETURN_IF_ERROR(ParseRequest(bytes, &batch));
  RETURN_IF_ERROR(CheckBatchSize("requests", batch.requests_size()));
  std::vector<std::vector<Request>> requests;
  int completions = 0;
  int64_t tokens = 0;
  for (int i = 0; i < batch.requests_size(); ++i) {
    ASSIGN_OR_RETURN(
        std::vector<Request> forks,
        TranslateCompletions(model, batch.requests(i), fmt::format("requests[{}].", i), peer));
    completions += static_cast<int>(forks.size());
    RETURN_IF_ERROR(CheckBatchSize("requests, counting n,", completions));
    tokens += static_cast<int64_t>(forks.size() * forks.front().tokens.size());
    RETURN_IF_ERROR(CheckCallTokens(model, "requests, counting n,", tokens));
    requests.push_back(std::move(forks));
  }
  return requests;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServiceImpl::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  auto call = std::make_shared<GenerateCall>(model_, engine_, executor_, *context);
  const Caller caller(*context, keys_);
  absl::StatusOr<std::vector<Request>> completions =
      caller.status().ok() ? ParseGenerate(model_, *bytes, context->peer()) : caller.status();
  if (completions.ok()) {
    for (Request& request : *completions) caller.Sign(request);
    call->Start(*std::move(completions));
  } else {
    call->Refuse(completions.status());
  }
  return call.get();
}

grpc::ServerUnaryReactor* GenerationServiceImpl::GenerateBatch(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* bytes,
                                                               grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, Method::kGenerateBatch,
                                          *context, response);
  const Caller caller(*context, keys_);
  absl::StatusOr<std::vector<std::vector<Request>>> requests =
      caller.status().ok() ? ParseBatch(model_, *bytes, context->peer()) : caller.status();
  if (!requests.ok()) {
    call->Refuse(requests.status());
    return call.get();
  }
  // Of one completion each, in the order of the results.
  struct Reply {
    ReplyBuilder builder;
    uint32_t index;
  };
  auto replies = std::make_shared<std::vector<Reply>>();
  for (std::vector<Request>& completions : *requests) {
    for (uint32_t i = 0; i < completions.size(); ++i) {
      caller.Sign(completions[i]);
      replies->push_back({ReplyBuilder(model_, completions[i]), i});
    }
  }
  call->Start(*std::move(requests), [replies](std::span<const BatchItem> items, ReplyParts& reply) {
    for (size_t i = 0; i < items.size(); ++i) {
      v1::GenerateBatchResponse batch;
      v1::GenerateBatchResult* result = batch.add_results();
      ReplyBuilder& builder = (*replies)[i].builder;
      result->set_index((*replies)[i].index);
      builder.AppendPrompt(items[i].prompt, result);
      builder.Append(items[i].tokens, result);
      builder.Finish(items[i].outcome, result);
      reply.Append(batch);
    }
  });
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServiceImpl::Chat(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  auto call = std::make_shared<ChatCall>(model_, engine_, executor_, *context);
  v1::ChatRequest chat;
  const Caller caller(*context, keys_);
  const absl::Status parsed = caller.status().ok() ? ParseRequest(*bytes, &chat) : caller.status();
  absl::StatusOr<Request> request =
      parsed.ok() ? TranslateChat(model_, chat, context->peer()) : parsed;
  if (request.ok()) {
    caller.Sign(*request);
    call->Start(*std::move(request), MakeChatContext(chat.conversation()));
  } else {
    call->Refuse(request.status());
  }
  return call.get();
}

}  // namespace conclave::coordinator
