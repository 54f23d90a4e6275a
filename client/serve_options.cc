#include "client/serve_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <thread>

#include "absl/status/statusor.h"

namespace conclave::client {
namespace {

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

CLI::Option* AddCoordinatorFlag(CLI::App& command, ServeOptions* options, const std::string& flag,
                                const std::string& help) {
  return command
      .add_option_function<std::string>(
          flag,
          [options, flag](const std::string& value) {
            options->coordinator_flags.push_back(flag);
            options->coordinator_flags.push_back(value);
          },
          help)
      ->type_name("N")
      ->group("Engine");
}

void AddCoordinatorSwitch(CLI::App& command, ServeOptions* options, const std::string& flag,
                          const std::string& help) {
  command
      .add_flag_function(
          flag, [options, flag](int64_t) { options->coordinator_flags.push_back(flag); }, help)
      ->group("Engine");
}

void AddEngineFlags(CLI::App& command, ServeOptions* options) {
  const auto count = CLI::Range(1, std::numeric_limits<int>::max()).description("");
  AddCoordinatorFlag(command, options, "--exchange", "How activations reach the experts [auto]")
      ->type_name("MODE")
      ->check(CLI::IsMember({"auto", "fixed", "exact", "replicated"}));
  AddCoordinatorFlag(command, options, "--max-running", "Sequences computed at once, per group")
      ->check(count);
  AddCoordinatorFlag(command, options, "--max-queued", "Requests that may wait")
      ->check(CLI::Range(0, std::numeric_limits<int>::max()).description(""));
  AddCoordinatorFlag(command, options, "--max-step-tokens", "Tokens of one step, per group")
      ->check(count);
  AddCoordinatorFlag(command, options, "--prefill-chunk", "Prompt tokens of a sequence in one step")
      ->check(count);
  AddCoordinatorFlag(command, options, "--pipeline-depth", "Steps planned ahead of results")
      ->check(count);
  AddCoordinatorFlag(command, options, "--kv-cache-bytes", "KV cache of each worker, in bytes")
      ->check(CLI::Range(int64_t{1}, std::numeric_limits<int64_t>::max()).description(""));
  AddCoordinatorSwitch(command, options, "--require-mxfp4",
                       "Refuse to serve MXFP4 experts in another format");
  AddCoordinatorSwitch(command, options, "--allow-forced-routing",
                       "Accept requests that choose experts themselves (tests; loopback only)");
}

}  // namespace

void AddServeFlags(CLI::App& command, ServeOptions* options) {
  command.add_option("--model", options->model, "Folder of the checkpoint")
      ->type_name("DIR")
      ->required();
  command
      .add_option("--weights", options->weights,
                  "'random' makes weights up: the folder needs config.json alone")
      ->check(CLI::IsMember({"file", "random"}))
      ->capture_default_str();
  command.add_option("--seed", options->random_flags.seed, "Of random weights [0]")->type_name("S");
  command.add_option("--layers", options->random_flags.layers, "Of random weights: the first N")
      ->type_name("N")
      ->check(CLI::Range(1, std::numeric_limits<int>::max()).description(""));
  command.add_option("--tokenizer", options->tokenizer, "Instead of tokenizer.json in --model")
      ->type_name("FILE");
  command.add_option("--head", options->heads, "Attach a classification head (repeatable)")
      ->type_name("NAME=DIR")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  AddShapeFlags(command, &options->shape_flags);
  command.add_option("--device", options->device, "Where workers compute")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command
      .add_option("--listen", options->listen, "Address of the service; port 0 takes a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command.add_option("--internal-listen", options->internal_listen, "Address for the workers")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command
      .add_option("--threads", options->threads, "CPU threads of a worker [processors / workers]")
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  command.add_option("--log-level", options->log_level, "Of the children")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  command.add_option("--log-dir", options->log_dir, "Write children's logs here, not to stderr")
      ->type_name("DIR");
  command.add_flag("--no-restart", options->no_restart, "Leave a child that ended as it is");
  AddEngineFlags(command, options);
}

model::ModelSource ServeOptions::source() const {
  model::ModelSource source = {model, std::nullopt};
  if (weights == "random") source.random = random_flags;
  return source;
}

std::vector<std::string> CoordinatorArgv(const ServeOptions& options, const std::string& listen,
                                         const std::string& internal_listen) {
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
  add("--listen", listen);
  add("--internal-listen", internal_listen);
  add("--health-listen", "127.0.0.1:0");
  add("--workers", std::to_string(options.shape.world()));
  add("--dp", std::to_string(options.shape.dp));
  add("--tp", std::to_string(options.shape.tp));
  add("--log-level", options.log_level);
  argv.insert(argv.end(), options.coordinator_flags.begin(), options.coordinator_flags.end());
  return argv;
}

std::vector<std::string> WorkerArgv(const ServeOptions& options, const std::string& internal) {
  return {options.worker_binary,
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
          "--threads",
          std::to_string(ThreadsPerWorker(options)),
          "--log-level",
          options.log_level};
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
