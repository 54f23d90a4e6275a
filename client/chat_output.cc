#include "client/chat_output.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/utf8.h"
#include "client/json_shapes.h"

namespace conclave::client {
namespace {

constexpr char kDim[] = "\x1b[2m";
constexpr char kPlain[] = "\x1b[0m";

// Whole UTF-8, with the symbols of Unicode's Control Pictures for what a terminal would obey.
std::string Visible(const std::string& text) {
  std::string shown;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c1) {
      ++i;
      shown += base::kReplacementCharacter;
    } else if (c == 0x7F) {
      shown += "\u2421";
    } else if (c < 0x20 && c != '\n' && c != '\t') {
      shown += {'\xE2', '\x90', static_cast<char>(0x80 + c)};  // U+2400 + c
    } else {
      shown += text[i];
    }
  }
  return shown;
}

}  // namespace

void ChatOutput::OnEvent(const v1::ChatResponse& event) {
  switch (event.event_case()) {
    case v1::ChatResponse::kReasoningDelta:
      message_.mutable_reasoning()->append(event.reasoning_delta());
      if (!style_.reasoning) return;
      Begin(Part::kReasoning);
      return Print(event.reasoning_delta());
    case v1::ChatResponse::kTextDelta:
      message_.mutable_content()->append(event.text_delta());
      Begin(Part::kText);
      return Print(event.text_delta());
    case v1::ChatResponse::kToolCall: {
      const v1::ToolCallDelta& delta = event.tool_call();
      if (delta.index() >= static_cast<uint32_t>(message_.tool_calls_size())) {
        v1::ToolCall* call = message_.add_tool_calls();
        call->set_id(delta.id());
        call->set_name(delta.name());
        EndLine();
        Begin(Part::kCall);
        Print(fmt::format("[call {}] ", delta.name()));
      }
      v1::ToolCall* last = message_.mutable_tool_calls(message_.tool_calls_size() - 1);
      last->mutable_arguments()->append(delta.arguments());
      return Print(delta.arguments());
    }
    case v1::ChatResponse::kFinish:
      finished_ = true;
      return;
    case v1::ChatResponse::EVENT_NOT_SET:
      return;
  }
}

void ChatOutput::Begin(Part part) {
  if (part == part_) return;
  if (part_ != Part::kNone) EndLine();
  part_ = part;
  if (style_.json || !style_.color || part != Part::kReasoning) return;
  std::fputs(kDim, stdout);
  ink_ = true;
}

void ChatOutput::Print(const std::string& text) {
  if (style_.json || text.empty()) return;
  const std::string shown = style_.terminal ? Visible(text) : text;
  std::fwrite(shown.data(), 1, shown.size(), stdout);
  std::fflush(stdout);
  line_open_ = text.back() != '\n';
}

void ChatOutput::EndLine() {
  if (style_.json) return;
  if (ink_) std::fputs(kPlain, stdout);
  ink_ = false;
  if (line_open_) std::fputs("\n", stdout);
  line_open_ = false;
  std::fflush(stdout);
}

void ChatOutput::End(const v1::ChatFinish& finish) {
  EndLine();
  const bool cut =
      finish.reason() == v1::FINISH_REASON_LENGTH || finish.reason() == v1::FINISH_REASON_CANCELLED;
  if (style_.json) fmt::print("{}\n", Dump(ChatJson(message_, finish)));
  std::fflush(stdout);
  if (!style_.json) {
    fmt::print(stderr, "{}[{}{}]{}\n", style_.color ? kDim : "", ChatSummary(finish),
               empty() && finish.reason() == v1::FINISH_REASON_CANCELLED
                   ? " before the reply began: what was said is taken back"
                   : "",
               style_.color ? kPlain : "");
  }
  if (cut) message_.clear_tool_calls();
}

bool ChatOutput::empty() const {
  return message_.content().empty() && message_.reasoning().empty() &&
         message_.tool_calls_size() == 0;
}

std::string ChatSummary(const v1::ChatFinish& finish) {
  if (!finish.has_usage()) return FinishReasonName(finish.reason());
  std::string text =
      fmt::format("{}: {} prompt + {} generated tokens", FinishReasonName(finish.reason()),
                  finish.usage().prompt_tokens(), finish.usage().completion_tokens());
  if (finish.has_timings()) {
    text += fmt::format(", {:.2f} s, first after {:.2f} s", finish.timings().total_seconds(),
                        finish.timings().first_token_seconds());
  }
  if (finish.malformed()) text += "; the reply breaks the chat format";
  return text;
}

}  // namespace conclave::client
