#include "coordinator/chat_reply.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "coordinator/conversation.h"

namespace conclave::coordinator {
namespace {

using model::HarmonyEvent;

// Between messages of one kind, which the client sees as one text.
constexpr char kMessageBreak[] = "\n\n";

// Unique within a conversation, whose turns may share a seed: not derived from the request.
std::string NewCallId() {
  std::random_device random;
  return fmt::format("call_{:08x}{:08x}", random(), random());
}

}  // namespace

ChatContext MakeChatContext(const v1::Conversation& conversation) {
  ChatContext context;
  context.reply_channel = conversation.reply_channel();
  context.calls_allowed = conversation.tool_choice() != v1::TOOL_CHOICE_NONE;
  for (const v1::FunctionTool& tool : conversation.tools()) context.functions.insert(tool.name());
  return context;
}

ChatReply::ChatReply(const ServingModel& model, ChatContext context)
    : model_(model),
      context_(std::move(context)),
      parser_(*model.tokenizer, *model.harmony, model::HarmonyRole::kAssistant) {
  if (context_.reply_channel.empty()) return;
  // The part of the header that the prompt gave.
  std::vector<HarmonyEvent> events;
  parser_.Append(model_.harmony->channel, events);
  for (const int id : model_.tokenizer->Encode(context_.reply_channel)) {
    parser_.Append(id, events);
  }
  parser_.Append(model_.harmony->message, events);
  std::vector<v1::ChatResponse> none;
  Take(events, none);
}

void ChatReply::Append(std::span<const TokenEvent> events,
                       std::vector<v1::ChatResponse>& responses) {
  std::vector<HarmonyEvent> parsed;
  for (const TokenEvent& event : events) {
    // Another stop token says nothing about the reply.
    if (event.is_stop && !model_.harmony->Closes(event.token)) continue;
    held_.push_back(event.token);
    held_bytes_ += model_.tokenizer->TokenBytes(event.token).size();
    Release(static_cast<size_t>(event.held_bytes), parsed);
    if (!event.stop_string) continue;
    if (!held_.empty()) {
      const std::string_view bytes = model_.tokenizer->TokenBytes(held_.front());
      const size_t shown = held_bytes_ - static_cast<size_t>(event.held_bytes);
      parser_.AppendBytes(bytes.substr(0, shown), parsed);
    }
    held_.clear();
    held_bytes_ = 0;
  }
  Take(parsed, responses);
}

// Parses what is held but for tokens that reach into the last `hidden` bytes.
void ChatReply::Release(size_t hidden, std::vector<HarmonyEvent>& parsed) {
  while (!held_.empty()) {
    const size_t bytes = model_.tokenizer->TokenBytes(held_.front()).size();
    if (held_bytes_ - bytes < hidden) return;
    parser_.Append(held_.front(), parsed);
    held_.pop_front();
    held_bytes_ -= bytes;
  }
}

void ChatReply::Finish(FinishReason reason, std::vector<v1::ChatResponse>& responses) {
  std::vector<HarmonyEvent> parsed;
  Release(0, parsed);
  const size_t held = parsed.size();
  parser_.Finish(parsed);
  // A header that was cut says nothing yet: half a channel, half a name.
  const auto last = parsed.begin() + static_cast<std::ptrdiff_t>(held);
  const bool text = std::any_of(last, parsed.end(), [](const HarmonyEvent& event) {
    return event.kind == HarmonyEvent::Kind::kText;
  });
  const bool header = last != parsed.end() && last->kind == HarmonyEvent::Kind::kHeader;
  if (header && !text) parsed.erase(last, parsed.end());
  Take(parsed, responses);
  v1::ChatFinish* finish = responses.emplace_back().mutable_finish();
  finish->set_malformed(malformed_ || parser_.malformed());
  switch (reason) {
    case FinishReason::kLength:
      finish->set_reason(v1::FINISH_REASON_LENGTH);
      break;
    case FinishReason::kCancelled:
      finish->set_reason(v1::FINISH_REASON_CANCELLED);
      break;
    default:
      finish->set_reason(calls_ > 0 ? v1::FINISH_REASON_TOOL_CALLS : v1::FINISH_REASON_STOP);
  }
}

void ChatReply::Take(std::vector<HarmonyEvent>& events, std::vector<v1::ChatResponse>& responses) {
  for (const HarmonyEvent& event : events) {
    switch (event.kind) {
      case HarmonyEvent::Kind::kHeader:
        BeginMessage(event, responses);
        break;
      case HarmonyEvent::Kind::kText:
        AddText(event.text, responses);
        break;
      case HarmonyEvent::Kind::kEnd:
        EndMessage(event);
        break;
    }
  }
}

void ChatReply::BeginMessage(const HarmonyEvent& event, std::vector<v1::ChatResponse>& responses) {
  open_ = true;
  begun_ = false;
  mode_ = Mode::kText;
  if (!event.surplus.empty()) {
    AddText(event.surplus, responses);
    spoke_ = true;
    begun_ = false;
  }
  mode_ = ModeOf(event.header);
  if (mode_ != Mode::kCall) return;
  call_id_ = NewCallId();
  arguments_.clear();
  ++calls_;
  v1::ToolCallDelta* call = responses.emplace_back().mutable_tool_call();
  call->set_index(calls_ - 1);
  call->set_id(call_id_);
  call->set_name(call_name_);
}

ChatReply::Mode ChatReply::ModeOf(const model::HarmonyHeader& header) {
  const std::string recipient = header.recipient.value_or("all");
  if (header.role != model::HarmonyRole::kAssistant) {
    malformed_ = true;
    return Mode::kText;
  }
  if (recipient != "all") {
    if (context_.calls_allowed && ResolveCall(recipient)) return Mode::kCall;
    malformed_ = true;
    return Mode::kText;
  }
  if (header.channel == model::kAnalysisChannel) return Mode::kReasoning;
  const bool known =
      header.channel == model::kCommentaryChannel || header.channel == model::kFinalChannel;
  malformed_ = malformed_ || !known;
  return Mode::kText;
}

// Whether `recipient` is a tool; sets call_name_ and is_function_.
bool ChatReply::ResolveCall(const std::string& recipient) {
  const std::string prefix = std::string(model::kFunctionsNamespace) + ".";
  if (recipient.starts_with(prefix) && recipient.size() > prefix.size()) {
    call_name_ = recipient.substr(prefix.size());
    is_function_ = true;
    return true;
  }
  call_name_ = recipient;
  is_function_ = context_.functions.contains(recipient);
  return is_function_ || IsBuiltinCall(recipient);
}

void ChatReply::EndMessage(const HarmonyEvent& event) {
  if (!open_) return;
  open_ = false;
  const bool is_call = mode_ == Mode::kCall;
  if (event.token == model_.harmony->call && !is_call) malformed_ = true;
  const bool closed = event.token >= 0;  // else the reply was cut
  if (is_call && is_function_ && closed && !nlohmann::json::accept(arguments_)) malformed_ = true;
  if (mode_ == Mode::kReasoning) reasoned_ = reasoned_ || begun_;
  if (mode_ == Mode::kText) spoke_ = spoke_ || begun_;
}

void ChatReply::AddText(const std::string& text, std::vector<v1::ChatResponse>& responses) {
  if (text.empty()) return;
  v1::ChatResponse* last = responses.empty() ? nullptr : &responses.back();
  if (mode_ == Mode::kCall) {
    arguments_ += text;
    if (last == nullptr || !last->has_tool_call() || last->tool_call().id() != call_id_) {
      last = &responses.emplace_back();
      last->mutable_tool_call()->set_index(calls_ - 1);
      last->mutable_tool_call()->set_id(call_id_);
      last->mutable_tool_call()->set_name(call_name_);
    }
    last->mutable_tool_call()->mutable_arguments()->append(text);
    return;
  }
  const bool reasoning = mode_ == Mode::kReasoning;
  const bool same_kind =
      last != nullptr && (reasoning ? last->has_reasoning_delta() : last->has_text_delta());
  if (!same_kind) last = &responses.emplace_back();
  std::string* delta = reasoning ? last->mutable_reasoning_delta() : last->mutable_text_delta();
  if (!begun_ && (reasoning ? reasoned_ : spoke_)) delta->append(kMessageBreak);
  begun_ = true;
  delta->append(text);
}

}  // namespace conclave::coordinator
