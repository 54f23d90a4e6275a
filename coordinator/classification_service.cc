#include "coordinator/classification_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "coordinator/batch_call.h"
#include "coordinator/caller.h"
#include "coordinator/classification_inputs.h"
#include "coordinator/classification_results.h"
#include "coordinator/raw_request.h"
#include "coordinator/reply.h"
#include "coordinator/score_labels.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

// One call's inputs and options, kept until its response is composed.
template <typename Options>
struct Call {
  int head = 0;
  Options options;
  Request claim;  // priority and user, of every input
  std::vector<ClassificationInput> inputs;
};

absl::StatusOr<Call<SequenceOptions>> ParseSequences(const ServingModel& model,
                                                     const grpc::ByteBuffer& bytes,
                                                     const std::string& peer) {
  v1::ClassifySequenceRequest request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  Call<SequenceOptions> call;
  ASSIGN_OR_RETURN(call.head,
                   FindHead(model, model::Architecture::kSequenceClassification, request.head()));
  ASSIGN_OR_RETURN(call.options, TranslateOptions(request, model.heads[call.head].config));
  RETURN_IF_ERROR(CheckBatchSize("inputs", request.inputs_size()));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), "", peer, call.claim));
  const bool paired = request.pairs_size() > 0;
  if (paired && request.pairs_size() != request.inputs_size()) {
    return absl::InvalidArgumentError(
        fmt::format("pairs has {} entries and inputs {}: none, or one for each input",
                    request.pairs_size(), request.inputs_size()));
  }
  for (int i = 0; i < request.inputs_size(); ++i) {
    const std::string field = fmt::format("inputs[{}]", i);
    absl::StatusOr<ClassificationInput> input =
        paired ? TranslatePair(model, request.inputs(i), request.pairs(i), request.truncate(),
                               field, fmt::format("pairs[{}]", i))
               : TranslateInput(model, request.inputs(i), request.truncate(), field);
    RETURN_IF_ERROR(input.status());
    call.inputs.push_back(*std::move(input));
  }
  return call;
}

absl::StatusOr<Call<SpanRules>> ParseTokens(const ServingModel& model,
                                            const grpc::ByteBuffer& bytes,
                                            const std::string& peer) {
  v1::ClassifyTokensRequest request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  Call<SpanRules> call;
  ASSIGN_OR_RETURN(call.head,
                   FindHead(model, model::Architecture::kTokenClassification, request.head()));
  ASSIGN_OR_RETURN(call.options, TranslateOptions(request, model.heads[call.head].config));
  RETURN_IF_ERROR(CheckBatchSize("inputs", request.inputs_size()));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), "", peer, call.claim));
  for (int i = 0; i < request.inputs_size(); ++i) {
    ASSIGN_OR_RETURN(
        ClassificationInput input,
        TranslateInput(model, request.inputs(i), request.truncate(), fmt::format("inputs[{}]", i)));
    call.inputs.push_back(std::move(input));
  }
  return call;
}

// `every_token`: the head is read at all positions, else at the pooled one.
template <typename Options>
std::vector<std::vector<Request>> MakeRequests(const ServingModel& model, const Call<Options>& call,
                                               bool every_token, const Caller& caller) {
  std::vector<std::vector<Request>> requests;
  for (const ClassificationInput& input : call.inputs) {
    Request request = call.claim;
    request.tokens = input.tokens;
    request.sampling.set_logprobs(-1);
    caller.Sign(request);
    if (every_token) {
      request.heads.push_back({call.head, 0, static_cast<int>(input.tokens.size())});
    } else {
      request.heads.push_back({call.head, PooledPosition(model.config, input.tokens), 1});
    }
    requests.emplace_back().push_back(std::move(request));
  }
  return requests;
}

// Of the labels of one input, the slowest in each part.
v1::Timings LongestTimings(std::span<const BatchItem> items) {
  Outcome longest;
  for (const BatchItem& item : items) {
    longest.queue_time = std::max(longest.queue_time, item.outcome.queue_time);
    longest.total_time = std::max(longest.total_time, item.outcome.total_time);
  }
  return TimingsOf(longest);
}

absl::StatusOr<LabelQuestions> ParseLabels(const ServingModel& model, const grpc::ByteBuffer& bytes,
                                           const std::string& peer) {
  v1::ScoreLabelsRequest request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  return TranslateScoreLabels(model, request, peer);
}

}  // namespace

grpc::ServerUnaryReactor* ClassificationServiceImpl::ClassifySequence(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, Method::kClassifySequence,
                                          *context, response);
  const Caller caller(*context, keys_);
  auto parsed =
      caller.status().ok() ? ParseSequences(model_, *bytes, context->peer()) : caller.status();
  if (!parsed.ok()) {
    call->Refuse(parsed.status());
    return call.get();
  }
  auto asked = std::make_shared<const Call<SequenceOptions>>(*std::move(parsed));
  call->Start(MakeRequests(model_, *asked, false, caller),
              [this, asked](std::span<const BatchItem> items, ReplyParts& parts) {
                for (size_t i = 0; i < items.size(); ++i) {
                  v1::ClassifySequenceResponse reply;
                  reply.set_function(asked->options.function);
                  v1::SequenceClassification* result = reply.add_results();
                  *result = coordinator::ClassifySequence(
                      asked->options, model_.heads[asked->head].config, items[i].head_logits);
                  *result->mutable_usage() = ToProto(items[i].outcome);
                  *result->mutable_timings() = TimingsOf(items[i].outcome);
                  result->set_truncated(asked->inputs[i].truncated);
                  parts.Append(reply);
                }
              });
  return call.get();
}

grpc::ServerUnaryReactor* ClassificationServiceImpl::ClassifyTokens(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, Method::kClassifyTokens,
                                          *context, response);
  const Caller caller(*context, keys_);
  auto parsed =
      caller.status().ok() ? ParseTokens(model_, *bytes, context->peer()) : caller.status();
  if (!parsed.ok()) {
    call->Refuse(parsed.status());
    return call.get();
  }
  auto asked = std::make_shared<const Call<SpanRules>>(*std::move(parsed));
  call->Start(MakeRequests(model_, *asked, true, caller),
              [this, asked](std::span<const BatchItem> items, ReplyParts& parts) {
                for (size_t i = 0; i < items.size(); ++i) {
                  v1::ClassifyTokensResponse reply;
                  v1::TokenClassification* result = reply.add_results();
                  *result = coordinator::ClassifyTokens(model_, asked->options,
                                                        model_.heads[asked->head].config,
                                                        asked->inputs[i], items[i].head_logits);
                  *result->mutable_usage() = ToProto(items[i].outcome);
                  *result->mutable_timings() = TimingsOf(items[i].outcome);
                  parts.Append(reply);
                }
              });
  return call.get();
}

grpc::ServerUnaryReactor* ClassificationServiceImpl::ScoreLabels(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, Method::kScoreLabels,
                                          *context, response);
  const Caller caller(*context, keys_);
  auto parsed =
      caller.status().ok() ? ParseLabels(model_, *bytes, context->peer()) : caller.status();
  if (!parsed.ok()) {
    call->Refuse(parsed.status());
    return call.get();
  }
  auto questions = std::make_shared<const LabelQuestions>(*std::move(parsed));
  std::vector<std::vector<Request>> requests = LabelRequests(*questions);
  for (std::vector<Request>& forks : requests) {
    for (Request& request : forks) caller.Sign(request);
  }
  call->Start(std::move(requests),
              [questions](std::span<const BatchItem> items, ReplyParts& parts) {
                std::vector<std::vector<float>> logprobs;
                for (const BatchItem& item : items) {
                  std::vector<float>& label = logprobs.emplace_back();
                  for (const PromptLogprob& token : item.prompt) label.push_back(token.logprob);
                }
                v1::ScoreLabelsResponse reply = coordinator::ScoreLabels(*questions, logprobs);
                const size_t labels = questions->labels.size();
                for (int i = 0; i < reply.results_size(); ++i) {
                  *reply.mutable_results(i)->mutable_timings() =
                      LongestTimings(items.subspan(i * labels, labels));
                }
                parts.Append(reply);
              });
  return call.get();
}

}  // namespace conclave::coordinator
