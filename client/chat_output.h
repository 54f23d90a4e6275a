#ifndef CONCLAVE_CLIENT_CHAT_OUTPUT_H_
#define CONCLAVE_CLIENT_CHAT_OUTPUT_H_

// One reply of a chat: what arrived, and how it is shown while it arrives.

#include <string>

#include "proto/conclave/v1/generation.pb.h"

namespace conclave::client {

struct ChatStyle {
  bool json = false;
  bool reasoning = false;  // show it
  bool color = false;      // reasoning and notes are dimmed
  bool terminal = false;   // control characters of the reply are shown, not sent
};

class ChatOutput {
 public:
  explicit ChatOutput(const ChatStyle& style) : style_(style) {}

  void OnEvent(const v1::ChatResponse& event);
  // After the stream, however it ended; `finish` is what came, or stands for it.
  void End(const v1::ChatFinish& finish);
  // Partial text ends here, so that what follows starts on a line of its own.
  void EndLine();
  // A key's ^C may stand after what was printed.
  void Interrupted() { line_open_ = line_open_ || style_.terminal; }

  // As an ASSISTANT message: reasoning, text and calls. Calls that were cut are left out.
  const v1::ChatMessage& message() const { return message_; }
  bool finished() const { return finished_; }
  bool empty() const;

 private:
  enum class Part { kNone, kReasoning, kText, kCall };

  void Begin(Part part);
  void Print(const std::string& text);

  const ChatStyle style_;
  v1::ChatMessage message_;
  bool finished_ = false;
  Part part_ = Part::kNone;
  bool line_open_ = false;
  bool ink_ = false;  // dimmed now
};

// "stop: 12 prompt + 40 generated tokens, 1.20 s", and what else is to be said; the reason alone
// without usage.
std::string ChatSummary(const v1::ChatFinish& finish);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CHAT_OUTPUT_H_
