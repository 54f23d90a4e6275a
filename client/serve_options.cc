#include "client/serve_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <thread>

#include "absl/status/statusor.h"

namespace conclave::client {
namespace {

// Seconds that a worker waits longer than the coordinator has to let it go.
constexpr double kLeaveMargin = 5;

constexpr int kMaxInt = std::numeric_limits<int>::max();

// Children may be given the folder by one process and read it in another.
std::string AbsolutePath(const std::string& path) {
  std::error_code error;
  std::string absolute = std::filesystem::absolute(path, error).lexically_normal().string();
  while (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();
  return absolute;
}

int ThreadsPerWorker(const ServeOptions& options) {
  if (options.threads > 0) return options.threads;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores / options.shape.world());
}

base::Flag AddCoordinatorFlag(base::FlagSet& command, ServeOptions* options,
                              const std::string& flag, const std::string& help) {
  const auto pass_on = [options, flag](const std::string& value) {
    options->coordinator_flags.push_back(flag);
    options->coordinator_flags.push_back(value);
  };
  return command.Add(flag, pass_on, help).Type("N").Group("Engine");
}

void AddCoordinatorSwitch(base::FlagSet& command, ServeOptions* options, const std::string& flag,
                          const std::string& help, const std::string& group = "Engine") {
  const auto pass_on = [options, flag] { options->coordinator_flags.push_back(flag); };
  command.AddSwitch(flag, pass_on, help).Group(group);
}

void AddEngineFlags(base::FlagSet& command, ServeOptions* options) {
  AddCoordinatorFlag(command, options, "--exchange", "How activations reach the experts [auto]")
      .Type("MODE")
      .OneOf({"auto", "fixed", "exact", "replicated"});
  AddCoordinatorFlag(command, options, "--max-running", "Sequences computed at once, per group")
      .SilentRange(1, kMaxInt);
  AddCoordinatorFlag(command, options, "--max-queued", "Requests that may wait")
      .SilentRange(0, kMaxInt);
  AddCoordinatorFlag(command, options, "--max-step-tokens", "Tokens of one step, per group")
      .SilentRange(1, kMaxInt);
  AddCoordinatorFlag(command, options, "--prefill-chunk", "Prompt tokens of a sequence in one step")
      .SilentRange(1, kMaxInt);
  AddCoordinatorFlag(command, options, "--pipeline-depth", "Steps planned ahead of results")
      .SilentRange(1, kMaxInt);
  AddCoordinatorFlag(command, options, "--kv-cache-bytes", "KV cache of each worker, in bytes")
      .SilentRange(1, std::numeric_limits<int64_t>::max());
  AddCoordinatorSwitch(command, options, "--no-prefix-cache",
                       "Compute every prompt anew, whatever it has in common with earlier ones");
  AddCoordinatorSwitch(command, options, "--require-mxfp4",
                       "Refuse to serve MXFP4 experts in another format");
  AddCoordinatorSwitch(command, options, "--allow-forced-routing",
                       "Accept requests that choose experts themselves (tests; loopback only)");
}

void AddProtectionFlags(base::FlagSet& command, ServeOptions* options) {
  const auto add = [&](const std::string& flag, const std::string& help) {
    return AddCoordinatorFlag(command, options, flag, help).Group("Protection");
  };
  // Of the public port.
  const auto guard = [&](const std::string& flag, const std::string& help) {
    const auto pass_on = [options, flag](const std::string& value) {
      options->coordinator_flags.insert(options->coordinator_flags.end(), {flag, value});
      options->guarded = true;
    };
    command.Add(flag, pass_on, help).Type("FILE").Group("Protection");
  };
  // Of the workers' port: both ends.
  const auto internal = [&](const std::string& flag, const std::string& help) {
    const auto pass_on = [options, flag](const std::string& value) {
      options->coordinator_flags.insert(options->coordinator_flags.end(), {flag, value});
      options->worker_flags.insert(options->worker_flags.end(), {flag, value});
    };
    command.Add(flag, pass_on, help).Type("FILE").Group("Protection");
  };
  guard("--tls-cert", "Certificate chain of the service: it speaks TLS");
  guard("--tls-key", "Its private key");
  guard("--tls-client-ca", "Clients must show a certificate of this authority");
  guard("--api-keys", "Calls must bring one of these keys");
  internal("--internal-secret", "Shared by coordinator and workers");
  internal("--internal-tls-cert", "Certificate chain of coordinator and workers");
  internal("--internal-tls-key", "Its private key");
  internal("--internal-tls-ca", "Authority of that certificate");
  AddCoordinatorSwitch(command, options, "--internal-insecure",
                       "Let anybody join who reaches --internal-listen", "Protection");
  add("--max-prompt-tokens", "Of one request [what the context holds]").SilentRange(0, kMaxInt);
  add("--max-message-bytes", "Of one request [67108864]").SilentRange(1, kMaxInt);
  add("--max-open-calls", "Of one connection; more wait at the client [1024]")
      .SilentRange(1, kMaxInt);
  add("--max-reply-bytes", "Of a unary call [268435456]").SilentRange(1, kMaxInt);
  add("--max-unread-seconds", "That a message may wait for a client that takes none [60]")
      .SilentRange(0, kMaxInt);
  add("--max-unread-bytes", "Results that may wait for a client that reads slowly [16777216]")
      .SilentRange(1, kMaxInt);
  add("--keepalive-seconds", "Silence after which a client is asked whether it is there [60]")
      .SilentRange(0, kMaxInt);
  add("--max-connection-age", "Seconds until clients are made to connect anew [never]")
      .SilentRange(0, kMaxInt);
}

}  // namespace

void AddServeFlags(base::FlagSet& command, ServeOptions* options) {
  command.Add("--model", &options->model, "Folder of the checkpoint").Type("DIR").Required();
  command
      .Add("--weights", &options->weights,
           "'random' makes weights up: the folder needs config.json alone")
      .OneOf({"file", "random"})
      .ShowDefault();
  command.Add("--seed", &options->random_flags.seed, "Of random weights [0]").Type("S");
  command.Add("--layers", &options->random_flags.layers, "Of random weights: the first N")
      .Type("N")
      .SilentRange(1, kMaxInt);
  command.Add("--tokenizer", &options->tokenizer, "Instead of tokenizer.json in --model")
      .Type("FILE");
  command.Add("--head", &options->heads, "Attach a classification head (repeatable)")
      .Type("NAME=DIR")
      .Repeatable();
  AddShapeFlags(command, &options->shape_flags);
  command.Add("--device", &options->device, "Where workers compute")
      .OneOf({"cpu", "cuda"})
      .ShowDefault();
  command.Add("--listen", &options->listen, "Address of the service; port 0 takes a free one")
      .Type("HOST:PORT")
      .ShowDefault();
  command.Add("--internal-listen", &options->internal_listen, "Address for the workers")
      .Type("HOST:PORT")
      .ShowDefault();
  command.Add("--threads", &options->threads, "CPU threads of a worker [processors / workers]")
      .Type("N")
      .Range(1, 4096);
  command.AddSwitch("--no-graphs", &options->no_graphs,
                    "With --device cuda: launch every kernel by itself, not as a CUDA graph");
  command
      .Add(
          "--direct-kib",
          [options](const std::string& value) {
            options->worker_flags.insert(options->worker_flags.end(), {"--direct-kib", value});
          },
          "With --device cuda: blocks of up to so many KiB between two GPUs go past NCCL [0]")
      .Type("N")
      .SilentRange(0, 1 << 16);
  command.Add("--health-listen", &options->health_listen, "Plaintext grpc.health.v1")
      .Type("HOST:PORT");
  command.Add("--metrics-listen", &options->metrics_listen, "Metrics for Prometheus, over HTTP")
      .Type("HOST:PORT");
  command
      .Add("--drain-limit", &options->drain_limit,
           "After SIGTERM what is under way may go on for so long")
      .Type("SECONDS")
      .NonNegative()
      .ShowDefault();
  command.Add("--log-format", &options->log_format, "Of the children's lines")
      .OneOf({"text", "json"})
      .ShowDefault();
  command.Add("--log-level", &options->log_level, "Of the children")
      .OneOf({"trace", "debug", "info", "warn", "error", "off"})
      .ShowDefault();
  command.Add("--log-dir", &options->log_dir, "Write children's logs here, not to stderr")
      .Type("DIR");
  command.AddSwitch("--no-restart", &options->no_restart, "Leave a child that ended as it is");
  AddEngineFlags(command, options);
  AddProtectionFlags(command, options);
}

model::ModelSource ServeOptions::source() const {
  model::ModelSource source = {model, std::nullopt};
  if (weights == "random") source.random = random_flags;
  return source;
}

std::vector<std::string> CoordinatorArgv(const ServeOptions& options,
                                         const CoordinatorAddresses& addresses) {
  std::vector<std::string> argv = {options.coordinator_binary, "--model",
                                   AbsolutePath(options.model)};
  for (const std::string& flag : options.heads) {
    const auto head = model::ParseHeadFlag(flag);
    if (!head.ok()) continue;  // refused before anything is started
    argv.emplace_back("--head");
    argv.push_back(fmt::format("{}={}", head->name, AbsolutePath(head->dir)));
  }
  const auto add = [&argv](const char* flag, const std::string& value) {
    argv.emplace_back(flag);
    argv.push_back(value);
  };
  if (!options.tokenizer.empty()) add("--tokenizer", AbsolutePath(options.tokenizer));
  if (const auto random = options.source().random; random.has_value()) {
    add("--weights", "random");
    add("--seed", std::to_string(random->seed));
    add("--layers", std::to_string(random->layers));
  }
  add("--listen", addresses.listen);
  add("--internal-listen", addresses.internal);
  if (!addresses.health.empty()) add("--health-listen", addresses.health);
  if (!addresses.metrics.empty()) add("--metrics-listen", addresses.metrics);
  add("--drain-limit", fmt::format("{}", options.drain_limit));
  add("--workers", std::to_string(options.shape.world()));
  add("--dp", std::to_string(options.shape.dp));
  add("--tp", std::to_string(options.shape.tp));
  add("--log-level", options.log_level);
  add("--log-format", options.log_format);
  if (!options.control_socket.empty()) add("--control-socket", options.control_socket);
  argv.insert(argv.end(), options.coordinator_flags.begin(), options.coordinator_flags.end());
  return argv;
}

std::vector<std::string> WorkerArgv(const ServeOptions& options, int index,
                                    const std::string& internal) {
  std::vector<std::string> argv = {options.worker_binary,
                                   "--coordinator",
                                   internal,
                                   "--advertise-address",
                                   "127.0.0.1",
                                   "--interface",
                                   "lo",
                                   "--device",
                                   options.device,
                                   "--health-listen",
                                   "127.0.0.1:0",
                                   "--drain-limit",
                                   fmt::format("{}", options.drain_limit + kLeaveMargin),
                                   "--threads",
                                   std::to_string(ThreadsPerWorker(options)),
                                   "--log-level",
                                   options.log_level,
                                   "--log-format",
                                   options.log_format};
  argv.insert(argv.end(), options.worker_flags.begin(), options.worker_flags.end());
  if (options.device != "cuda") return argv;
  argv.emplace_back("--cuda-device");
  argv.push_back(std::to_string(index));
  if (options.no_graphs) argv.emplace_back("--no-graphs");
  return argv;
}

std::string DialAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return address;
  const std::string host = address.substr(0, colon);
  if (host == "0.0.0.0" || host.empty()) return "127.0.0.1" + address.substr(colon);
  if (host == "[::]") return "[::1]" + address.substr(colon);
  return address;
}

}  // namespace conclave::client
