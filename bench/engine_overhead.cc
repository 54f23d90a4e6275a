// What a step costs beside its kernels: planning, two RPCs, bookkeeping, streaming to clients.
//
//   bazel build //bench:engine_overhead && bazel-bin/bench/engine_overhead
//
// A real coordinator, a real worker agent and real clients, all over gRPC on loopback, in one
// process; the worker's model answers at once. The time from one plan's arrival at the worker to
// the next one's is then overhead alone. With one plan in flight that is the whole round trip, with
// two (the default of the service) what is left when planning overlaps with the step. Clients share
// the processors with the engine: `streams` has one stream for each sequence, a message for each of
// its tokens, and a thread that reads them; `batch` asks for all sequences in one unary call.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/logging.h"
#include "bench/instant_runtime.h"
#include "bench/measure.h"
#include "client/client.h"
#include "coordinator/coordinator_server.h"
#include "worker/agent.h"

namespace conclave::bench {
namespace {

constexpr uint64_t kMemory = uint64_t{1} << 40;  // more than any cache on paper needs
constexpr double kTargetMicros = 300;

struct Flags {
  std::string model = "bench/configs/gpt_oss_20b";
  int steps = 4000;
  std::vector<int> sequences = {1, 64};
  std::vector<int> depths = {1, 2};
};

coordinator::CoordinatorOptions ServerOptions(const Flags& flags, int depth, int sequences) {
  coordinator::CoordinatorOptions options;
  options.model.dir = flags.model;
  options.model.random_weights = model::RandomWeights{};
  options.engine.cluster.max_running = sequences;
  options.engine.pipeline_depth = depth;
  options.model.limits = {.max_running = sequences,
                          .max_queued = options.engine.max_queued,
                          .max_step_tokens = options.engine.cluster.max_step_tokens};
  options.listen = "127.0.0.1:0";
  options.internal_listen = "127.0.0.1:0";
  return options;
}

worker::AgentOptions MakeAgentOptions(const std::string& coordinator) {
  worker::AgentOptions options;
  options.coordinator = coordinator;
  options.free_memory_bytes = [] { return kMemory; };
  options.on_stuck = [] { std::abort(); };
  options.registration.set_device("cpu");
  options.registration.set_kernel("none");
  options.registration.set_total_memory_bytes(kMemory);
  options.registration.set_host("bench");
  options.registration.set_host_id("bench");
  options.registration.set_pid(getpid());
  return options;
}

v1::GenerateRequest MakeRequest(int tokens) {
  v1::GenerateRequest request;
  for (const uint32_t id : {11, 12, 13, 14})
    request.mutable_prompt()->mutable_tokens()->add_ids(id);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(static_cast<uint32_t>(tokens));
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

bool WaitServing(client::Client& client) {
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (absl::Now() < end) {
    const auto serving = client.Serving();
    if (serving.ok() && *serving) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

// False when a stream failed.
bool RunStreams(client::Client& client, int sequences, int tokens) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < sequences; ++i) {
    threads.emplace_back([&] {
      const auto finish = client.Generate(MakeRequest(tokens), [](const v1::GenerateResponse&) {});
      if (finish.ok()) ++good;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return good == sequences;
}

// False when the call failed.
bool RunBatch(client::Client& client, int sequences, int tokens) {
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < sequences; ++i) *batch.add_requests() = MakeRequest(tokens);
  return client.GenerateBatch(batch).ok();
}

struct Case {
  int sequences = 1;
  int depth = 1;  // plans in flight
  bool streams = true;
};

void Report(const Case& which, const std::vector<double>& times) {
  std::vector<double> micros;
  // The first tenth warms up.
  for (size_t i = times.size() / 10 + 1; i < times.size(); ++i) {
    micros.push_back(1e6 * (times[i] - times[i - 1]));
  }
  const double median = Median(micros);
  fmt::print("| {} | {} | {} | {} | {:.0f} | {:.0f} | {} |\n", which.sequences,
             which.streams ? "streams" : "batch", which.depth, micros.size(), median,
             Quantile(micros, 0.99), median < kTargetMicros ? "yes" : "no");
  std::fflush(stdout);
}

// False when it could not be measured.
bool Measure(const Flags& flags, const Case& which) {
  auto server =
      coordinator::CoordinatorServer::Start(ServerOptions(flags, which.depth, which.sequences));
  if (!server.ok()) {
    fmt::print(stderr, "engine_overhead: {}\n", std::string(server.status().message()));
    return false;
  }
  InstantRuntime runtime;
  worker::WorkerAgent agent(MakeAgentOptions((*server)->internal_address()), runtime);
  std::thread agent_thread([&agent] { (void)agent.Run(); });
  client::Client client((*server)->listen_address());
  const bool good = WaitServing(client) &&
                    (which.streams ? RunStreams : RunBatch)(client, which.sequences, flags.steps);
  if (good) Report(which, runtime.TakeTimes(which.sequences));
  agent.Stop();
  agent_thread.join();
  (*server)->Stop();
  if (!good) fmt::print(stderr, "engine_overhead: the requests did not complete\n");
  return good;
}

int Main(int argc, char** argv) {
  CLI::App app("Time of a step beside its kernels.");
  Flags flags;
  app.add_option("--model", flags.model, "folder of a config.json");
  app.add_option("--steps", flags.steps)->check(CLI::Range(100, 1000000));
  app.add_option("--sequences", flags.sequences)->delimiter(',');
  app.add_option("--depths", flags.depths, "plans in flight")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  if (!base::InitLogging("bench", "error").ok()) return 1;
  fmt::print(
      "| sequences | clients | plans in flight | steps | median us | p99 us | under {:.0f} us |\n"
      "|---|---|---|---|---|---|---|\n",
      kTargetMicros);
  for (const int sequences : flags.sequences) {
    for (const int depth : flags.depths) {
      for (const bool streams : {true, false}) {
        if (!Measure(flags, {sequences, depth, streams})) return 1;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return conclave::bench::Main(argc, argv);
}
