#include "client/classify_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/format.h"
#include "client/json_shapes.h"
#include "client/prompt_flags.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "classify";

struct Flags {
  ServerFlags server;
  PromptFlags prompt;
  std::string head;
  bool json = false;
};

// A head may be left out when there is just one.
absl::Status CheckHeadGiven(const v1::GetModelResponse& model, const std::string& head) {
  if (!head.empty() || model.heads_size() <= 1) return absl::OkStatus();
  std::vector<std::string> names;
  for (const auto& info : model.heads()) names.push_back(info.name());
  return absl::InvalidArgumentError(
      fmt::format("the server has several heads ({}): name one with "
                  "--head",
                  fmt::join(names, ", ")));
}

// The method that serves `head`. A head the server does not have goes to a method that it serves,
// whose error then lists the heads.
v1::HeadInfo::Kind KindOf(const v1::GetModelResponse& model, const std::string& head) {
  v1::HeadInfo::Kind any = v1::HeadInfo::SEQUENCE;
  for (const auto& info : model.heads()) {
    if (info.name() == head || (head.empty() && model.heads_size() == 1)) return info.kind();
    any = info.kind();
  }
  return any;
}

void PrintSequence(const v1::SequenceClassification& result) {
  Table table({"label", "score", "logit"});
  for (const auto& label : result.labels()) {
    table.AddRow({label.label(), fmt::format("{:.4f}", label.score()),
                  fmt::format("{:.4f}", label.logit())});
  }
  fmt::print("{}", table.ToString());
}

// `text` is the input; empty when it was token ids.
void PrintTokens(const v1::TokenClassification& result, const std::string& text) {
  Table tokens({"token", "bytes", "label", "score", "text"});
  for (const auto& token : result.tokens()) {
    const bool inside = token.start_byte() <= token.end_byte() && token.end_byte() <= text.size();
    tokens.AddRow(
        {std::to_string(token.token()), fmt::format("{}-{}", token.start_byte(), token.end_byte()),
         token.label(), fmt::format("{:.4f}", token.score()),
         inside ? Escape(text.substr(token.start_byte(), token.end_byte() - token.start_byte()))
                : ""});
  }
  fmt::print("{}\n", tokens.ToString());
  if (result.spans().empty()) {
    fmt::print("no spans\n");
    return;
  }
  Table spans({"span", "score", "characters", "text"});
  for (const auto& span : result.spans()) {
    spans.AddRow({span.label(), fmt::format("{:.4f}", span.score()),
                  fmt::format("{}-{}", span.start_char(), span.end_char()), Escape(span.text())});
  }
  fmt::print("{}", spans.ToString());
}

absl::Status WrongCount(int results) {
  return absl::InternalError(fmt::format("the server sent {} results for one input", results));
}

absl::Status ClassifySequence(Client& client, const Flags& flags, v1::Prompt prompt) {
  v1::ClassifySequenceRequest request;
  request.set_head(flags.head);
  *request.add_inputs() = std::move(prompt);
  ASSIGN_OR_RETURN(const auto response,
                   client.ClassifySequence(request, flags.server.call_options()));
  if (response.results_size() != 1) return WrongCount(response.results_size());
  if (flags.json) {
    fmt::print("{}\n", Dump(SequenceJson(response.results(0))));
  } else {
    PrintSequence(response.results(0));
  }
  return absl::OkStatus();
}

absl::Status ClassifyTokens(Client& client, const Flags& flags, v1::Prompt prompt) {
  v1::ClassifyTokensRequest request;
  request.set_head(flags.head);
  *request.add_inputs() = std::move(prompt);
  ASSIGN_OR_RETURN(const auto response,
                   client.ClassifyTokens(request, flags.server.call_options()));
  if (response.results_size() != 1) return WrongCount(response.results_size());
  if (flags.json) {
    fmt::print("{}\n", Dump(TokensJson(response.results(0))));
  } else {
    PrintTokens(response.results(0), request.inputs(0).text());
  }
  return absl::OkStatus();
}

absl::Status Classify(const Flags& flags, v1::Prompt prompt) {
  Client client(flags.server.server);
  ASSIGN_OR_RETURN(const auto model, client.GetModel(flags.server.call_options()));
  RETURN_IF_ERROR(CheckHeadGiven(model, flags.head));
  return KindOf(model, flags.head) == v1::HeadInfo::TOKEN
             ? ClassifyTokens(client, flags, std::move(prompt))
             : ClassifySequence(client, flags, std::move(prompt));
}

int Run(const Flags& flags) {
  auto prompt = ToPrompt(flags.prompt);
  if (absl::IsFailedPrecondition(prompt.status())) {
    return FailUsage(kName, std::string(prompt.status().message()));
  }
  if (!prompt.ok()) return Fail(kName, prompt.status());
  const absl::Status status = Classify(flags, *std::move(prompt));
  return status.ok() ? kExitOk : FailCall(kName, flags.server.server, status);
}

}  // namespace

void AddClassifyCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command = app.AddCommand(kName, "Label a text, or each of its tokens");
  AddServerFlags(command, &flags->server);
  command
      .Add("--head", &flags->head,
           "Classification head by name; may be left out when the server has just one")
      .Type("NAME");
  AddPromptFlags(command, "--text", &flags->prompt);
  command.AddSwitch("--json", &flags->json, "Print one JSON object instead of a table");
  command.SetFooter(
      "Example:\n"
      "  conclave classify --server 127.0.0.1:50051 --head sentiment --text 'A fine day'");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
