#ifndef CONCLAVE_COORDINATOR_CHAT_REPLY_H_
#define CONCLAVE_COORDINATOR_CHAT_REPLY_H_

// From token events to the typed events of a Chat: reasoning, text, tool calls, finish. One per
// reply; not thread-safe.

#include <deque>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "model/harmony_parser.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

// What a reply's interpretation depends on.
struct ChatContext {
  std::string reply_channel;        // the prompt's; empty: the model writes the whole header
  std::set<std::string> functions;  // names
  bool calls_allowed = true;
};

ChatContext MakeChatContext(const v1::Conversation& conversation);

class ChatReply {
 public:
  // `model` has Harmony tokens, and outlives this.
  ChatReply(const ServingModel& model, ChatContext context);

  // Appends to `responses`; neighbouring pieces of the same kind are joined.
  void Append(std::span<const TokenEvent> events, std::vector<v1::ChatResponse>& responses);
  // What was still held back, and the finish, but for its usage, timings and seed.
  void Finish(FinishReason reason, std::vector<v1::ChatResponse>& responses);

 private:
  enum class Mode { kReasoning, kText, kCall };

  void Release(size_t hidden, std::vector<model::HarmonyEvent>& parsed);
  void Take(std::vector<model::HarmonyEvent>& events, std::vector<v1::ChatResponse>& responses);
  void BeginMessage(const model::HarmonyEvent& event, std::vector<v1::ChatResponse>& responses);
  Mode ModeOf(const model::HarmonyHeader& header);
  bool ResolveCall(const std::string& recipient);
  void EndMessage(const model::HarmonyEvent& event);
  void AddText(const std::string& text, std::vector<v1::ChatResponse>& responses);

  const ServingModel& model_;
  const ChatContext context_;
  model::HarmonyParser parser_;
  bool malformed_ = false;
  // Tokens whose text may be a stop string's, and how many bytes that is.
  std::deque<int> held_;
  size_t held_bytes_ = 0;

  // Of the open message.
  bool open_ = false;
  Mode mode_ = Mode::kText;
  bool begun_ = false;  // some of its text is out
  // Of the call that it is.
  std::string call_id_;
  std::string call_name_;
  std::string arguments_;
  bool is_function_ = false;

  uint32_t calls_ = 0;
  bool reasoned_ = false;  // an earlier message had reasoning; text
  bool spoke_ = false;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CHAT_REPLY_H_
