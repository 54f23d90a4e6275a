#include "client/chat_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "base/utf8.h"
#include "client/chat_output.h"
#include "client/chat_tools.h"
#include "client/claim_flags.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/interrupt.h"
#include "client/line_editor.h"
#include "client/sampling_flags.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "chat";
constexpr uint32_t kDefaultMaxTokens = 1024;
constexpr absl::Duration kGreetingTimeout = absl::Seconds(10);

struct Flags {
  ServerFlags server;
  std::optional<std::string> message;
  std::string system;
  std::string effort = "medium";
  std::string date;
  std::string tools;
  bool no_tools = false;
  bool show_reasoning = false;
  bool hide_reasoning = false;
  std::optional<uint32_t> max_tokens;
  SamplingFlags sampling;
  ClaimFlags claim;
  bool json = false;
};

// https://no-color.org: any value but an empty one.
bool WantsColor() {
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  return isatty(STDOUT_FILENO) != 0 && TerminalTakesEscapes();
}

ChatStyle StyleOf(const Flags& flags) {
  ChatStyle style;
  style.json = flags.json;
  style.color = WantsColor();
  style.terminal = isatty(STDOUT_FILENO) != 0;
  style.reasoning = flags.show_reasoning || (!flags.hide_reasoning && style.terminal);
  return style;
}

absl::StatusOr<v1::ChatRequest> MakeRequest(const Flags& flags) {
  v1::ChatRequest request;
  v1::Conversation* conversation = request.mutable_conversation();
  if (!flags.system.empty()) {
    v1::ChatMessage* message = conversation->add_messages();
    message->set_role(v1::ChatMessage::SYSTEM);
    message->set_content(flags.system);
  }
  if (flags.effort == "low") {
    conversation->set_reasoning_effort(v1::REASONING_EFFORT_LOW);
  } else if (flags.effort == "high") {
    conversation->set_reasoning_effort(v1::REASONING_EFFORT_HIGH);
  } else if (flags.effort != "medium") {
    return absl::FailedPreconditionError("--effort is low, medium or high");
  }
  conversation->set_current_date(flags.date);
  if (flags.no_tools) conversation->set_tool_choice(v1::TOOL_CHOICE_NONE);
  if (!flags.tools.empty()) {
    if (auto status = AddToolsFrom(flags.tools, conversation); !status.ok()) return status;
  }
  SetClaim(flags.claim, request);
  request.mutable_stop()->set_max_tokens(flags.max_tokens.value_or(kDefaultMaxTokens));
  if (auto status = SetSampling(flags.sampling, request.mutable_sampling()); !status.ok()) {
    return status;
  }
  return request;
}

// The conversation so far, and its turns.
class Session {
 public:
  Session(const Flags& flags, v1::ChatRequest request, Client client)
      : flags_(flags),
        style_(StyleOf(flags)),
        request_(std::move(request)),
        first_messages_(request_.conversation().messages_size()),
        client_(std::move(client)) {}

  // Whether the server is there and can chat, and who it is. An exit code.
  int Greet() {
    CallOptions options = flags_.server.call_options();
    options.timeout = std::min(options.timeout, kGreetingTimeout);
    const auto model = client_.GetModel(options);
    if (!model.ok()) return FailCall(kName, flags_.server.server, model.status());
    if (!model->can_chat()) {
      return Fail(kName, absl::FailedPreconditionError(fmt::format(
                             "{} cannot chat: it has no language-model head, or its tokenizer no "
                             "Harmony tokens; try 'conclave generate' or 'conclave classify'",
                             model->name())));
    }
    fmt::print(stderr,
               "{} at {}\nCtrl-C stops a reply, Ctrl-D ends the chat. /clear forgets it, /quit "
               "leaves.\n",
               model->name(), flags_.server.server);
    return kExitOk;
  }

  // Says `text` and shows the reply. Returns the exit code of a turn; the turn is taken back when
  // it failed or nothing came of it.
  int Say(const std::string& text) {
    const int before = request_.conversation().messages_size();
    v1::ChatMessage* message = request_.mutable_conversation()->add_messages();
    message->set_role(v1::ChatMessage::USER);
    message->set_content(text);
    return Turn(before);
  }

  // Calls of the last reply that are not answered.
  const v1::ChatMessage* OpenCalls() const {
    const auto& messages = request_.conversation().messages();
    if (messages.empty() || messages.rbegin()->tool_calls_size() == 0) return nullptr;
    return &*messages.rbegin();
  }

  int Answer(const std::vector<std::pair<std::string, std::string>>& results) {
    const int before = request_.conversation().messages_size();
    for (const auto& [id, text] : results) {
      v1::ChatMessage* message = request_.mutable_conversation()->add_messages();
      message->set_role(v1::ChatMessage::TOOL);
      message->set_tool_call_id(id);
      message->set_content(text);
    }
    return Turn(before);
  }

  void Clear() { Forget(first_messages_); }

 private:
  // All messages but the first `kept`.
  void Forget(int kept) {
    auto* messages = request_.mutable_conversation()->mutable_messages();
    messages->DeleteSubrange(kept, messages->size() - kept);
  }

  // The conversation had `before` messages before this turn.
  int Turn(int before) {
    // The guard first: threads that gRPC starts inherit the blocked signals.
    Cancellation cancellation;
    InterruptGuard guard([&] { cancellation.Cancel(); });
    CallOptions options = flags_.server.call_options();
    options.cancellation = &cancellation;
    ChatOutput output(style_);
    auto finish = client_.Chat(
        request_, [&](const v1::ChatResponse& event) { output.OnEvent(event); }, options);
    const bool interrupted = cancellation.cancelled() && !output.finished();
    if (interrupted) {
      // The server could not say so any more.
      finish = v1::ChatFinish();
      finish->set_reason(v1::FINISH_REASON_CANCELLED);
      output.Interrupted();
    }
    if (finish.ok()) {
      output.End(*finish);
    } else {
      output.EndLine();
    }
    if (!finish.ok() || output.empty()) {
      Forget(before);
    } else {
      Keep(output);
    }
    if (interrupted) return kExitInterrupted;
    if (!finish.ok()) return FailCall(kName, flags_.server.server, finish.status());
    return kExitOk;
  }

  void Keep(const ChatOutput& output) {
    v1::ChatMessage* reply = request_.mutable_conversation()->add_messages();
    *reply = output.message();
    reply->set_role(v1::ChatMessage::ASSISTANT);
  }

  const Flags& flags_;
  const ChatStyle style_;
  v1::ChatRequest request_;
  const int first_messages_;
  Client client_;
};

// Asks for the result of each call; nothing when the user gives up.
std::optional<std::vector<std::pair<std::string, std::string>>> AskResults(
    LineEditor& editor, const v1::ChatMessage& calls) {
  std::vector<std::pair<std::string, std::string>> results;
  for (const v1::ToolCall& call : calls.tool_calls()) {
    const LineEditor::Line line = editor.Read(fmt::format("result of {}> ", call.name()));
    if (line.kind != LineEditor::Kind::kLine) return std::nullopt;
    results.emplace_back(call.id(), line.text);
  }
  return results;
}

int RunAtTerminal(const Flags& flags, v1::ChatRequest request) {
  LineEditor editor;  // before the threads of the client
  absl::StatusOr<Client> client = flags.server.Connect();
  if (!client.ok()) return Fail(kName, client.status());
  Session session(flags, std::move(request), *std::move(client));
  if (const int code = session.Greet(); code != kExitOk) return code;
  for (;;) {
    const LineEditor::Line line = editor.Read("you> ");
    if (line.kind == LineEditor::Kind::kInterrupted) continue;
    if (line.kind == LineEditor::Kind::kEnd || line.text == "/quit") break;
    if (line.text == "/clear") {
      session.Clear();
      fmt::print(stderr, "[forgotten]\n");
      continue;
    }
    if (line.text.find_first_not_of(" \t\n") == std::string::npos) continue;
    if (line.text.starts_with('/') && line.text.find_first_of(" \n") == std::string::npos) {
      fmt::print(stderr, "{} is not a command: /clear, /quit\n", line.text);
      continue;
    }
    // An error was printed and leaves the conversation as it was.
    session.Say(line.text);
    while (const v1::ChatMessage* calls = session.OpenCalls()) {
      const auto results = AskResults(editor, *calls);
      if (!results.has_value()) break;
      session.Answer(*results);
    }
  }
  return kExitOk;
}

int Run(const Flags& flags) {
  absl::StatusOr<v1::ChatRequest> request = MakeRequest(flags);
  if (absl::IsFailedPrecondition(request.status())) {
    return FailUsage(kName, std::string(request.status().message()));
  }
  if (!request.ok()) return Fail(kName, request.status());
  const bool terminal = isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
  if (!flags.message.has_value() && terminal) return RunAtTerminal(flags, *std::move(request));
  std::string text = flags.message.value_or("");
  if (!flags.message.has_value()) {
    if (isatty(STDIN_FILENO) != 0) fmt::print(stderr, "Your message, up to Ctrl-D:\n");
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
    while (text.ends_with('\n')) text.pop_back();
  }
  if (text.empty()) {
    return FailUsage(kName, "give --message TEXT, a text on standard input, or a terminal");
  }
  if (const size_t valid = base::ValidUtf8Prefix(text); valid != text.size()) {
    return Fail(kName, absl::InvalidArgumentError(
                           fmt::format("the message is not UTF-8 at byte {}", valid)));
  }
  absl::StatusOr<Client> client = flags.server.Connect();
  if (!client.ok()) return Fail(kName, client.status());
  Session session(flags, *std::move(request), *std::move(client));
  return session.Say(text);
}

}  // namespace

void AddChatCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command = app.AddCommand(kName, "Talk with the model, at a terminal or in a pipe");
  AddServerFlags(command, &flags->server);
  command
      .Add("--message", &flags->message,
           "Say this, print the reply and exit; else standard input, or a conversation where that "
           "is a terminal")
      .Type("TEXT");
  command.Add("--system", &flags->system, "Instructions to the model").Type("TEXT");
  command.Add("--effort", &flags->effort, "Reasoning effort: low, medium or high [medium]")
      .Type("LEVEL");
  command.Add("--date", &flags->date, "Today's date as the model shall know it [none]")
      .Type("YYYY-MM-DD");
  command.Add("--tools", &flags->tools, "JSON file with a list of functions the model may call")
      .Type("FILE");
  command.AddSwitch("--no-tool-calls", &flags->no_tools, "Keep the model from calling functions");
  command.Add("--max-tokens", &flags->max_tokens,
              "Tokens of a reply at most, reasoning included "
              "[1024]");
  AddSamplingFlags(command, &flags->sampling);
  AddClaimFlags(command, &flags->claim);
  command.AddSwitch("--show-reasoning", &flags->show_reasoning,
                    "Print the model's reasoning where output is not a terminal too");
  command.AddSwitch("--hide-reasoning", &flags->hide_reasoning, "Never print it");
  command.AddSwitch("--json", &flags->json, "Print one JSON object per reply instead of text");
  command.SetFooter(
      "Ctrl-C cancels the reply: what has arrived stays in the conversation. Text pasted over "
      "several lines is one message. Colors obey NO_COLOR.\n\n"
      "Example:\n"
      "  conclave chat --server 127.0.0.1:50051\n"
      "  conclave chat --message 'What is the capital of France?' --effort low --json\n"
      "  cat question.txt | conclave chat --system 'Answer in one sentence.'");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
