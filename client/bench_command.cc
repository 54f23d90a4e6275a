#include "client/bench_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/bench_report.h"
#include "client/bench_session.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/interrupt.h"
#include "client/json_shapes.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "bench";
constexpr int kMaxStreams = 4096;  // each is a thread
constexpr int64_t kMaxLength = 1 << 24;

struct Flags {
  ServerFlags server;
  std::string concurrency = "1";
  std::optional<uint32_t> requests;
  double duration_seconds = 0;  // 0: as many as --requests says
  std::optional<uint32_t> warmup;
  int input_len = 128;
  int output_len = 128;
  std::optional<float> temperature;
  uint64_t seed = 0;
  bool json = false;
};

absl::StatusOr<std::vector<int>> ParseConcurrency(std::string_view list) {
  std::vector<int> all;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    const std::string_view item = list.substr(begin, comma - begin);
    int streams = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), streams);
    if (error != std::errc() || end != item.data() + item.size() || streams < 1 ||
        streams > kMaxStreams) {
      return absl::InvalidArgumentError(
          fmt::format("--concurrency holds '{}': give numbers of streams from 1 to {} with commas "
                      "between them, such as 1,8,32",
                      item, kMaxStreams));
    }
    all.push_back(streams);
    begin = comma + 1;
  }
  return all;
}

// What is wrong whatever the server says.
absl::Status CheckFlags(const Flags& flags, int most_streams) {
  if (flags.requests.has_value() && flags.duration_seconds > 0) {
    return absl::InvalidArgumentError("give --requests or --duration, not both");
  }
  if (flags.requests.has_value() && *flags.requests < static_cast<uint32_t>(most_streams)) {
    return absl::InvalidArgumentError(
        fmt::format("--requests {} are fewer than the {} streams of --concurrency: give at least "
                    "one for each",
                    *flags.requests, most_streams));
  }
  return absl::OkStatus();
}

// FAILED_PRECONDITION: nothing can be measured; INVALID_ARGUMENT: not with these flags.
absl::Status CheckModel(const v1::GetModelResponse& model, const Flags& flags) {
  if (!model.can_generate()) {
    return absl::FailedPreconditionError(
        fmt::format("the server's model {} has no language-model head: it classifies but cannot "
                    "generate",
                    model.name()));
  }
  if (model.vocab_size() == 0)
    return absl::InternalError("the server says its vocabulary is empty");
  const int64_t length = int64_t{flags.input_len} + flags.output_len;
  if (length <= model.context_length()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("--input-len {} and --output-len {} are {} tokens: the server's context holds {}",
                  flags.input_len, flags.output_len, length, model.context_length()));
}

// Empty, or why the streams of the largest run cannot all decode at once.
std::string WaitingNote(const BenchReport& report, int most_streams) {
  if (!report.cluster.has_value()) return "";
  const uint64_t running = uint64_t{report.model.limits().max_running()} * report.cluster->dp();
  if (running == 0 || static_cast<uint64_t>(most_streams) <= running) return "";
  return fmt::format(
      "the server runs {} requests at once (--max-running of serve, for each of {} dp groups): of "
      "{} streams the rest wait",
      running, report.cluster->dp(), most_streams);
}

BenchSettings SettingsOf(const Flags& flags) {
  std::optional<double> duration;
  if (flags.duration_seconds > 0) duration = flags.duration_seconds;
  return {.server = flags.server.server,
          .input_len = static_cast<uint32_t>(flags.input_len),
          .output_len = static_cast<uint32_t>(flags.output_len),
          .requests = flags.requests,
          .duration_seconds = duration,
          .warmup = flags.warmup,
          .temperature = flags.temperature.value_or(1),
          .seed = flags.seed};
}

BenchPlan PlanOf(const Flags& flags, std::vector<int> concurrency, const BenchReport& report) {
  const BenchSettings& settings = report.settings;
  return {.concurrency = std::move(concurrency),
          .requests = settings.requests,
          .duration_seconds = settings.duration_seconds,
          .warmup = settings.warmup,
          .shape = {.id_limit = PromptIdLimit(report.model),
                    .input_len = settings.input_len,
                    .output_len = settings.output_len,
                    .temperature = settings.temperature,
                    .seed = settings.seed},
          .timeout = flags.server.call_options().timeout};
}

void Print(const BenchReport& report, bool json) {
  fmt::print("{}", json ? Dump(BenchJson(report)) + "\n" : BenchText(report));
  std::fflush(stdout);
}

// After what was measured is printed. `error` is that of a warm-up.
int ExitCode(const BenchReport& report, const absl::Status& error) {
  if (!error.ok()) return FailCall(kName, report.settings.server, error);
  for (const BenchRun& run : report.runs) {
    if (run.error.ok()) continue;
    const RunStatistics& statistics = run.statistics;
    return FailCall(
        kName, report.settings.server,
        absl::Status(
            run.error.code(),
            fmt::format("{} of {} requests with {} streams failed, the first with: {}",
                        statistics.failed(),
                        statistics.completed() + statistics.failed() + statistics.cancelled(),
                        statistics.shape().streams, std::string(run.error.message()))));
  }
  return report.interrupted ? kExitInterrupted : kExitOk;
}

int Run(const Flags& flags) {
  auto concurrency = ParseConcurrency(flags.concurrency);
  if (!concurrency.ok()) return FailUsage(kName, std::string(concurrency.status().message()));
  const int most_streams = *std::max_element(concurrency->begin(), concurrency->end());
  if (const absl::Status status = CheckFlags(flags, most_streams); !status.ok()) {
    return FailUsage(kName, std::string(status.message()));
  }

  // The guard first: threads that gRPC starts inherit the blocked signals.
  Cancellation cancellation;
  InterruptGuard guard([&] { cancellation.Cancel(); });
  // What fails is to be seen.
  absl::StatusOr<Client> connected = flags.server.Connect(/*retry=*/false);
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  CallOptions options = flags.server.call_options();
  options.cancellation = &cancellation;

  BenchReport report;
  report.settings = SettingsOf(flags);
  auto model = client.GetModel(options);
  if (cancellation.cancelled()) return kExitInterrupted;
  if (!model.ok()) return FailCall(kName, flags.server.server, model.status());
  if (const absl::Status status = CheckModel(*model, flags); !status.ok()) {
    return absl::IsInvalidArgument(status) ? FailUsage(kName, std::string(status.message()))
                                           : Fail(kName, status);
  }
  report.model = *std::move(model);
  // For the record only: a server may keep it to itself.
  if (auto cluster = client.GetCluster(options); cluster.ok()) report.cluster = *std::move(cluster);
  if (const std::string note = WaitingNote(report, most_streams); !note.empty()) {
    fmt::print(stderr, "conclave bench: {}\n", note);
  }

  BenchProgress progress(stderr, isatty(STDERR_FILENO) != 0);
  const BenchPlan plan = PlanOf(flags, *std::move(concurrency), report);
  const absl::Status error = RunBench(client, plan, cancellation, progress, &report.runs);
  report.interrupted = cancellation.cancelled();
  if (!report.runs.empty() || report.interrupted) Print(report, flags.json);
  return ExitCode(report, report.interrupted ? absl::OkStatus() : error);
}

}  // namespace

void AddBenchCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command =
      app.AddCommand(kName, "Measure a running server: tokens per second and latencies");
  AddServerFlags(command, &flags->server);
  command.Add("--concurrency", &flags->concurrency, "Streams open at once; each number is a run")
      .Type("N,N,...")
      .ShowDefault();
  command.Add("--requests", &flags->requests, "Requests of each run [4 for each stream]")
      .SilentRange(1, UINT32_MAX);
  command
      .Add("--duration", &flags->duration_seconds,
           "In place of --requests: streams begin requests for this long")
      .Type("SECONDS")
      .NonNegative();
  command.Add("--input-len", &flags->input_len, "Tokens of each prompt, at random")
      .SilentRange(1, kMaxLength)
      .ShowDefault();
  command.Add("--output-len", &flags->output_len, "Tokens that each request generates")
      .SilentRange(1, kMaxLength)
      .ShowDefault();
  command.Add("--warmup", &flags->warmup,
              "Requests before each run that do not count [1 for each stream]");
  command.Add("--temperature", &flags->temperature, "0 takes the most likely token [1]");
  command.Add("--seed", &flags->seed, "Of prompts and draws").ShowDefault();
  command.AddSwitch("--json", &flags->json, "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Ctrl-C ends the run: what was measured is printed, the exit code is 130.\n\n"
      "Example:\n"
      "  conclave bench --server 127.0.0.1:50051 --concurrency 1,8,32\n"
      "  conclave bench --concurrency 1 --input-len 8192 --output-len 1 --json");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
