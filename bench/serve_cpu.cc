// Tokens per second of the service on the CPU, and where each rank's time goes.
//
//   bazel build //bench:serve_cpu
//   bazel-bin/bench/serve_cpu --model demo/tiny_gpt_oss
//   bazel-bin/bench/serve_cpu --model bench/configs/gpt_oss_20b --random --layers 2 --tokens 16
//
// Starts `conclave serve` for each shape, in real processes, and measures prefill (prompts of
// --prompt tokens, one token generated) and decode (--tokens tokens after a prompt of 8) at each
// batch size. The floor of a decode step is the weights it has to read (bench/step_floor.h) at the
// read bandwidth of all cores, measured first. `compute` is the wall time of a rank's own work,
// time in which the system ran another process included; `exchange` moves and adds bytes; `wait` is
// for peers; `idle` is without a step.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "bench/measure.h"
#include "bench/step_floor.h"
#include "bench/workload.h"
#include "client/client.h"
#include "model/model_source.h"
#include "tests/e2e/server.h"

namespace conclave::bench {
namespace {

constexpr int kDecodePrompt = 8;

struct Flags {
  std::string model = "demo/tiny_gpt_oss";
  bool random = false;
  int layers = 0;
  std::vector<std::string> shapes = {"1x1", "2x1", "1x2", "4x1"};
  std::vector<int> batches = {1, 16};
  int prompt = 128;
  int tokens = 64;
  int rounds = 3;
  int threads = 0;
};

model::ModelSource SourceOf(const Flags& flags) {
  model::ModelSource source = {flags.model, std::nullopt};
  if (flags.random) source.random = model::RandomWeights{.seed = 0, .layers = flags.layers};
  return source;
}

tests::ServerOptions ServerOptions(const Flags& flags, const model::ParallelShape& shape) {
  tests::ServerOptions options;
  options.workers = shape.world();
  options.dp = shape.dp;
  options.tp = shape.tp;
  options.model = flags.model;
  options.args = {"--log-level", "warn"};
  const auto add = [&options](const char* flag, const std::string& value) {
    options.args.insert(options.args.end(), {flag, value});
  };
  if (flags.random) add("--weights", "random");
  if (flags.layers > 0) add("--layers", std::to_string(flags.layers));
  if (flags.threads > 0) add("--threads", std::to_string(flags.threads));
  return options;
}

// Read bandwidth of all cores: the best of nine passes over 512 MiB, for a floor.
double MeasureBandwidth() {
  base::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const std::vector<uint64_t> buffer(size_t{64} << 20, 1);
  double best = 0;
  for (int i = 0; i < 9; ++i) best = std::max(best, ReadBandwidth(buffer, pool));
  return best;
}

struct Model {
  model::Config config;
  std::shared_ptr<const model::Checkpoint> checkpoint;
};

class Bench {
 public:
  Bench(const Flags& flags, Model model, double bandwidth)
      : flags_(flags), model_(std::move(model)), bandwidth_(bandwidth) {}

  absl::Status MeasureShape(const model::ParallelShape& shape) {
    tests::Server server(ServerOptions(flags_, shape));
    if (!server.WaitServing()) return absl::InternalError(server.log());
    client::Client client(server.address());
    // Touches all that is allocated lazily.
    RETURN_IF_ERROR(Run(client, Prefill(*std::ranges::max_element(flags_.batches))).status());
    for (const int batch : flags_.batches) {
      RETURN_IF_ERROR(Measure(client, shape, "prefill", Prefill(batch), 0));
      const double floor =
          batch * bandwidth_ /
          DecodeStepBytes(model_.config, model_.checkpoint->tensors(), shape, batch);
      RETURN_IF_ERROR(Measure(client, shape, "decode", Decode(batch), floor));
    }
    return absl::OkStatus();
  }

 private:
  Workload Prefill(int batch) const {
    return {.batch = batch,
            .prompt_tokens = flags_.prompt,
            .max_tokens = 1,
            .vocab_size = model_.config.vocab_size};
  }
  Workload Decode(int batch) const {
    return {.batch = batch,
            .prompt_tokens = kDecodePrompt,
            .max_tokens = flags_.tokens,
            .vocab_size = model_.config.vocab_size};
  }

  // `floor` in tokens per second, 0: none.
  absl::Status Measure(client::Client& client, const model::ParallelShape& shape, const char* what,
                       const Workload& workload, double floor) {
    ASSIGN_OR_RETURN(const v1::GetClusterResponse before, SettledCluster(client));
    std::vector<double> rates;
    double seconds = 0;
    for (int round = 0; round < flags_.rounds; ++round) {
      ASSIGN_OR_RETURN(const Throughput run, Run(client, workload));
      seconds += run.seconds;
      rates.push_back(workload.max_tokens > 1
                          ? run.decode_per_second
                          : workload.batch * workload.prompt_tokens / run.seconds);
    }
    ASSIGN_OR_RETURN(const v1::GetClusterResponse after, SettledCluster(client));
    const double rate = Median(rates);
    const std::string of_floor =
        floor > 0 ? fmt::format("{:.0f} | {:.0f} %", floor, 100 * rate / floor) : "- | -";
    fmt::print("| {} x {} | {} | {} | {:.1f} | {} |", shape.dp, shape.tp, what, workload.batch,
               rate, of_floor);
    for (const RankTime& time : TimesBetween(before, after, seconds)) {
      fmt::print(" {:.0f}/{:.0f}/{:.0f}/{:.0f}", 100 * time.compute, 100 * time.exchange,
                 100 * time.wait, 100 * time.idle());
    }
    fmt::print(" |\n");
    std::fflush(stdout);
    return absl::OkStatus();
  }

  const Flags& flags_;
  const Model model_;
  const double bandwidth_;
};

absl::StatusOr<model::ParallelShape> ParseShape(const std::string& text) {
  model::ParallelShape shape;
  if (std::sscanf(text.c_str(), "%dx%d", &shape.dp, &shape.tp) == 2 && shape.dp > 0 &&
      shape.tp > 0) {
    return shape;
  }
  return absl::InvalidArgumentError(fmt::format("--shapes: '{}' is not of the form DPxTP", text));
}

absl::Status RunAll(const Flags& flags) {
  Model model;
  ASSIGN_OR_RETURN(model.config, model::LoadConfig(SourceOf(flags)));
  ASSIGN_OR_RETURN(model.checkpoint, model::OpenCheckpoint(SourceOf(flags), model.config));
  const double bandwidth = MeasureBandwidth();
  fmt::print("{}, {} layers, medians of {} rounds; read bandwidth of all cores {:.1f} GB/s\n\n",
             flags.model, model.config.num_layers, flags.rounds, bandwidth * 1e-9);
  fmt::print(
      "| dp x tp | | batch | tokens/s | floor | of floor | compute/exchange/wait/idle %, by "
      "rank |\n|---|---|---|---|---|---|---|\n");
  Bench bench(flags, std::move(model), bandwidth);
  for (const std::string& text : flags.shapes) {
    ASSIGN_OR_RETURN(const model::ParallelShape shape, ParseShape(text));
    RETURN_IF_ERROR(bench.MeasureShape(shape));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Tokens per second of the service on the CPU.");
  Flags flags;
  app.add_option("--model", flags.model)->type_name("DIR");
  app.add_flag("--random", flags.random, "made-up weights");
  app.add_option("--layers", flags.layers, "of random weights");
  app.add_option("--shapes", flags.shapes, "DPxTP, ...")->delimiter(',');
  app.add_option("--batches", flags.batches)->delimiter(',');
  app.add_option("--prompt", flags.prompt, "tokens of a prompt of the prefill")
      ->check(CLI::Range(1, 100000));
  app.add_option("--tokens", flags.tokens, "generated in decode")->check(CLI::Range(2, 100000));
  app.add_option("--rounds", flags.rounds)->check(CLI::Range(1, 1000));
  app.add_option("--threads", flags.threads, "of a worker; 0: processors / workers");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = RunAll(flags);
  if (status.ok()) return 0;
  fmt::print(stderr, "serve_cpu: {}\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return conclave::bench::Main(argc, argv);
}
