#include "coordinator/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/status_macros.h"
#include "model/harmony_render.h"
#include "model/harmony_schema.h"

namespace conclave::coordinator {
namespace {

using model::HarmonyMessage;
using model::HarmonyRole;
using v1::ChatMessage;

constexpr size_t kMaxName = 64;

template <typename... Args>
absl::Status Invalid(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

bool IsInstructions(const ChatMessage& message) {
  return message.role() == ChatMessage::SYSTEM || message.role() == ChatMessage::DEVELOPER;
}

absl::Status CheckTools(const v1::Conversation& conversation, const std::string& field) {
  std::set<std::string> names;
  for (int i = 0; i < conversation.tools_size(); ++i) {
    const v1::FunctionTool& tool = conversation.tools(i);
    const std::string path = fmt::format("{}.tools[{}]", field, i);
    if (!IsHarmonyName(tool.name())) {
      return Invalid("{}.name is not 1 to {} of A-Z a-z 0-9 _ - .", path, kMaxName);
    }
    if (!names.insert(tool.name()).second) {
      return Invalid("{}.name is '{}', as another tool's is", path, tool.name());
    }
    const std::string& schema = tool.parameters_json();
    if (schema.empty()) continue;
    const size_t first = schema.find_first_not_of(" \t\r\n");
    if (first == std::string::npos || schema[first] != '{') {
      return Invalid("{}.parameters_json is not a JSON object", path);
    }
    if (auto type = model::HarmonySchemaType(schema); !type.ok()) {
      return Invalid("{}.parameters_json: {}", path, std::string(type.status().message()));
    }
  }
  for (int i = 0; i < conversation.builtin_tools_size(); ++i) {
    const v1::BuiltinTool tool = conversation.builtin_tools(i);
    if (tool != v1::BUILTIN_TOOL_BROWSER && tool != v1::BUILTIN_TOOL_PYTHON) {
      return Invalid("{}.builtin_tools[{}] is not a known tool", field, i);
    }
  }
  return absl::OkStatus();
}

// Fields that are for messages of other roles.
absl::Status CheckFields(const ChatMessage& message, const std::string& path) {
  if (!ChatMessage::Role_IsValid(message.role()) ||
      message.role() == ChatMessage::ROLE_UNSPECIFIED) {
    return Invalid("{}.role is not set", path);
  }
  if (message.role() != ChatMessage::ASSISTANT) {
    if (!message.reasoning().empty()) return Invalid("{}.reasoning is for ASSISTANT only", path);
    if (message.tool_calls_size() > 0) return Invalid("{}.tool_calls is for ASSISTANT only", path);
  }
  if (message.role() != ChatMessage::TOOL && !message.tool_call_id().empty()) {
    return Invalid("{}.tool_call_id is for TOOL only", path);
  }
  if (!message.name().empty() && !IsHarmonyName(message.name())) {
    return Invalid("{}.name is not 1 to {} of A-Z a-z 0-9 _ - .", path, kMaxName);
  }
  return absl::OkStatus();
}

size_t TextBytes(const v1::Conversation& conversation) {
  size_t bytes = 0;
  for (const ChatMessage& message : conversation.messages()) {
    bytes += message.content().size() + message.reasoning().size();
    for (const v1::ToolCall& call : message.tool_calls()) bytes += call.arguments().size();
  }
  for (const v1::FunctionTool& tool : conversation.tools()) {
    bytes += tool.description().size() + tool.parameters_json().size();
  }
  return bytes;
}

// One conversation on its way; messages are added in order.
class Translator {
 public:
  Translator(const v1::Conversation& conversation, const std::string& field)
      : conversation_(conversation),
        field_(field),
        with_tools_(conversation.tool_choice() != v1::TOOL_CHOICE_NONE) {
    for (const v1::FunctionTool& tool : conversation.tools()) functions_.insert(tool.name());
  }

  absl::StatusOr<std::vector<HarmonyMessage>> Run() {
    RETURN_IF_ERROR(AddSystem());
    const int first = AddInstructions();
    for (int i = first; i < conversation_.messages_size(); ++i) {
      const std::string path = fmt::format("{}.messages[{}]", field_, i);
      RETURN_IF_ERROR(Add(conversation_.messages(i), path));
    }
    return std::move(messages_);
  }

 private:
  // How the model addresses a tool.
  struct Address {
    std::string recipient;
    std::string_view channel;
    bool is_function;
  };

  Address AddressOf(const std::string& name) const {
    if (!functions_.contains(name) && IsBuiltinCall(name)) {
      return {name, model::kAnalysisChannel, false};
    }
    return {fmt::format("{}.{}", model::kFunctionsNamespace, name), model::kCommentaryChannel,
            true};
  }

  HarmonyMessage& AddMessage(HarmonyRole role, const std::string& text) {
    HarmonyMessage message;
    message.header.role = role;
    message.content.push_back(text);
    messages_.push_back(std::move(message));
    return messages_.back();
  }

  absl::Status AddSystem() {
    model::HarmonySystem system;
    const auto override_text = [](bool given, const std::string& value,
                                  std::optional<std::string>& text) {
      if (given) text = value;
      if (text.has_value() && text->empty()) text.reset();
    };
    override_text(conversation_.has_model_identity(), conversation_.model_identity(),
                  system.model_identity);
    override_text(conversation_.has_knowledge_cutoff(), conversation_.knowledge_cutoff(),
                  system.knowledge_cutoff);
    override_text(true, conversation_.current_date(), system.current_date);
    switch (conversation_.reasoning_effort()) {
      case v1::REASONING_EFFORT_LOW:
        system.effort = model::HarmonyEffort::kLow;
        break;
      case v1::REASONING_EFFORT_UNSPECIFIED:
      case v1::REASONING_EFFORT_MEDIUM:
        system.effort = model::HarmonyEffort::kMedium;
        break;
      case v1::REASONING_EFFORT_HIGH:
        system.effort = model::HarmonyEffort::kHigh;
        break;
      default:
        return Invalid("{}.reasoning_effort is not a known effort", field_);
    }
    for (const int tool : conversation_.builtin_tools()) {
      if (!with_tools_) break;
      if (tool == v1::BUILTIN_TOOL_BROWSER) system.tools["browser"] = model::HarmonyBrowserTool();
      if (tool == v1::BUILTIN_TOOL_PYTHON) system.tools["python"] = model::HarmonyPythonTool();
    }
    HarmonyMessage message;
    message.header.role = HarmonyRole::kSystem;
    message.content.push_back(std::move(system));
    messages_.push_back(std::move(message));
    return absl::OkStatus();
  }

  // The developer message: leading instructions, and the functions. Returns how many messages of
  // the conversation it holds.
  int AddInstructions() {
    model::HarmonyDeveloper developer;
    int first = 0;
    while (first < conversation_.messages_size() && IsInstructions(conversation_.messages(first))) {
      const std::string& text = conversation_.messages(first++).content();
      developer.instructions =
          developer.instructions.has_value() ? *developer.instructions + "\n\n" + text : text;
    }
    if (with_tools_ && conversation_.tools_size() > 0) {
      auto& functions = developer.tools[std::string(model::kFunctionsNamespace)].tools;
      for (const v1::FunctionTool& tool : conversation_.tools()) {
        model::HarmonyTool added = {tool.name(), tool.description(), std::nullopt};
        if (!tool.parameters_json().empty()) added.parameters_json = tool.parameters_json();
        functions.push_back(std::move(added));
      }
    }
    if (!developer.instructions.has_value() && developer.tools.empty()) return first;
    HarmonyMessage message;
    message.header.role = HarmonyRole::kDeveloper;
    message.content.push_back(std::move(developer));
    messages_.push_back(std::move(message));
    return first;
  }

  absl::Status Add(const ChatMessage& message, const std::string& path) {
    switch (message.role()) {
      case ChatMessage::ASSISTANT:
        return AddAssistant(message, path);
      case ChatMessage::TOOL:
        return AddToolResult(message, path);
      case ChatMessage::USER: {
        HarmonyMessage& added = AddMessage(HarmonyRole::kUser, message.content());
        if (!message.name().empty()) added.header.name = message.name();
        return absl::OkStatus();
      }
      default: {
        model::HarmonyDeveloper developer;
        developer.instructions = message.content();
        HarmonyMessage& added = AddMessage(HarmonyRole::kDeveloper, "");
        added.content = {std::move(developer)};
        return absl::OkStatus();
      }
    }
  }

  absl::Status AddAssistant(const ChatMessage& message, const std::string& path) {
    const bool calls = message.tool_calls_size() > 0;
    if (message.content().empty() && message.reasoning().empty() && !calls) {
      return Invalid("{} is empty: content, reasoning or tool_calls", path);
    }
    if (!message.reasoning().empty()) {
      AddMessage(HarmonyRole::kAssistant, message.reasoning()).header.channel =
          model::kAnalysisChannel;
    }
    if (!message.content().empty()) {
      AddMessage(HarmonyRole::kAssistant, message.content()).header.channel =
          calls ? model::kCommentaryChannel : model::kFinalChannel;
    }
    for (int i = 0; i < message.tool_calls_size(); ++i) {
      RETURN_IF_ERROR(AddCall(message.tool_calls(i), fmt::format("{}.tool_calls[{}]", path, i)));
    }
    return absl::OkStatus();
  }

  absl::Status AddCall(const v1::ToolCall& call, const std::string& path) {
    if (!IsHarmonyName(call.name())) {
      return Invalid("{}.name is not 1 to {} of A-Z a-z 0-9 _ - .", path, kMaxName);
    }
    if (!call.id().empty() && !calls_.emplace(call.id(), call.name()).second) {
      return Invalid("{}.id is an earlier call's", path);
    }
    const Address address = AddressOf(call.name());
    HarmonyMessage& added = AddMessage(HarmonyRole::kAssistant, call.arguments());
    added.header.recipient = address.recipient;
    added.header.channel = address.channel;
    added.header.content_type =
        address.is_function ? fmt::format("{}json", model::kConstrainMarker) : "code";
    return absl::OkStatus();
  }

  absl::Status AddToolResult(const ChatMessage& message, const std::string& path) {
    std::string name = message.name();
    if (!message.tool_call_id().empty()) {
      const auto call = calls_.find(message.tool_call_id());
      if (call == calls_.end()) {
        return Invalid("{}.tool_call_id: no earlier message makes that call", path);
      }
      if (!name.empty() && name != call->second) {
        return Invalid("{}.name is not '{}', to which the call was", path, call->second);
      }
      name = call->second;
    }
    if (name.empty()) return Invalid("{} names no call: set tool_call_id or name", path);
    const Address address = AddressOf(name);
    HarmonyMessage& added = AddMessage(HarmonyRole::kTool, message.content());
    added.header.name = address.recipient;
    added.header.recipient = "assistant";
    added.header.channel = address.channel;
    return absl::OkStatus();
  }

  const v1::Conversation& conversation_;
  const std::string& field_;
  const bool with_tools_;
  std::set<std::string> functions_;
  std::map<std::string, std::string> calls_;  // id to name
  std::vector<HarmonyMessage> messages_;
};

absl::StatusOr<model::HarmonyHistory> ToHistory(const v1::Conversation& conversation,
                                                const std::string& field) {
  switch (conversation.reasoning_history()) {
    case v1::REASONING_HISTORY_UNSPECIFIED:
      return model::HarmonyHistory::kBeforeFirstFinal;
    case v1::REASONING_HISTORY_OPEN_TURN:
      return model::HarmonyHistory::kOpenTurn;
    case v1::REASONING_HISTORY_ALL:
      return model::HarmonyHistory::kAll;
    default:
      return Invalid("{}.reasoning_history is not a known one", field);
  }
}

}  // namespace

bool IsHarmonyName(std::string_view name) {
  const auto is_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  return !name.empty() && name.size() <= kMaxName && std::all_of(name.begin(), name.end(), is_name);
}

bool IsBuiltinCall(std::string_view name) {
  return name == "python" || name.starts_with("browser.");
}

absl::StatusOr<std::vector<HarmonyMessage>> ToHarmony(const v1::Conversation& conversation,
                                                      const std::string& field, size_t size_limit) {
  if (conversation.messages_size() == 0) {
    return Invalid("{}.messages is empty: at least one", field);
  }
  const size_t bytes = TextBytes(conversation);
  if (bytes > size_limit) {
    return Invalid("{} has {} bytes of text: more than the context holds", field, bytes);
  }
  if (!v1::ToolChoice_IsValid(conversation.tool_choice())) {
    return Invalid("{}.tool_choice is not a known choice", field);
  }
  RETURN_IF_ERROR(CheckTools(conversation, field));
  for (int i = 0; i < conversation.messages_size(); ++i) {
    RETURN_IF_ERROR(
        CheckFields(conversation.messages(i), fmt::format("{}.messages[{}]", field, i)));
  }
  return Translator(conversation, field).Run();
}

absl::StatusOr<std::vector<int32_t>> RenderConversation(const ServingModel& model,
                                                        const v1::Conversation& conversation,
                                                        const std::string& field, int max_tokens,
                                                        std::string_view reply_channel) {
  if (!model.harmony.has_value()) {
    return absl::FailedPreconditionError(fmt::format(
        "{}: this checkpoint's tokenizer has no Harmony special tokens (<|start|>, <|message|>, "
        "...), so it cannot be given a conversation; send text or token ids",
        field));
  }
  const size_t size_limit = model.tokenizer->longest_token() * static_cast<size_t>(max_tokens);
  ASSIGN_OR_RETURN(const std::vector<HarmonyMessage> messages,
                   ToHarmony(conversation, field, size_limit));
  ASSIGN_OR_RETURN(const model::HarmonyHistory history, ToHistory(conversation, field));
  const std::string_view channel =
      conversation.reply_channel().empty() ? reply_channel : conversation.reply_channel();
  if (!channel.empty() && channel != model::kAnalysisChannel &&
      channel != model::kCommentaryChannel && channel != model::kFinalChannel) {
    return Invalid("{}.reply_channel is '{}': analysis, commentary or final", field, channel);
  }
  const model::HarmonyRenderer renderer(*model.tokenizer, *model.harmony);
  absl::StatusOr<std::vector<int>> ids =
      renderer.Prompt(messages, HarmonyRole::kAssistant, history);
  if (!ids.ok()) return Invalid("{}: {}", field, std::string(ids.status().message()));
  if (!channel.empty()) renderer.AppendChannel(channel, *ids);
  return *std::move(ids);
}

}  // namespace conclave::coordinator
