#include "client/generate_command.h"

#include <fmt/format.h>
#include <signal.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status_macros.h"
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
  if (flags.prompt_logprobs.has_value()) request.set_prompt_logprobs(*flags.prompt_logprobs);
  request.set_echo(flags.echo);
  return request;
}

std::string Summary(const v1::Finish& finish) {
  std::string text =
      fmt::format("{}: {} prompt + {} generated tokens", FinishReasonName(finish.reason()),
                  finish.usage().prompt_tokens(), finish.usage().completion_tokens());
  if (!finish.has_timings()) return text;
  return fmt::format("{}, {:.2f} s, first after {:.2f} s, seed {}", text,
                     finish.timings().total_seconds(), finish.timings().first_token_seconds(),
                     finish.seed());
}

// What arrives, and its display.
class Output {
 public:
  Output(bool json, bool with_logprobs) : json_(json), with_logprobs_(with_logprobs) {}

  void OnPart(const v1::GenerateResponse& part) {
    all_.MergeFrom(part);
    // MergeFrom replaces a string where a stream appends to it.
    text_ += part.text();
    if (json_) return;
    std::fwrite(part.prompt().text().data(), 1, part.prompt().text().size(), stdout);
    std::fwrite(part.text().data(), 1, part.text().size(), stdout);
    std::fflush(stdout);
  }

  const v1::GenerateResponse& all() const { return all_; }

  // After a stream with a finish, its own or one made by Cancelled().
  void PrintEnd() {
    all_.set_text(text_);
    if (json_) {
      fmt::print("{}\n", Dump(GenerationJson(all_, with_logprobs_)));
      return;
    }
    EndLine();
    if (!all_.prompt().logprobs().empty()) fmt::print("{}", LogprobTable(all_.prompt()));
    if (with_logprobs_) fmt::print("{}", LogprobTable(all_));
    std::fflush(stdout);
    fmt::print(stderr, "[{}]\n", Summary(all_.finish()));
  }

  // The client went away before the server could say so.
  void Cancelled(uint32_t prompt_tokens) {
    v1::Finish* finish = all_.mutable_finish();
    finish->set_reason(v1::FINISH_REASON_CANCELLED);
    finish->mutable_usage()->set_prompt_tokens(prompt_tokens);
    finish->mutable_usage()->set_completion_tokens(static_cast<uint32_t>(all_.tokens_size()));
  }

  // Partial text ends here, so that what follows starts on a line of its own.
  void EndLine() const {
    if (!json_ && !(text_.empty() && all_.prompt().text().empty())) fmt::print("\n");
    std::fflush(stdout);
  }

 private:
  // `Part` is GenerateResponse or its PromptEcho.
  template <typename Part>
  static std::string LogprobTable(const Part& part) {
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

  const bool json_;
  const bool with_logprobs_;
  std::string text_;
  v1::GenerateResponse all_;
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
  Client client(flags.server.server);
  CallOptions options = flags.server.call_options();
  options.cancellation = &cancellation;

  Output output(flags.json, request.has_logprobs());
  const auto finish = client.Generate(
      request, [&](const v1::GenerateResponse& part) { output.OnPart(part); }, options);
  // A stream that had finished before the signal is whole.
  if (cancellation.cancelled() && !output.all().has_finish()) {
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
