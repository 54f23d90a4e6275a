// conclave-coordinator: public API on one side, workers on the other.
//
// Prints `internal HOST:PORT` and `listening HOST:PORT` on stdout once both are bound. Exit codes:
// 0 stopped by SIGINT or SIGTERM; 1 error; 2 usage.

#include <fmt/format.h>
#include <pthread.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "base/logging.h"
#include "base/mapped_files.h"
#include "base/one_line.h"
#include "base/status_macros.h"
#include "coordinator/coordinator_server.h"
#include "model/model_source.h"

namespace conclave::coordinator {
namespace {

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
  std::string exchange = "auto";
  std::string log_level = "info";
  CoordinatorOptions options;
};

int Fail(const std::string& message, int code) {
  fmt::print(stderr, "conclave-coordinator: {}\n", base::OneLine(message));
  return code;
}

void DeclareAddresses(CLI::App& app, Flags& flags) {
  CoordinatorOptions& options = flags.options;
  options.listen = "127.0.0.1:50051";
  options.internal_listen = "127.0.0.1:7001";
  app.add_option("--listen", options.listen, "public API; port 0 takes a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--internal-listen", options.internal_listen, "where workers join")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--health-listen", options.health_listen, "plaintext grpc.health.v1")
      ->type_name("HOST:PORT");
}

void DeclareModel(CLI::App& app, Flags& flags) {
  ServingModelOptions& model = flags.options.model;
  app.add_option("--model", model.dir, "folder of the checkpoint")->type_name("DIR")->required();
  app.add_option("--tokenizer", model.tokenizer, "instead of tokenizer.json in --model")
      ->type_name("FILE");
  app.add_option("--head", flags.heads, "attach a classification head (may be repeated)")
      ->type_name("NAME=DIR")
      ->take_all();
  app.add_option("--weights", flags.weights,
                 "file, or random: made up from --seed, only config.json is read")
      ->check(CLI::IsMember({"file", "random"}))
      ->capture_default_str();
  app.add_option("--seed", flags.random.seed, "of random weights")->capture_default_str();
  app.add_option("--layers", flags.random.layers, "of random weights: the first N; 0: all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_flag("--allow-forced-routing", model.allow_forced_routing,
               "test hook: requests may choose experts (loopback only)");
}

void DeclareEngine(CLI::App& app, Flags& flags) {
  EngineOptions& engine = flags.options.engine;
  ClusterOptions& cluster = engine.cluster;
  app.add_option("--workers", flags.workers, "ranks of the group")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--dp", flags.dp, "data-parallel groups (default: workers / tp)");
  app.add_option("--tp", flags.tp, "tensor-parallel ranks of a group (default: 1)");
  app.add_option("--exchange", flags.exchange, "auto, fixed, exact or replicated")
      ->check(CLI::IsMember({"auto", "fixed", "exact", "replicated"}))
      ->capture_default_str();
  app.add_option("--max-running", cluster.max_running, "sequences computed at once in a group")
      ->capture_default_str();
  app.add_option("--max-queued", engine.max_queued, "requests that may wait")
      ->capture_default_str();
  app.add_option("--max-step-tokens", cluster.max_step_tokens, "rows of one step of a group")
      ->capture_default_str();
  app.add_option("--prefill-chunk", cluster.prefill_chunk, "rows of one prompt in one step")
      ->capture_default_str();
  app.add_option("--pipeline-depth", engine.pipeline_depth, "plans in flight")
      ->capture_default_str();
  app.add_option("--kv-cache-bytes", cluster.kv_cache_bytes, "KV cache of a rank; 0: by need")
      ->capture_default_str();
  app.add_flag("--require-mxfp4", cluster.require_mxfp4,
               "refuse to serve MXFP4 experts in another format");
}

absl::Status Resolve(Flags& flags) {
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
  ServingLimits& limits = flags.options.model.limits;
  limits.max_running = flags.options.engine.cluster.max_running;
  limits.max_queued = flags.options.engine.max_queued;
  limits.max_step_tokens = flags.options.engine.cluster.max_step_tokens;
  ASSIGN_OR_RETURN(flags.options.engine.cluster.shape,
                   model::ResolveShape(flags.workers, flags.dp, flags.tp));
  RETURN_IF_ERROR(CheckEngineOptions(flags.options.engine));
  return base::InitLogging("coordinator", flags.log_level);
}

int Serve(const CoordinatorOptions& options) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread: all of them inherit it
  auto server = CoordinatorServer::Start(options);
  if (!server.ok()) return Fail(std::string(server.status().message()), kExitError);
  fmt::print("internal {}\nlistening {}\n", (*server)->internal_address(),
             (*server)->listen_address());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  base::Log().info("event=stopping signal={}", signal);
  (*server)->Stop();
  return 0;
}

}  // namespace

int Main(int argc, char** argv) {
  // gRPC's own lines would stand beside ours; what matters comes back as a status.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  CLI::App app("Coordinates a group of workers that serve one gpt-oss model.",
               "conclave-coordinator");
  app.footer(kExample);
  Flags flags;
  DeclareModel(app, flags);
  DeclareAddresses(app, flags);
  DeclareEngine(app, flags);
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return Fail(fmt::format("{} (see --help)", error.what()), kExitUsage);
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
