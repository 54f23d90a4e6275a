#include "client/classify_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "client/claim_flags.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/format.h"
#include "client/json_shapes.h"
#include "client/label_prompts.h"
#include "client/prompt_flags.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "classify";

struct Flags {
  ServerFlags server;
  PromptFlags prompt;
  std::string head;
  std::optional<std::string> pair;
  std::optional<uint32_t> top_k;
  std::string function;
  std::string aggregation;
  std::string scheme;
  bool truncate = false;
  std::optional<std::string> labels;
  std::optional<std::string> template_text;
  bool calibrate = false;
  bool by_mean = false;
  ClaimFlags claim;
  bool json = false;
};

struct Choice {
  std::string_view name;
  int value;
};

// The value of `name` in `choices`; `unset` for an empty one. FAILED_PRECONDITION lists them.
absl::StatusOr<int> Choose(const char* flag, const std::string& name,
                           std::initializer_list<Choice> choices, int unset) {
  if (name.empty()) return unset;
  std::vector<std::string_view> names;
  for (const Choice& choice : choices) {
    if (choice.name == name) return choice.value;
    names.push_back(choice.name);
  }
  return absl::FailedPreconditionError(
      fmt::format("{} is one of {}", flag, fmt::join(names, ", ")));
}

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

// Flags that say nothing to the method that will be asked.
absl::Status CheckKind(const v1::GetModelResponse& model, const Flags& flags) {
  const bool of_texts =
      flags.pair.has_value() || flags.top_k.has_value() || !flags.function.empty();
  const bool of_tokens = !flags.aggregation.empty() || !flags.scheme.empty();
  for (const auto& info : model.heads()) {
    if (info.name() != flags.head && !flags.head.empty()) continue;
    if (info.kind() == v1::HeadInfo::TOKEN && of_texts) {
      return absl::FailedPreconditionError(fmt::format(
          "--pair, --top-k and --function are for heads that label whole texts; '{}' labels tokens",
          info.name()));
    }
    if (info.kind() == v1::HeadInfo::SEQUENCE && of_tokens) {
      return absl::FailedPreconditionError(fmt::format(
          "--aggregation and --scheme are for heads that label tokens; '{}' labels whole texts",
          info.name()));
    }
  }
  return absl::OkStatus();
}

template <typename Result>
void NoteTruncation(const Result& result) {
  if (!result.truncated()) return;
  fmt::print(stderr, "[the text is longer than the context: its first {} tokens were read]\n",
             result.usage().prompt_tokens());
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
  SetClaim(flags.claim, request);
  request.set_head(flags.head);
  *request.add_inputs() = std::move(prompt);
  if (flags.pair.has_value()) request.add_pairs()->set_text(*flags.pair);
  if (flags.top_k.has_value()) request.set_top_k(*flags.top_k);
  request.set_truncate(flags.truncate);
  ASSIGN_OR_RETURN(const int function, Choose("--function", flags.function,
                                              {{"softmax", v1::SCORE_FUNCTION_SOFTMAX},
                                               {"sigmoid", v1::SCORE_FUNCTION_SIGMOID},
                                               {"none", v1::SCORE_FUNCTION_NONE}},
                                              v1::SCORE_FUNCTION_UNSPECIFIED));
  request.set_function_to_apply(static_cast<v1::ScoreFunction>(function));
  ASSIGN_OR_RETURN(const auto response,
                   client.ClassifySequence(request, flags.server.call_options()));
  if (response.results_size() != 1) return WrongCount(response.results_size());
  if (flags.json) {
    fmt::print("{}\n", Dump(SequenceJson(response.results(0))));
  } else {
    PrintSequence(response.results(0));
    NoteTruncation(response.results(0));
  }
  return absl::OkStatus();
}

absl::Status ClassifyTokens(Client& client, const Flags& flags, v1::Prompt prompt) {
  v1::ClassifyTokensRequest request;
  SetClaim(flags.claim, request);
  request.set_head(flags.head);
  *request.add_inputs() = std::move(prompt);
  request.set_truncate(flags.truncate);
  ASSIGN_OR_RETURN(const int aggregation, Choose("--aggregation", flags.aggregation,
                                                 {{"none", v1::AGGREGATION_NONE},
                                                  {"simple", v1::AGGREGATION_SIMPLE},
                                                  {"first", v1::AGGREGATION_FIRST},
                                                  {"average", v1::AGGREGATION_AVERAGE},
                                                  {"max", v1::AGGREGATION_MAX}},
                                                 v1::AGGREGATION_UNSPECIFIED));
  request.set_aggregation(static_cast<v1::Aggregation>(aggregation));
  ASSIGN_OR_RETURN(const int scheme,
                   Choose("--scheme", flags.scheme,
                          {{"bio", v1::LABEL_SCHEME_BIO}, {"bioes", v1::LABEL_SCHEME_BIOES}},
                          v1::LABEL_SCHEME_UNSPECIFIED));
  request.set_scheme(static_cast<v1::LabelScheme>(scheme));
  ASSIGN_OR_RETURN(const auto response,
                   client.ClassifyTokens(request, flags.server.call_options()));
  if (response.results_size() != 1) return WrongCount(response.results_size());
  if (flags.json) {
    fmt::print("{}\n", Dump(TokensJson(response.results(0))));
  } else {
    PrintTokens(response.results(0), request.inputs(0).text());
    NoteTruncation(response.results(0));
  }
  return absl::OkStatus();
}

void PrintLabels(const v1::LabelScoring& result, bool calibrated) {
  std::vector<std::string> header = {"label", "score", "log-probability", "mean of its tokens"};
  if (calibrated) header.push_back("without the text");
  Table table(header);
  for (const auto& label : result.labels()) {
    std::vector<std::string> row = {label.label(), fmt::format("{:.4f}", label.score()),
                                    fmt::format("{:.4f}", label.logprob_sum()),
                                    fmt::format("{:.4f}", label.logprob_mean())};
    if (calibrated) row.push_back(fmt::format("{:.4f}", label.null_logprob_sum()));
    table.AddRow(row);
  }
  fmt::print("{}", table.ToString());
}

absl::Status ScoreLabels(Client& client, const Flags& flags, const v1::Prompt& prompt) {
  const LabelQuestion question = {SplitLabels(flags.labels.value_or("")), prompt.text(),
                                  flags.template_text.value_or(""), flags.calibrate};
  ASSIGN_OR_RETURN(const auto model, client.GetModel(flags.server.call_options()));
  v1::ScoreLabelsRequest request = AskForLabel(question, model.can_chat());
  SetClaim(flags.claim, request);
  request.set_score_by(flags.by_mean ? v1::SCORE_BY_MEAN : v1::SCORE_BY_SUM);
  ASSIGN_OR_RETURN(auto response, client.ScoreLabels(request, flags.server.call_options()));
  if (response.results_size() != 1) return WrongCount(response.results_size());
  v1::LabelScoring* result = response.mutable_results(0);
  // As they were given, without the space.
  for (int i = 0; i < result->labels_size() && i < request.labels_size(); ++i) {
    result->mutable_labels(i)->set_label(question.labels[static_cast<size_t>(i)]);
  }
  if (flags.json) {
    fmt::print("{}\n", Dump(LabelsJson(*result)));
  } else {
    PrintLabels(*result, flags.calibrate);
  }
  return absl::OkStatus();
}

// Flags that say nothing together.
absl::Status CheckFlags(const Flags& flags) {
  const bool by_head = !flags.head.empty() || flags.pair.has_value() || flags.top_k.has_value() ||
                       !flags.function.empty() || !flags.aggregation.empty() ||
                       !flags.scheme.empty() || flags.truncate;
  if (!flags.labels.has_value()) {
    if (flags.calibrate || flags.by_mean || flags.template_text.has_value()) {
      return absl::FailedPreconditionError("--template, --calibrate and --mean go with --labels");
    }
    return absl::OkStatus();
  }
  if (SplitLabels(*flags.labels).empty()) {
    return absl::FailedPreconditionError(
        "--labels is empty: write them with commas, such as a,b,c");
  }
  if (flags.template_text.has_value() && flags.template_text->find("{text}") == std::string::npos) {
    return absl::FailedPreconditionError("--template needs {text}, where the text is to stand");
  }
  if (by_head) return absl::FailedPreconditionError("--labels needs no head: leave its flags out");
  if (flags.prompt.tokens.has_value()) {
    return absl::FailedPreconditionError("--labels goes with --text, not with --tokens");
  }
  return absl::OkStatus();
}

absl::Status Classify(const Flags& flags, v1::Prompt prompt) {
  ASSIGN_OR_RETURN(Client client, flags.server.Connect());
  if (flags.labels.has_value()) return ScoreLabels(client, flags, prompt);
  ASSIGN_OR_RETURN(const auto model, client.GetModel(flags.server.call_options()));
  RETURN_IF_ERROR(CheckHeadGiven(model, flags.head));
  RETURN_IF_ERROR(CheckKind(model, flags));
  return KindOf(model, flags.head) == v1::HeadInfo::TOKEN
             ? ClassifyTokens(client, flags, std::move(prompt))
             : ClassifySequence(client, flags, std::move(prompt));
}

int Run(const Flags& flags) {
  if (const absl::Status usage = CheckFlags(flags); !usage.ok()) {
    return FailUsage(kName, std::string(usage.message()));
  }
  auto prompt = ToPrompt(flags.prompt);
  if (absl::IsFailedPrecondition(prompt.status())) {
    return FailUsage(kName, std::string(prompt.status().message()));
  }
  if (!prompt.ok()) return Fail(kName, prompt.status());
  const absl::Status status = Classify(flags, *std::move(prompt));
  // Of a flag that is not one of its choices; the server's come with the name of a field.
  if (absl::IsFailedPrecondition(status) && std::string(status.message()).starts_with("--")) {
    return FailUsage(kName, std::string(status.message()));
  }
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
  command.Add("--pair", &flags->pair, "Second text of a pair, for a sequence head").Type("TEXT");
  command.Add("--top-k", &flags->top_k, "Print the K best labels alone, best first [all]");
  command
      .Add("--function", &flags->function,
           "How logits become scores: softmax, sigmoid or none [by the head's problem type]")
      .Type("NAME");
  command
      .Add("--aggregation", &flags->aggregation,
           "How tokens become spans: none, simple, first, average or max [simple]")
      .Type("NAME");
  command
      .Add("--scheme", &flags->scheme,
           "Prefixes of a token head's labels: bio or bioes [by the labels]")
      .Type("NAME");
  command.AddSwitch("--truncate", &flags->truncate, "Cut a text that is longer than the context");
  command
      .Add("--labels", &flags->labels,
           "Let the language model choose among these labels, without a head; a,b,c")
      .Type("LIST");
  command
      .Add("--template", &flags->template_text,
           "The prompt for --labels, with {text} in it [a question that lists the labels]")
      .Type("TEXT");
  command.AddSwitch("--calibrate", &flags->calibrate,
                    "Take from each label what the model gives it without the text");
  command.AddSwitch("--mean", &flags->by_mean,
                    "Compare the mean log-probability of a label's tokens, not the sum");
  AddClaimFlags(command, &flags->claim);
  command.AddSwitch("--json", &flags->json, "Print one JSON object instead of a table");
  command.SetFooter(
      "Example:\n"
      "  conclave classify --server 127.0.0.1:50051 --head sentiment --text 'A fine day'\n"
      "  conclave classify --labels spam,ham --text 'You have won a prize'\n"
      "  conclave classify --head names --text - --truncate <mail.txt");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
