#ifndef CONCLAVE_MODEL_HARMONY_H_
#define CONCLAVE_MODEL_HARMONY_H_

// The Harmony chat format, in which gpt-oss is trained: messages, and the special tokens between
// them. harmony_render.h turns conversations into tokens, harmony_parser.h tokens into messages.
//
//   <|start|>{role}[ to={recipient}][<|channel|>{channel}][ {content type}]<|message|>{text}<|end|>

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace conclave::model {

enum class HarmonyRole { kSystem, kDeveloper, kUser, kAssistant, kTool };

// "system", "developer", "user", "assistant" or "tool".
std::string_view HarmonyRoleName(HarmonyRole role);
std::optional<HarmonyRole> HarmonyRoleOf(std::string_view name);

inline constexpr std::string_view kAnalysisChannel = "analysis";  // reasoning
inline constexpr std::string_view kCommentaryChannel =
    "commentary";                                           // calls, and what is said first
inline constexpr std::string_view kFinalChannel = "final";  // the answer
// Key of the functions that a developer message defines, and first part of their recipients.
inline constexpr std::string_view kFunctionsNamespace = "functions";
// First part of a content type that is rendered with the special token.
inline constexpr std::string_view kConstrainMarker = "<|constrain|>";

struct HarmonyTool {
  std::string name;
  std::string description;
  // A JSON schema; unset: the tool takes no arguments.
  std::optional<std::string> parameters_json;
};

struct HarmonyToolNamespace {
  std::optional<std::string> description;
  std::vector<HarmonyTool> tools;
};

// By name.
using HarmonyToolNamespaces = std::map<std::string, HarmonyToolNamespace>;

enum class HarmonyEffort { kLow, kMedium, kHigh };

// Content of a system message.
struct HarmonySystem {
  std::optional<std::string> model_identity =
      "You are ChatGPT, a large language model trained by OpenAI.";
  std::optional<std::string> knowledge_cutoff = "2024-06";
  std::optional<std::string> current_date;  // YYYY-MM-DD
  std::optional<HarmonyEffort> effort = HarmonyEffort::kMedium;
  HarmonyToolNamespaces tools;
  std::vector<std::string> channels = {std::string(kAnalysisChannel),
                                       std::string(kCommentaryChannel), std::string(kFinalChannel)};
  bool channel_required = true;
};

// Content of a developer message.
struct HarmonyDeveloper {
  std::optional<std::string> instructions;
  HarmonyToolNamespaces tools;
};

using HarmonyContent = std::variant<std::string, HarmonySystem, HarmonyDeveloper>;

// What stands before <|message|>.
struct HarmonyHeader {
  HarmonyRole role = HarmonyRole::kUser;
  std::optional<std::string> name;  // of the author; a tool must have one
  std::optional<std::string> channel;
  std::optional<std::string> recipient;  // "all" is the same as none
  std::optional<std::string> content_type;

  bool operator==(const HarmonyHeader&) const = default;
};

struct HarmonyMessage {
  HarmonyHeader header;
  std::vector<HarmonyContent> content;
};

// Ids of the special tokens that the format is made of.
struct HarmonyTokens {
  int start = 0;
  int message = 0;
  int channel = 0;
  int constrain = 0;
  int end = 0;
  int ret = 0;  // <|return|>
  int call = 0;

  // By name. FAILED_PRECONDITION lists those that `tokenizer` does not have.
  static absl::StatusOr<HarmonyTokens> Find(const Tokenizer& tokenizer);

  // Whether the token closes a message.
  bool Closes(int id) const { return id == end || id == ret || id == call; }
};

// The tools that gpt-oss is trained on: search, open and find of a browser; a Python session.
HarmonyToolNamespace HarmonyBrowserTool();
HarmonyToolNamespace HarmonyPythonTool();

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_HARMONY_H_
