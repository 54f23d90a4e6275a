#ifndef CONCLAVE_MODEL_HARMONY_PARSER_H_
#define CONCLAVE_MODEL_HARMONY_PARSER_H_

// Tokens to messages, one token at a time. Never fails: what breaks the format becomes text, and
// malformed() says so.
//
//   HarmonyParser parser(*tokenizer, tokens, HarmonyRole::kAssistant);
//   std::vector<HarmonyEvent> events;
//   for (int id : sampled) parser.Append(id, events);
//   parser.Finish(events);

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/harmony.h"
#include "model/tokenizer.h"

namespace conclave::model {

// The texts of all events, one after the other, are the decoded input: nothing is lost.
struct HarmonyEvent {
  enum class Kind {
    kHeader,  // a message begins
    kText,    // a piece of its content
    kEnd,     // it ends; without a message before it: tokens that belong to none
  };
  Kind kind = Kind::kText;
  // The input that the event accounts for, special tokens by name; always whole UTF-8 characters,
  // bytes that never form one as U+FFFD.
  std::string text;
  HarmonyHeader header;  // kHeader
  std::string surplus;   // kHeader: words of it that mean nothing, separated by spaces
  int token = -1;        // kEnd: the token that closed the message; -1: none did
};

// As the openai-harmony library's parser where that succeeds. What it does where the library fails:
//   - text between messages is a message of the assistant without a channel; <|channel|> or a role
//     there begins a header whose <|start|> is missing;
//   - a header that is closed before <|message|>, or too long to be one, is its channel and
//   content;
//   - <|start|> within a header begins the header anew;
//   - words of a header that mean nothing are its `surplus`.
class HarmonyParser {
 public:
  // `next_role` set: the input follows a prompt that ends in <|start|> and this role. Else it
  // begins with <|start|>. Borrows the tokenizer.
  HarmonyParser(const Tokenizer& tokenizer, const HarmonyTokens& tokens,
                std::optional<HarmonyRole> next_role);

  void Append(int id, std::vector<HarmonyEvent>& events);
  // A part of a token, as text: the rest of it was cut off by a stop string. Only within content;
  // what is cut from a header says nothing.
  void AppendBytes(std::string_view bytes, std::vector<HarmonyEvent>& events);
  // The input ends here, maybe within a message, which alone does not make it malformed. Nothing
  // may be appended after it.
  void Finish(std::vector<HarmonyEvent>& events);

  // Whether anything so far broke the format.
  bool malformed() const { return malformed_; }

 private:
  enum class State { kBetween, kHeader, kContent };

  void AppendBetween(int id, std::vector<HarmonyEvent>& events);
  void AppendHeader(int id, std::vector<HarmonyEvent>& events);
  void AppendContent(int id, std::vector<HarmonyEvent>& events);

  void BeginHeader(std::optional<HarmonyRole> role, std::string_view spelled);
  void AddToHeader(int id);
  void EndHeader(std::vector<HarmonyEvent>& events);
  void AbandonHeader(int token, std::string_view spelled, std::vector<HarmonyEvent>& events);
  void RecoverHeader(std::vector<HarmonyEvent>& events);
  void BeginText(std::string spelled, HarmonyHeader header, std::vector<HarmonyEvent>& events);
  void AddText(std::string_view bytes, std::vector<HarmonyEvent>& events);
  void Close(int token, std::string_view spelled, std::vector<HarmonyEvent>& events);

  const Tokenizer& tokenizer_;
  const HarmonyTokens tokens_;
  State state_ = State::kBetween;
  bool malformed_ = false;

  // kHeader. The role, if it is known from the prompt.
  std::optional<HarmonyRole> role_;
  std::string opening_;  // "<|start|>" or nothing
  std::string header_;   // bytes, special tokens by name
  int header_tokens_ = 0;
  std::optional<size_t> channel_at_;  // of the first <|channel|> in header_
  bool stray_special_ = false;        // header_ has special tokens that do not belong into one

  // kContent: the message has no header of its own, so the next one ends it.
  bool implicit_ = false;
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

struct HarmonyParse {
  std::vector<HarmonyMessage> messages;  // of one text each
  bool malformed = false;
};

// All of `ids` at once.
HarmonyParse ParseHarmony(const Tokenizer& tokenizer, const HarmonyTokens& tokens,
                          std::span<const int> ids, std::optional<HarmonyRole> next_role);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_HARMONY_PARSER_H_
