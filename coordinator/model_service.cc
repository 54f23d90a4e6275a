#include "coordinator/model_service.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "coordinator/raw_request.h"
#include "coordinator/unary.h"

namespace conclave::coordinator {
namespace {

const char* ProblemTypeName(model::ProblemType type) {
  switch (type) {
    case model::ProblemType::kUnset:
      return "";
    case model::ProblemType::kRegression:
      return "regression";
    case model::ProblemType::kSingleLabel:
      return "single_label_classification";
    case model::ProblemType::kMultiLabel:
      return "multi_label_classification";
  }
  return "";
}

void FillHead(const Head& head, v1::HeadInfo* info) {
  info->set_name(head.name);
  info->set_kind(head.config.kind == model::Architecture::kSequenceClassification
                     ? v1::HeadInfo::SEQUENCE
                     : v1::HeadInfo::TOKEN);
  info->mutable_labels()->Add(head.config.labels.begin(), head.config.labels.end());
  info->set_problem_type(ProblemTypeName(head.config.problem_type));
  info->set_backbone_verified(head.backbone_verified);
}

void FillModel(const ServingModel& model, v1::GetModelResponse* out) {
  const model::Config& config = model.config;
  out->set_name(model.name);
  out->set_architecture(std::string(model::ArchitectureName(config.architecture)));
  out->set_vocab_size(static_cast<uint32_t>(config.vocab_size));
  out->set_num_layers(static_cast<uint32_t>(config.num_layers));
  out->set_num_experts(static_cast<uint32_t>(config.num_experts));
  out->set_experts_per_token(static_cast<uint32_t>(config.experts_per_token));
  out->set_hidden_size(static_cast<uint32_t>(config.hidden_size));
  out->set_context_length(static_cast<uint32_t>(config.context_length));
  out->set_can_generate(model.can_generate());
  out->set_can_chat(model.can_chat());
  for (const Head& head : model.heads) FillHead(head, out->add_heads());
  for (int id : config.eos_token_ids) out->add_eos_token_ids(static_cast<uint32_t>(id));
  v1::Limits* limits = out->mutable_limits();
  limits->set_max_running(static_cast<uint32_t>(model.limits.max_running));
  limits->set_max_queued(static_cast<uint32_t>(model.limits.max_queued));
  limits->set_max_step_tokens(static_cast<uint32_t>(model.limits.max_step_tokens));
  limits->set_max_logprobs(kMaxLogprobs);
  limits->set_max_completions(kMaxCompletions);
  limits->set_max_batch(kMaxBatch);
  limits->set_max_prompt_tokens(static_cast<uint32_t>(model.longest_prompt(/*room=*/0)));
  limits->set_max_message_bytes(static_cast<uint32_t>(model.limits.max_message_bytes));
  limits->set_max_unread_bytes(static_cast<uint32_t>(model.limits.max_unread_bytes));
  limits->set_max_reply_bytes(static_cast<uint32_t>(model.limits.max_reply_bytes));
  out->mutable_experts()->set_checkpoint_layout(
      std::string(model::LayoutName(model.checkpoint->layout())));
}

absl::Status NoTokenizer() {
  return absl::FailedPreconditionError(
      "the model folder has no tokenizer.json; start the server with --tokenizer FILE");
}

absl::Status DoTokenize(const ServingModel& model, const v1::TokenizeRequest& request,
                        v1::TokenizeResponse* response) {
  if (model.tokenizer == nullptr) return NoTokenizer();
  const std::vector<int> ids = request.parse_special()
                                   ? model.tokenizer->EncodeWithSpecials(request.text())
                                   : model.tokenizer->Encode(request.text());
  response->mutable_ids()->Add(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::Status DoDetokenize(const ServingModel& model, const v1::DetokenizeRequest& request,
                          v1::DetokenizeResponse* response) {
  if (model.tokenizer == nullptr) return NoTokenizer();
  size_t bytes = 0;
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) >= static_cast<uint32_t>(model.config.vocab_size)) {
      return absl::InvalidArgumentError(fmt::format("ids[{}] is {}: token ids are in [0, {})", i,
                                                    request.ids(i), model.config.vocab_size));
    }
    bytes += model.tokenizer->TokenBytes(static_cast<int>(request.ids(i))).size();
  }
  if (bytes > static_cast<size_t>(model.limits.max_reply_bytes)) {
    return ReplyTooLarge(fmt::format("the text has {} bytes", bytes), model.limits.max_reply_bytes);
  }
  const std::vector<int> ids(request.ids().begin(), request.ids().end());
  response->set_text(model.tokenizer->Decode(ids));
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::GetModel(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  return AnswerUnary<v1::GetModelRequest, v1::GetModelResponse>(
      Method::kGetModel, engine_, context, *bytes, response,
      [this](const v1::GetModelRequest&, v1::GetModelResponse* out) {
        FillModel(model_, out);
        const v1::GetClusterResponse cluster = engine_.Snapshot();
        if (cluster.ranks_size() > 0) {
          out->mutable_experts()->set_resident_format(cluster.ranks(0).expert_format());
          out->mutable_experts()->set_kernel(cluster.ranks(0).kernel());
        }
        uint64_t launches = 0;
        for (const v1::Rank& rank : cluster.ranks()) launches += rank.mxfp4_launches();
        out->mutable_experts()->set_mxfp4_launches(launches);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ModelServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  return AnswerUnary<v1::TokenizeRequest, v1::TokenizeResponse>(
      Method::kTokenize, engine_, context, *bytes, response,
      [this](const auto& request, auto* out) { return DoTokenize(model_, request, out); });
}

grpc::ServerUnaryReactor* ModelServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes,
                                                       grpc::ByteBuffer* response) {
  return AnswerUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      Method::kDetokenize, engine_, context, *bytes, response,
      [this](const auto& request, auto* out) { return DoDetokenize(model_, request, out); });
}

}  // namespace conclave::coordinator
