#include "client/generate_command.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "client/claim_flags.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/json_shapes.h"
#include "client/prompt_flags.h"
#include "client/sampling_flags.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "generate";

struct Flags {
  ServerFlags server;
  PromptFlags prompt;
  SamplingFlags sampling;
  StopFlags stop;
  std::optional<uint32_t> logprobs;
  int completions = 1;
  ClaimFlags claim;
  std::optional<uint32_t> prompt_logprobs;
  bool echo = false;
  bool json = false;
};

// All but the prompt.
absl::StatusOr<v1::GenerateRequest> MakeRequest(const Flags& flags) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(SetSampling(flags.sampling, request.mutable_sampling()));
  RETURN_IF_ERROR(SetStop(flags.stop, request.mutable_stop()));
  if (flags.logprobs.has_value()) request.set_logprobs(*flags.logprobs);
  request.set_n(static_cast<uint32_t>(flags.completions));
  SetClaim(flags.claim, request);
  if (flags.prompt_logprobs.has_value()) request.set_prompt_logprobs(*flags.prompt_logprobs);
  request.set_echo(flags.echo);
  return request;
}

std::string Summary(const v1::Finish& finish) {
  std::string text =
      fmt::format("{}: {} prompt + {} generated tokens", FinishReasonName(finish.reason()),
                  finish.usage().prompt_tokens(), finish.usage().completion_tokens());
  if (finish.usage().cached_tokens() > 0) {
    text += fmt::format(" ({} from the prefix cache)", finish.usage().cached_tokens());
  }
  if (!finish.has_timings()) return text;
  return fmt::format("{}, {:.2f} s, first after {:.2f} s, seed {}", text,
                     finish.timings().total_seconds(), finish.timings().first_token_seconds(),
                     finish.seed());
}

// Of one completion: what has arrived of it.
class Completion {
 public:
  void OnPart(const v1::GenerateResponse& part) {
    all_.MergeFrom(part);
    // MergeFrom replaces a string where a stream appends to it.
    text_ += part.text();
    all_.set_text(text_);
  }

  const v1::GenerateResponse& all() const { return all_; }

  // The client went away before the server could say so.
  void Cancelled(uint32_t prompt_tokens) {
    if (all_.has_finish()) return;
    v1::Finish* finish = all_.mutable_finish();
    finish->set_reason(v1::FINISH_REASON_CANCELLED);
    finish->mutable_usage()->set_prompt_tokens(prompt_tokens);
    finish->mutable_usage()->set_completion_tokens(static_cast<uint32_t>(all_.tokens_size()));
  }

 private:
  std::string text_;
  v1::GenerateResponse all_;
};

// `Part` is GenerateResponse or its PromptEcho.
template <typename Part>
std::string LogprobTable(const Part& part) {
  Table table({"token", "logprob", "most likely"});
  for (const auto& token : part.logprobs()) {
    std::string top;
    for (const auto& entry : token.top()) {
      top += fmt::format("{}{} {:.4f}", top.empty() ? "" : ", ", entry.token(), entry.logprob());
    }
    table.AddRow({std::to_string(token.token()), fmt::format("{:.4f}", token.logprob()), top});
  }
  return table.ToString();
}

// The display of what arrives. The text of a single completion is shown as it comes, that of
// several when they have ended, one after the other.
class Output {
 public:
  Output(size_t completions, bool json, bool with_logprobs)
      : completions_(completions), json_(json), with_logprobs_(with_logprobs) {}

  void OnPart(const v1::GenerateResponse& part) {
    if (part.index() >= completions_.size()) return;  // not what was asked for
    completions_[part.index()].OnPart(part);
    if (json_ || completions_.size() > 1) return;
    std::fwrite(part.prompt().text().data(), 1, part.prompt().text().size(), stdout);
    std::fwrite(part.text().data(), 1, part.text().size(), stdout);
    std::fflush(stdout);
  }

  bool finished() const {
    return std::all_of(completions_.begin(), completions_.end(),
                       [](const Completion& completion) { return completion.all().has_finish(); });
  }

  // After a stream with its finishes, or those made by Cancelled().
  void PrintEnd() const {
    if (json_) {
      PrintJson();
    } else if (completions_.size() == 1) {
      EndLine();
      PrintDetails(completions_[0].all(), "");
    } else {
      for (size_t i = 0; i < completions_.size(); ++i) {
        const v1::GenerateResponse& all = completions_[i].all();
        fmt::print("{}{}{}\n", i == 0 ? "" : "\n", all.prompt().text(), all.text());
        PrintDetails(all, fmt::format("{} of {}, ", i + 1, completions_.size()));
      }
    }
  }

  void Cancelled(uint32_t prompt_tokens) {
    for (Completion& completion : completions_) completion.Cancelled(prompt_tokens);
  }

  // Partial text ends here, so that what follows starts on a line of its own.
  void EndLine() const {
    if (!json_ && completions_.size() == 1 &&
        !(completions_[0].all().text().empty() && completions_[0].all().prompt().text().empty())) {
      fmt::print("\n");
    }
    std::fflush(stdout);
  }

 private:
  void PrintDetails(const v1::GenerateResponse& all, const std::string& which) const {
    if (!all.prompt().logprobs().empty()) fmt::print("{}", LogprobTable(all.prompt()));
    if (with_logprobs_) fmt::print("{}", LogprobTable(all));
    std::fflush(stdout);
    fmt::print(stderr, "[{}{}]\n", which, Summary(all.finish()));
  }

  void PrintJson() const {
    if (completions_.size() == 1) {
      fmt::print("{}\n", Dump(GenerationJson(completions_[0].all(), with_logprobs_)));
      return;
    }
    Json list = Json::array();
    for (const Completion& completion : completions_) {
      list.push_back(GenerationJson(completion.all(), with_logprobs_));
    }
    fmt::print("{}\n", Dump({{"completions", std::move(list)}}));
  }

  std::vector<Completion> completions_;
  const bool json_;
  const bool with_logprobs_;
};

// Tokens of the prompt, which only a finished stream would have told; 0 when the server is gone.
uint32_t CountPrompt(Client& client, const v1::Prompt& prompt) {
  if (prompt.has_tokens()) return static_cast<uint32_t>(prompt.tokens().ids_size());
  v1::TokenizeRequest request;
  request.set_text(prompt.text());
  const auto response = client.Tokenize(request, {.timeout = absl::Seconds(1)});
  return response.ok() ? static_cast<uint32_t>(response->ids_size()) : 0;
}

int Run(const Flags& flags) {
  auto prompt = ToPrompt(flags.prompt);
  if (absl::IsFailedPrecondition(prompt.status())) {
    return FailUsage(kName, std::string(prompt.status().message()));
  }
  if (!prompt.ok()) return Fail(kName, prompt.status());
  auto made = MakeRequest(flags);
  if (absl::IsFailedPrecondition(made.status())) {
    return FailUsage(kName, std::string(made.status().message()));
  }
  if (!made.ok()) return Fail(kName, made.status());
  v1::GenerateRequest& request = *made;
  *request.mutable_prompt() = *std::move(prompt);

  // The guard first: threads that gRPC starts inherit the blocked signals.
  Cancellation cancellation;
  InterruptGuard guard([&] { cancellation.Cancel(); });
  absl::StatusOr<Client> connected = flags.server.Connect();
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  CallOptions options = flags.server.call_options();
  options.cancellation = &cancellation;

  Output output(flags.completions, flags.json, request.has_logprobs());
  const auto finish = client.Generate(
      request, [&](const v1::GenerateResponse& part) { output.OnPart(part); }, options);
  // A stream that had finished before the signal is whole.
  if (cancellation.cancelled() && !output.finished()) {
    output.Cancelled(CountPrompt(client, request.prompt()));
    output.PrintEnd();
    return kExitInterrupted;
  }
  if (!finish.ok()) {
    output.EndLine();
    return FailCall(kName, flags.server.server, finish.status());
  }
  output.PrintEnd();
  return kExitOk;
}

}  // namespace

void AddGenerateCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command = app.AddCommand(kName, "Continue a prompt, streaming text as it is made");
  AddServerFlags(command, &flags->server);
  AddPromptFlags(command, "--prompt", &flags->prompt);
  AddStopFlags(command, &flags->stop);
  AddSamplingFlags(command, &flags->sampling);
  command.Add("--logprobs", &flags->logprobs,
              "Log-probabilities of each token and of the K most likely, K up to 20");
  command.Add("-n", &flags->completions, "Completions of the prompt, with seeds S, S + 1, ...")
      .Type("N")
      .Range(1, 1 << 16)
      .ShowDefault();
  AddClaimFlags(command, &flags->claim);
  command.Add("--prompt-logprobs", &flags->prompt_logprobs,
              "The same for the tokens of the prompt but the first");
  command.AddSwitch("--echo", &flags->echo, "Print the prompt too, before the text");
  command.AddSwitch("--json", &flags->json, "Print one JSON object at the end instead of text");
  command.SetFooter(
      "Ctrl-C cancels the request: what has arrived is kept, the exit code is 130.\n\n"
      "Example:\n"
      "  conclave generate --server 127.0.0.1:50051 --prompt 'Once upon a time' --max-tokens 64\n"
      "  conclave generate --tokens 1,2,3 --temperature 0 --logprobs 5 --json");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
