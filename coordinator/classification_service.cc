#include "coordinator/classification_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "coordinator/batch_call.h"
#include "coordinator/raw_request.h"
#include "coordinator/reply.h"
#include "coordinator/scores.h"
#include "coordinator/token_spans.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

// One call's inputs, kept until its response is composed.
struct Inputs {
  int head = 0;
  std::vector<std::vector<int32_t>> tokens;  // [inputs]
  std::vector<std::string> texts;            // [inputs], what token offsets count in
  Request claim;                             // priority and user, of every input
};

// The last token that is not padding, as Transformers pools; the last one when no padding token is
// known, the first when all are padding.
int PooledPosition(const model::Config& config, const std::vector<int32_t>& tokens) {
  int position = static_cast<int>(tokens.size()) - 1;
  if (!config.pad_token_id.has_value()) return position;
  while (position > 0 && tokens[position] == *config.pad_token_id) --position;
  return position;
}

std::string Concatenate(const model::Tokenizer* tokenizer, const std::vector<int32_t>& tokens) {
  std::string text;
  if (tokenizer == nullptr) return text;
  for (int32_t token : tokens) text.append(tokenizer->TokenBytes(token));
  return text;
}

template <typename Proto>
absl::StatusOr<Inputs> ParseInputs(const ServingModel& model, model::Architecture kind,
                                   const grpc::ByteBuffer& bytes, const std::string& peer) {
  Proto request;
  RETURN_IF_ERROR(ParseRequest(bytes, &request));
  Inputs inputs;
  ASSIGN_OR_RETURN(inputs.head, FindHead(model, kind, request.head()));
  RETURN_IF_ERROR(CheckBatchSize("inputs", request.inputs_size()));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), "", peer, inputs.claim));
  for (int i = 0; i < request.inputs_size(); ++i) {
    ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                     TranslatePrompt(model, request.inputs(i), fmt::format("inputs[{}]", i),
                                     model.config.context_length));
    inputs.texts.push_back(request.inputs(i).has_text()
                               ? request.inputs(i).text()
                               : Concatenate(model.tokenizer.get(), tokens));
    inputs.tokens.push_back(std::move(tokens));
  }
  return inputs;
}

std::vector<std::vector<Request>> MakeRequests(const ServingModel& model, const Inputs& inputs,
                                               bool every_token, absl::Time deadline) {
  std::vector<std::vector<Request>> requests;
  for (const std::vector<int32_t>& tokens : inputs.tokens) {
    Request request = inputs.claim;
    request.tokens = tokens;
    request.sampling.set_logprobs(-1);
    request.deadline = deadline;
    if (every_token) {
      request.heads.push_back({inputs.head, 0, static_cast<int>(tokens.size())});
    } else {
      request.heads.push_back({inputs.head, PooledPosition(model.config, tokens), 1});
    }
    requests.emplace_back().push_back(std::move(request));
  }
  return requests;
}

v1::SequenceClassification ClassifyOne(const model::HeadConfig& head, const BatchItem& item) {
  v1::SequenceClassification result;
  const std::vector<float> scores = Scores(ScoreFunctionOf(head), item.head_logits);
  for (size_t i = 0; i < head.labels.size(); ++i) {
    v1::LabelScore* label = result.add_labels();
    label->set_label(head.labels[i]);
    label->set_score(scores[i]);
    label->set_logit(item.head_logits[i]);
  }
  *result.mutable_usage() = ToProto(item.outcome);
  return result;
}

// Labels of every token with their byte ranges; the views point into `head`.
std::vector<LabelledToken> LabelTokens(const ServingModel& model, const model::HeadConfig& head,
                                       const std::vector<int32_t>& tokens, const BatchItem& item,
                                       v1::TokenClassification& result) {
  const size_t labels = head.labels.size();
  std::vector<LabelledToken> labelled;
  size_t byte = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::span<const float> logits(item.head_logits.data() + i * labels, labels);
    const std::vector<float> scores = Scores(v1::SCORE_FUNCTION_SOFTMAX, logits);
    const size_t best =
        static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    const size_t bytes = model.tokenizer ? model.tokenizer->TokenBytes(tokens[i]).size() : 0;
    labelled.push_back({head.labels[best], scores[best], byte, byte + bytes});
    byte += bytes;
    v1::TokenLabel* label = result.add_tokens();
    label->set_token(static_cast<uint32_t>(tokens[i]));
    label->set_label(head.labels[best]);
    label->set_score(scores[best]);
    label->mutable_logits()->Add(logits.begin(), logits.end());
    label->set_start_byte(static_cast<uint32_t>(labelled.back().start_byte));
    label->set_end_byte(static_cast<uint32_t>(labelled.back().end_byte));
  }
  return labelled;
}

// `bytes` as valid UTF-8; only token inputs can decode to anything else.
std::string WholeCharacters(const std::string& bytes) {
  std::string text;
  if (base::AppendUtf8Lossy(bytes, text) < bytes.size()) text.append(base::kReplacementCharacter);
  return text;
}

v1::TokenClassification TagOne(const ServingModel& model, const model::HeadConfig& head,
                               const std::vector<int32_t>& tokens, const std::string& text,
                               const BatchItem& item) {
  v1::TokenClassification result;
  const auto labelled = LabelTokens(model, head, tokens, item, result);
  for (const LabelledSpan& span : GroupSpans(labelled, text)) {
    v1::TokenSpan* out = result.add_spans();
    out->set_label(span.label);
    out->set_score(span.score);
    out->set_start_byte(static_cast<uint32_t>(span.start_byte));
    out->set_end_byte(static_cast<uint32_t>(span.end_byte));
    out->set_start_char(static_cast<uint32_t>(span.start_char));
    out->set_end_char(static_cast<uint32_t>(span.end_char));
    out->set_text(WholeCharacters(text.substr(span.start_byte, span.end_byte - span.start_byte)));
  }
  *result.mutable_usage() = ToProto(item.outcome);
  return result;
}

}  // namespace

grpc::ServerUnaryReactor* ClassificationServiceImpl::ClassifySequence(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, response);
  absl::StatusOr<Inputs> inputs = ParseInputs<v1::ClassifySequenceRequest>(
      model_, model::Architecture::kSequenceClassification, *bytes, context->peer());
  if (!inputs.ok()) {
    call->Refuse(inputs.status());
    return call.get();
  }
  const model::HeadConfig& head = model_.heads[inputs->head].config;
  call->Start(MakeRequests(model_, *inputs, false, absl::FromChrono(context->deadline())),
              [&head](std::span<const BatchItem> items) {
                v1::ClassifySequenceResponse reply;
                reply.set_function(ScoreFunctionOf(head));
                for (const BatchItem& item : items) *reply.add_results() = ClassifyOne(head, item);
                return SerializeResponse(reply);
              });
  return call.get();
}

grpc::ServerUnaryReactor* ClassificationServiceImpl::ClassifyTokens(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
    grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(model_, engine_, executor_, response);
  absl::StatusOr<Inputs> parsed = ParseInputs<v1::ClassifyTokensRequest>(
      model_, model::Architecture::kTokenClassification, *bytes, context->peer());
  if (!parsed.ok()) {
    call->Refuse(parsed.status());
    return call.get();
  }
  auto inputs = std::make_shared<const Inputs>(*std::move(parsed));
  call->Start(MakeRequests(model_, *inputs, true, absl::FromChrono(context->deadline())),
              [this, inputs](std::span<const BatchItem> items) {
                const model::HeadConfig& head = model_.heads[inputs->head].config;
                v1::ClassifyTokensResponse reply;
                for (size_t i = 0; i < items.size(); ++i) {
                  *reply.add_results() =
                      TagOne(model_, head, inputs->tokens[i], inputs->texts[i], items[i]);
                }
                return SerializeResponse(reply);
              });
  return call.get();
}

}  // namespace conclave::coordinator
