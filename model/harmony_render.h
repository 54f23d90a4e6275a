#ifndef CONCLAVE_MODEL_HARMONY_RENDER_H_
#define CONCLAVE_MODEL_HARMONY_RENDER_H_

// Conversations to tokens, the same tokens as the openai-harmony library.
//
//   ASSIGN_OR_RETURN(auto tokens, HarmonyTokens::Find(*tokenizer));
//   HarmonyRenderer renderer(*tokenizer, tokens);
//   ASSIGN_OR_RETURN(auto prompt, renderer.Prompt(messages, HarmonyRole::kAssistant));
//
// Every text (names and schemas too) is encoded on its own, as ordinary text: no text becomes a
// special token. The one exception is a content type that begins with kConstrainMarker, which is
// the caller's to choose, never a user's.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/harmony.h"
#include "model/tokenizer.h"

namespace conclave::model {

// Which messages on the analysis channel are left out.
enum class HarmonyHistory {
  // When the last assistant message is on `final`: those before the conversation's first message on
  // `final`. Else none. The library's rule.
  kBeforeFirstFinal,
  // Those before the last user message.
  kOpenTurn,
  kAll,
};

// Indices of `messages` that stay, rising.
std::vector<size_t> HarmonyKeptMessages(std::span<const HarmonyMessage> messages,
                                        HarmonyHistory history);

// Borrows the tokenizer. Thread-safe.
class HarmonyRenderer {
 public:
  HarmonyRenderer(const Tokenizer& tokenizer, const HarmonyTokens& tokens)
      : tokenizer_(tokenizer), tokens_(tokens) {}

  // INVALID_ARGUMENT for a tool message without a name, system or developer content in a message of
  // another role, or a schema that is not JSON.
  absl::StatusOr<std::vector<int>> Conversation(
      std::span<const HarmonyMessage> messages,
      HarmonyHistory history = HarmonyHistory::kBeforeFirstFinal) const;

  // Conversation(), then the beginning of a header of `next`: the model writes the rest.
  absl::StatusOr<std::vector<int>> Prompt(
      std::span<const HarmonyMessage> messages, HarmonyRole next,
      HarmonyHistory history = HarmonyHistory::kBeforeFirstFinal) const;

  // Conversation(), the way the model itself would end it: with <|return|> after an answer.
  absl::StatusOr<std::vector<int>> Training(
      std::span<const HarmonyMessage> messages,
      HarmonyHistory history = HarmonyHistory::kBeforeFirstFinal) const;

  // Appends the rest of a header that Prompt() began: the model then writes content.
  void AppendChannel(std::string_view channel, std::vector<int>& ids) const;

 private:
  absl::Status AppendMessage(const HarmonyMessage& message, bool has_functions,
                             std::vector<int>& ids) const;
  absl::Status AppendHeader(const HarmonyHeader& header, std::vector<int>& ids) const;
  void AppendText(std::string_view text, std::vector<int>& ids) const;

  const Tokenizer& tokenizer_;
  const HarmonyTokens tokens_;
};

// Text of a system message; `has_functions`: some developer message defines functions.
absl::StatusOr<std::string> HarmonySystemText(const HarmonySystem& system, bool has_functions);
absl::StatusOr<std::string> HarmonyDeveloperText(const HarmonyDeveloper& developer);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_HARMONY_RENDER_H_
