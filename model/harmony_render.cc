#include "model/harmony_render.h"

#include <variant>

#include "base/status_macros.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

bool OnChannel(const HarmonyMessage& message, std::string_view channel) {
  return message.header.channel == channel;
}

bool DefinesFunctions(const HarmonyMessage& message) {
  for (const HarmonyContent& content : message.content) {
    const auto* developer = std::get_if<HarmonyDeveloper>(&content);
    if (developer == nullptr) continue;
    const auto functions = developer->tools.find(std::string(kFunctionsNamespace));
    if (functions != developer->tools.end() && !functions->second.tools.empty()) return true;
  }
  return false;
}

bool AnyDefinesFunctions(std::span<const HarmonyMessage> messages) {
  for (const HarmonyMessage& message : messages) {
    if (DefinesFunctions(message)) return true;
  }
  return false;
}

// Messages in [0, end) lose their analysis.
size_t DropEnd(std::span<const HarmonyMessage> messages, HarmonyHistory history) {
  if (history == HarmonyHistory::kAll) return 0;
  if (history == HarmonyHistory::kOpenTurn) {
    for (size_t i = messages.size(); i > 0; --i) {
      if (messages[i - 1].header.role == HarmonyRole::kUser) return i - 1;
    }
    return 0;
  }
  bool answered = false;  // by the last assistant message
  for (size_t i = messages.size(); i > 0; --i) {
    if (messages[i - 1].header.role != HarmonyRole::kAssistant) continue;
    answered = OnChannel(messages[i - 1], kFinalChannel);
    break;
  }
  if (!answered) return 0;
  size_t first = 0;
  while (!OnChannel(messages[first], kFinalChannel)) ++first;
  return first;
}

}  // namespace

std::vector<size_t> HarmonyKeptMessages(std::span<const HarmonyMessage> messages,
                                        HarmonyHistory history) {
  const size_t end = DropEnd(messages, history);
  std::vector<size_t> kept;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i >= end || !OnChannel(messages[i], kAnalysisChannel)) kept.push_back(i);
  }
  return kept;
}

absl::StatusOr<std::vector<int>> HarmonyRenderer::Conversation(
    std::span<const HarmonyMessage> messages, HarmonyHistory history) const {
  const bool has_functions = AnyDefinesFunctions(messages);
  std::vector<int> ids;
  for (const size_t i : HarmonyKeptMessages(messages, history)) {
    RETURN_IF_ERROR(AppendMessage(messages[i], has_functions, ids));
  }
  return ids;
}

absl::StatusOr<std::vector<int>> HarmonyRenderer::Prompt(std::span<const HarmonyMessage> messages,
                                                         HarmonyRole next,
                                                         HarmonyHistory history) const {
  ASSIGN_OR_RETURN(std::vector<int> ids, Conversation(messages, history));
  ids.push_back(tokens_.start);
  AppendText(HarmonyRoleName(next), ids);
  return ids;
}

absl::StatusOr<std::vector<int>> HarmonyRenderer::Training(std::span<const HarmonyMessage> messages,
                                                           HarmonyHistory history) const {
  ASSIGN_OR_RETURN(std::vector<int> ids, Conversation(messages, history));
  const bool answered = !messages.empty() && OnChannel(messages.back(), kFinalChannel) &&
                        messages.back().header.role == HarmonyRole::kAssistant;
  if (answered && !ids.empty()) ids.back() = tokens_.ret;
  return ids;
}

void HarmonyRenderer::AppendChannel(std::string_view channel, std::vector<int>& ids) const {
  ids.push_back(tokens_.channel);
  AppendText(channel, ids);
  ids.push_back(tokens_.message);
}

absl::Status HarmonyRenderer::AppendMessage(const HarmonyMessage& message, bool has_functions,
                                            std::vector<int>& ids) const {
  RETURN_IF_ERROR(AppendHeader(message.header, ids));
  for (const HarmonyContent& content : message.content) {
    if (const auto* system = std::get_if<HarmonySystem>(&content)) {
      if (message.header.role != HarmonyRole::kSystem) {
        return absl::InvalidArgumentError("system content is for system messages only");
      }
      ASSIGN_OR_RETURN(const std::string text, HarmonySystemText(*system, has_functions));
      AppendText(text, ids);
    } else if (const auto* developer = std::get_if<HarmonyDeveloper>(&content)) {
      if (message.header.role != HarmonyRole::kDeveloper) {
        return absl::InvalidArgumentError("developer content is for developer messages only");
      }
      ASSIGN_OR_RETURN(const std::string text, HarmonyDeveloperText(*developer));
      AppendText(text, ids);
    } else {
      AppendText(std::get<std::string>(content), ids);
    }
  }
  const bool is_call =
      message.header.role == HarmonyRole::kAssistant && message.header.recipient.has_value();
  ids.push_back(is_call ? tokens_.call : tokens_.end);
  return absl::OkStatus();
}

absl::Status HarmonyRenderer::AppendHeader(const HarmonyHeader& header,
                                           std::vector<int>& ids) const {
  ids.push_back(tokens_.start);
  if (header.role == HarmonyRole::kTool) {
    if (!header.name.has_value()) {
      return absl::InvalidArgumentError("a tool message needs the name of its tool");
    }
    AppendText(*header.name, ids);
  } else {
    AppendText(HarmonyRoleName(header.role), ids);
    if (header.name.has_value()) AppendText(":" + *header.name, ids);
  }
  if (header.recipient.has_value() && header.recipient != "all") {
    AppendText(" to=" + *header.recipient, ids);
  }
  if (header.channel.has_value()) {
    ids.push_back(tokens_.channel);
    AppendText(*header.channel, ids);
  }
  if (header.content_type.has_value()) {
    const std::string_view type = *header.content_type;
    if (type.starts_with(kConstrainMarker)) {
      AppendText(" ", ids);
      ids.push_back(tokens_.constrain);
      AppendText(type.substr(kConstrainMarker.size()), ids);
    } else {
      AppendText(fmt::format(" {}", type), ids);
    }
  }
  ids.push_back(tokens_.message);
  return absl::OkStatus();
}

void HarmonyRenderer::AppendText(std::string_view text, std::vector<int>& ids) const {
  const std::vector<int> encoded = tokenizer_.Encode(text);
  ids.insert(ids.end(), encoded.begin(), encoded.end());
}

}  // namespace conclave::model
