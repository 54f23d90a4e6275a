// conclave-coordinator: public API on one side, workers on the other.
//
// Prints `internal HOST:PORT`, `health HOST:PORT` and `metrics HOST:PORT` if asked for, and
// `listening HOST:PORT` on stdout once all are bound. SIGTERM drains and then stops; SIGINT, and a
// second signal, stop at once. Exit codes: 0 stopped by a signal; 1 error; 2 usage.

#include <fmt/format.h>
#include <pthread.h>

#include <csignal>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "base/flags.h"
#include "base/logging.h"
#include "base/mapped_files.h"
#include "base/one_line.h"
#include "base/status_macros.h"
#include "coordinator/coordinator_server.h"
#include "model/model_source.h"

namespace conclave::coordinator {
namespace {

using ParseOutcome = base::ParsedFlags::Outcome;

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;

constexpr char kExample[] =
    "Example:\n"
    "  conclave-coordinator --model /models/gpt-oss-20b --workers 4 --listen 0.0.0.0:50051 \\\n"
    "      --internal-listen 0.0.0.0:7001 --health-listen 0.0.0.0:7000";

struct Flags {
  std::vector<std::string> heads;
  std::string weights = "file";
  model::RandomWeights random;
  int workers = 1;
  int dp = 0;
  int tp = 0;
  bool no_prefix_cache = false;
  std::string exchange = "auto";
  std::string log_level = "info";
  std::string log_format = "text";
  double drain_limit = 30;
  CoordinatorOptions options;
};

int Fail(const std::string& message, int code) {
  fmt::print(stderr, "conclave-coordinator: {}\n", base::OneLine(message));
  return code;
}

void DeclareAddresses(base::FlagSet& app, Flags& flags) {
  CoordinatorOptions& options = flags.options;
  options.listen = "127.0.0.1:50051";
  options.internal_listen = "127.0.0.1:7001";
  app.Add("--listen", &options.listen, "public API; port 0 takes a free one")
      .Type("HOST:PORT")
      .ShowDefault();
  app.Add("--internal-listen", &options.internal_listen, "where workers join")
      .Type("HOST:PORT")
      .ShowDefault();
  app.Add("--health-listen", &options.health_listen, "plaintext grpc.health.v1").Type("HOST:PORT");
  app.Add("--metrics-listen", &options.metrics_listen, "metrics for Prometheus, over plain HTTP")
      .Type("HOST:PORT");
}

void DeclareModel(base::FlagSet& app, Flags& flags) {
  ServingModelOptions& model = flags.options.model;
  app.Add("--model", &model.dir, "folder of the checkpoint").Type("DIR").Required();
  app.Add("--tokenizer", &model.tokenizer, "instead of tokenizer.json in --model").Type("FILE");
  app.Add("--head", &flags.heads, "attach a classification head (may be repeated)")
      .Type("NAME=DIR");
  app.Add("--weights", &flags.weights,
          "file, or random: made up from --seed, only config.json is read")
      .OneOf({"file", "random"})
      .ShowDefault();
  app.Add("--seed", &flags.random.seed, "of random weights").ShowDefault();
  app.Add("--layers", &flags.random.layers, "of random weights: the first N; 0: all")
      .Range(0, 1 << 20)
      .ShowDefault();
  app.AddSwitch("--allow-forced-routing", &model.allow_forced_routing,
                "test hook: requests may choose experts (loopback only)");
}

void DeclareEngine(base::FlagSet& app, Flags& flags) {
  EngineOptions& engine = flags.options.engine;
  ClusterOptions& cluster = engine.cluster;
  app.Add("--workers", &flags.workers, "ranks of the group").Range(1, 4096).ShowDefault();
  app.Add("--dp", &flags.dp, "data-parallel groups (default: workers / tp)");
  app.Add("--tp", &flags.tp, "tensor-parallel ranks of a group (default: 1)");
  app.Add("--exchange", &flags.exchange, "auto, fixed, exact or replicated")
      .OneOf({"auto", "fixed", "exact", "replicated"})
      .ShowDefault();
  app.Add("--max-running", &cluster.max_running, "sequences computed at once in a group")
      .ShowDefault();
  app.Add("--max-queued", &engine.max_queued, "requests that may wait").ShowDefault();
  app.Add("--max-step-tokens", &cluster.max_step_tokens, "rows of one step of a group")
      .ShowDefault();
  app.Add("--prefill-chunk", &cluster.prefill_chunk, "rows of one prompt in one step")
      .ShowDefault();
  app.Add("--max-prompt-tokens", &flags.options.model.limits.max_prompt_tokens,
          "of one request; 0: what the context holds")
      .Range(0, 1 << 30)
      .ShowDefault();
  app.Add("--max-unread-bytes", &flags.options.model.limits.max_unread_bytes,
          "results that may wait for the client of one stream")
      .Range(1 << 10, std::numeric_limits<int>::max())
      .ShowDefault();
  app.Add("--max-unread-seconds", &flags.options.model.limits.max_unread_seconds,
          "a message may wait for its client; 0: for ever")
      .Range(0, 1 << 20)
      .ShowDefault();
  app.Add("--max-reply-bytes", &flags.options.model.limits.max_reply_bytes,
          "results of one unary call, and the reply made of them")
      .Range(1 << 10, std::numeric_limits<int>::max())
      .ShowDefault();
  app.Add("--pipeline-depth", &engine.pipeline_depth, "plans in flight").ShowDefault();
  app.Add("--kv-cache-bytes", &cluster.kv_cache_bytes, "KV cache of a rank; 0: by need")
      .ShowDefault();
  app.AddSwitch("--no-prefix-cache", &flags.no_prefix_cache,
                "compute every prompt anew, whatever it has in common with earlier ones");
  app.AddSwitch("--require-mxfp4", &cluster.require_mxfp4,
                "refuse to serve MXFP4 experts in another format");
}

absl::Status Resolve(Flags& flags) {
  if (!(flags.drain_limit >= 0 && flags.drain_limit <= 86'400)) {
    return absl::InvalidArgumentError(fmt::format(
        "--drain-limit is {}: it must be between 0 and 86400 seconds", flags.drain_limit));
  }
  flags.options.engine.drain_limit = absl::Seconds(flags.drain_limit);
  RETURN_IF_ERROR(CheckProtection(flags.options.protection, flags.options.internal_listen));
  ASSIGN_OR_RETURN(flags.options.engine.exchange, ParseExchangeChoice(flags.exchange));
  for (const std::string& head : flags.heads) {
    ASSIGN_OR_RETURN(const model::HeadFlag parsed, model::ParseHeadFlag(head));
    flags.options.model.heads.emplace_back(parsed.name, parsed.dir);
  }
  if (flags.weights == "random") {
    flags.options.model.random_weights = flags.random;
  } else if (flags.random.seed != 0 || flags.random.layers != 0) {
    return absl::InvalidArgumentError("--seed and --layers are for --weights random");
  }
  flags.options.engine.prefix_cache = !flags.no_prefix_cache;
  ServingLimits& limits = flags.options.model.limits;
  limits.max_running = flags.options.engine.cluster.max_running;
  limits.max_queued = flags.options.engine.max_queued;
  limits.max_message_bytes = flags.options.protection.max_message_bytes;
  limits.max_step_tokens = flags.options.engine.cluster.max_step_tokens;
  ASSIGN_OR_RETURN(flags.options.engine.cluster.shape,
                   model::ResolveShape(flags.workers, flags.dp, flags.tp));
  RETURN_IF_ERROR(CheckEngineOptions(flags.options.engine));
  return base::InitLogging("coordinator", flags.log_level, flags.log_format);
}

// Until nothing is under way, the limit has passed, or another signal came.
void Drain(CoordinatorServer& server, const sigset_t& signals) {
  absl::Notification drained;
  server.Drain([&drained] { drained.Notify(); });
  const timespec patience = {.tv_sec = 0, .tv_nsec = 20'000'000};
  while (!drained.HasBeenNotified()) {
    if (sigtimedwait(&signals, nullptr, &patience) < 0) continue;
    base::Log().info("event=drain_cut_short");
    break;
  }
  server.Stop();  // answers a drain that is not done
  drained.WaitForNotification();
}

int Serve(const CoordinatorOptions& options) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread: all of them inherit it
  auto server = CoordinatorServer::Start(options);
  if (!server.ok()) return Fail(std::string(server.status().message()), kExitError);
  fmt::print("internal {}\n", (*server)->internal_address());
  const std::string health = (*server)->health_address();
  if (!health.empty()) fmt::print("health {}\n", health);
  const std::string metrics = (*server)->metrics_address();
  if (!metrics.empty()) fmt::print("metrics {}\n", metrics);
  fmt::print("listening {}\n", (*server)->listen_address());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  base::Log().info("event=stopping signal={}", signal);
  if (signal == SIGTERM) Drain(**server, signals);
  (*server)->Stop();
  return 0;
}

}  // namespace

int Main(int argc, char** argv) {
  // gRPC's own lines would stand beside ours; what matters comes back as a status.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  base::FlagSet app("Coordinates a group of workers that serve one gpt-oss model.",
                    "conclave-coordinator");
  app.SetFooter(kExample);
  Flags flags;
  DeclareModel(app, flags);
  DeclareAddresses(app, flags);
  DeclareEngine(app, flags);
  app.Add("--drain-limit", &flags.drain_limit,
          "after SIGTERM, or ClusterService.Drain: what is under way may go on for so long")
      .Type("SECONDS")
      .ShowDefault();
  DeclareProtection(app, flags.options.protection);
  app.Add("--log-level", &flags.log_level, "trace, debug, info, warn, error or off").ShowDefault();
  app.Add("--log-format", &flags.log_format, "text, or json: one object for each line")
      .OneOf({"text", "json"})
      .ShowDefault();
  const base::ParsedFlags parsed = app.Parse(argc, argv);
  if (parsed.outcome == ParseOutcome::kError) {
    return Fail(fmt::format("{} (see --help)", parsed.text), kExitUsage);
  }
  if (parsed.outcome == ParseOutcome::kHelp) {
    std::fputs(parsed.text.c_str(), stdout);
    return 0;
  }
  const absl::Status resolved = Resolve(flags);
  if (!resolved.ok()) return Fail(std::string(resolved.message()), kExitUsage);
  return Serve(flags.options);
}

}  // namespace conclave::coordinator

int main(int argc, char** argv) {
  conclave::base::ReportUnreadableFiles("conclave-coordinator");
  return conclave::coordinator::Main(argc, argv);
}
