#include "client/generate_command.h"

#include <fmt/format.h>
#include <signal.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/exit_code.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/json_shapes.h"
#include "client/prompt_flags.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "generate";

struct Flags {
  ServerFlags server;
  PromptFlags prompt;
  v1::GenerateRequest request;  // all but the prompt, filled in by the parse
  bool json = false;
};

// Adds the flag; `set` receives the value when it is given.
template <typename T, typename Set>
CLI::Option* OnValue(CLI::App& command, const std::string& flag, const std::string& help, Set set) {
  return command.add_option_function<T>(
      flag, [set](const T& value) { set(value); }, help);
}

void AddSamplingFlags(CLI::App& command, v1::SamplingParams* sampling) {
  OnValue<float>(command, "--temperature", "0 takes the most likely token [1]",
                 [=](float value) { sampling->set_temperature(value); });
  OnValue<uint32_t>(command, "--top-k", "Sample from the k most likely tokens [all]",
                    [=](uint32_t value) { sampling->set_top_k(value); });
  OnValue<float>(command, "--top-p", "Sample from the most likely tokens of this total [1]",
                 [=](float value) { sampling->set_top_p(value); });
  OnValue<float>(command, "--min-p", "Drop tokens this much less likely than the best [0]",
                 [=](float value) { sampling->set_min_p(value); });
  OnValue<uint64_t>(command, "--seed", "The same seed gives the same text [random]",
                    [=](uint64_t value) { sampling->set_seed(value); });
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
    if (with_logprobs_) fmt::print("{}", LogprobTable());
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
    if (!json_ && !text_.empty()) fmt::print("\n");
    std::fflush(stdout);
  }

 private:
  std::string LogprobTable() const {
    Table table({"token", "logprob", "most likely"});
    for (const auto& token : all_.logprobs()) {
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

int Run(Flags& flags) {
  auto prompt = ToPrompt(flags.prompt);
  if (absl::IsFailedPrecondition(prompt.status())) {
    return FailUsage(kName, std::string(prompt.status().message()));
  }
  if (!prompt.ok()) return Fail(kName, prompt.status());
  *flags.request.mutable_prompt() = *std::move(prompt);

  // The guard first: threads that gRPC starts inherit the blocked signals.
  Cancellation cancellation;
  InterruptGuard guard([&] { cancellation.Cancel(); });
  Client client(flags.server.server);
  CallOptions options = flags.server.call_options();
  options.cancellation = &cancellation;

  Output output(flags.json, flags.request.has_logprobs());
  const auto finish = client.Generate(
      flags.request, [&](const v1::GenerateResponse& part) { output.OnPart(part); }, options);
  // A stream that had finished before the signal is whole.
  if (cancellation.cancelled() && !output.all().has_finish()) {
    output.Cancelled(CountPrompt(client, flags.request.prompt()));
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

void AddGenerateCommand(CLI::App& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(kName, "Continue a prompt, streaming text as it is made");
  AddServerFlags(*command, &flags->server);
  AddPromptFlags(*command, "--prompt", &flags->prompt);
  v1::StopParams* stop = flags->request.mutable_stop();
  stop->set_max_tokens(128);
  OnValue<uint32_t>(*command, "--max-tokens", "Tokens to generate at most [128]",
                    [=](uint32_t value) { stop->set_max_tokens(value); });
  AddSamplingFlags(*command, flags->request.mutable_sampling());
  command->add_flag_function(
      "--ignore-eos", [=](int64_t) { stop->set_ignore_eos(true); },
      "Go on past the model's end tokens");
  OnValue<std::vector<uint32_t>>(*command, "--stop-token",
                                 "A further token id that ends the text (repeatable)",
                                 [=](const std::vector<uint32_t>& ids) {
                                   for (const uint32_t id : ids) stop->add_stop_token_ids(id);
                                 })
      ->expected(1, -1);
  v1::GenerateRequest* request = &flags->request;
  OnValue<uint32_t>(*command, "--logprobs",
                    "Log-probabilities of each token and of the K most likely, K up to 20",
                    [=](uint32_t value) { request->set_logprobs(value); });
  command->add_flag("--json", flags->json, "Print one JSON object at the end instead of text");
  command->footer(
      "Ctrl-C cancels the request: what has arrived is kept, the exit code is 130.\n\n"
      "Example:\n"
      "  conclave generate --server 127.0.0.1:50051 --prompt 'Once upon a time' --max-tokens 64\n"
      "  conclave generate --tokens 1,2,3 --temperature 0 --logprobs 5 --json");
  command->callback([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
