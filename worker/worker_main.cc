// conclave-worker: one process for each device. Joins a coordinator and serves the rank it is given
// until it is told to stop.
//
// SIGTERM asks the coordinator to be let go, which costs no stream if another worker can take its
// place; SIGINT, and a second signal, stop at once. Exit codes: 0 stopped by a signal; 1 error; 2
// usage; 3 the step thread could not leave an epoch that had ended (start the worker again, it
// joins anew).

#include <fmt/format.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/flags.h"
#include "base/logging.h"
#include "base/mapped_files.h"
#include "base/one_line.h"
#include "worker/agent.h"
#include "worker/backend.h"
#include "worker/health_listener.h"
#include "worker/listen_address.h"
#include "worker/model_runtime.h"
#include "worker/probe.h"

namespace conclave::worker {
namespace {

using ParseOutcome = base::ParsedFlags::Outcome;

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
constexpr int kExitStuck = 3;
constexpr int kExitDeviceLost = 4;
constexpr int kMaxLoadThreads = 8;  // that copy weights to one GPU; more do not copy faster
// The control loop is dead when one message takes longer: ending an epoch takes seconds at most.
constexpr absl::Duration kAliveLimit = absl::Seconds(10);

constexpr char kExample[] =
    "Example:\n"
    "  conclave-worker --coordinator 10.0.0.1:7001 --advertise-address 10.0.0.7 --interface eth0 "
    "\\\n"
    "      --health-listen 0.0.0.0:7101";

struct Flags {
  std::string coordinator;
  std::string secret;
  base::TlsFiles tls;
  std::string advertise_address;
  std::string interface;
  std::string device = "cpu";
  std::string health_listen;
  std::string model;
  std::string log_level = "info";
  std::string log_format = "text";
  double drain_limit = 35;
  int threads = 0;
  int cuda_device = 0;
  int direct_kib = 0;
  bool no_graphs = false;
  bool no_rejoin = false;
  bool probe = false;
};

int Fail(const std::string& message, int code) {
  fmt::print(stderr, "conclave-worker: {}\n", base::OneLine(message));
  return code;
}

void Declare(base::FlagSet& app, Flags& flags) {
  app.SetFooter(kExample);
  app.Add("--coordinator", &flags.coordinator, "internal address of the coordinator")
      .Type("HOST:PORT");
  app.Add("--internal-secret", &flags.secret, "bring this file's secret to the coordinator")
      .Type("FILE");
  app.Add("--internal-tls-cert", &flags.tls.cert, "speak TLS and show this certificate")
      .Type("FILE");
  app.Add("--internal-tls-key", &flags.tls.key, "its private key").Type("FILE");
  app.Add("--internal-tls-ca", &flags.tls.ca,
          "speak TLS; the coordinator's certificate must be of this authority")
      .Type("FILE");
  app.Add("--advertise-address", &flags.advertise_address,
          "this machine's address at which the other workers reach it")
      .Type("ADDRESS");
  app.Add("--interface", &flags.interface, "network interface of that address").Type("NAME");
  app.Add("--device", &flags.device, "cpu or cuda").OneOf({"cpu", "cuda"}).ShowDefault();
  app.Add("--cuda-device", &flags.cuda_device, "which GPU, as CUDA counts those it sees")
      .Range(0, 1023)
      .ShowDefault();
  app.Add("--direct-kib", &flags.direct_kib,
          "cuda: blocks of up to so many KiB between two GPUs of a host are written to the other's "
          "memory by a kernel instead of NCCL; the same for every worker")
      .Range(0, 1 << 16)
      .ShowDefault();
  app.AddSwitch("--no-graphs", &flags.no_graphs,
                "launch every kernel of a step by itself instead of as a CUDA graph");
  app.Add("--health-listen", &flags.health_listen,
          "serve grpc.health.v1 here (alive: the control loop answers)")
      .Type("HOST:PORT");
  app.Add("--threads", &flags.threads,
          "threads of a step (cuda: that load weights); 0: one for each core")
      .Range(0, 1024)
      .ShowDefault();
  app.Add("--model", &flags.model,
          "folder of the checkpoint, instead of the one the coordinator names")
      .Type("DIR");
  app.Add("--drain-limit", &flags.drain_limit,
          "after SIGTERM the coordinator has so long to let the worker go")
      .Type("SECONDS")
      .NonNegative()
      .ShowDefault();
  app.Add("--log-level", &flags.log_level, "trace, debug, info, warn, error or off").ShowDefault();
  app.Add("--log-format", &flags.log_format, "text, or json: one object for each line")
      .OneOf({"text", "json"})
      .ShowDefault();
  app.AddSwitch("--no-rejoin", &flags.no_rejoin, "exit when the stream to the coordinator is lost");
  app.AddSwitch("--probe", &flags.probe, "print what could run here as one JSON object, and exit");
}

// "" when the flags suffice to join.
std::string MissingFlag(const Flags& flags) {
  for (const auto& [value, name] : {std::pair(&flags.coordinator, "--coordinator HOST:PORT"),
                                    std::pair(&flags.advertise_address, "--advertise-address A"),
                                    std::pair(&flags.interface, "--interface NAME")}) {
    if (value->empty()) return fmt::format("{} is required (see --help)", name);
  }
  return "";
}

AgentOptions MakeAgentOptions(const Flags& flags, const Backend& backend) {
  AgentOptions options;
  options.coordinator = flags.coordinator;
  options.tls = flags.tls;
  options.secret_file = flags.secret;
  options.rejoin = !flags.no_rejoin;
  options.end_limit = absl::Seconds(2) * base::TimeScale();
  options.free_memory_bytes = [&backend] {
    return static_cast<uint64_t>(backend.Memory().free_bytes);
  };
  // No destructors: they would wait for the thread that is stuck.
  options.on_stuck = [] { _exit(kExitStuck); };
  options.on_device_lost = [] { _exit(kExitDeviceLost); };
  const kernels::KernelInfo& info = backend.info();
  std::array<char, 256> host = {};
  gethostname(host.data(), host.size() - 1);
  internal::v1::Register& registration = options.registration;
  registration.set_device(info.device);
  registration.set_device_name(info.device_name);
  registration.set_kernel(info.kernel);
  registration.set_total_memory_bytes(static_cast<uint64_t>(backend.Memory().total_bytes));
  registration.set_host(host.data());
  registration.set_host_id(backend.memory_id());
  registration.set_pid(getpid());
  return options;
}

// Waits for SIGINT or SIGTERM on a thread of its own. Make it before all other threads: they
// inherit the blocked signals.
class SignalWaiter {
 public:
  SignalWaiter() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGUSR2);  // our own, to end the thread
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  ~SignalWaiter() { Stop(); }

  // No callback runs after this.
  void Stop() {
    if (!thread_.joinable()) return;
    ending_.store(true);
    pthread_kill(thread_.native_handle(), SIGUSR2);
    thread_.join();
  }

  // `leave` at the first SIGTERM; `stop` at every other signal, and `limit` after `leave`.
  template <typename Leave, typename Stop>
  void Start(Leave leave, Stop stop, absl::Duration limit) {
    thread_ = std::thread([this, leave, stop, limit] {
      bool leaving = false;
      absl::Time until = absl::InfiniteFuture();
      for (;;) {
        const int signal = Wait(until);
        if (ending_.load()) return;
        if (signal == SIGUSR2) continue;
        until = absl::InfiniteFuture();
        if (signal == SIGTERM && !std::exchange(leaving, true)) {
          until = base::SteadyNow() + limit;
          leave();
        } else {
          stop();
        }
      }
    });
  }

 private:
  // The next signal; -1 when `until` comes first.
  int Wait(absl::Time until) const {
    int signal = 0;
    if (until == absl::InfiniteFuture()) {
      sigwait(&signals_, &signal);
      return signal;
    }
    for (;;) {
      const timespec patience =
          absl::ToTimespec(std::max(absl::ZeroDuration(), until - base::SteadyNow()));
      signal = sigtimedwait(&signals_, nullptr, &patience);
      if (signal >= 0 || errno != EINTR) return signal;
    }
  }

  sigset_t signals_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

int ThreadsOf(const Flags& flags) {
  return flags.threads > 0 ? flags.threads
                           : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const Flags& flags) {
  if (flags.device == "cpu") return MakeCpuBackend(ThreadsOf(flags));
  absl::StatusOr<std::unique_ptr<Backend>> made =
      MakeCudaBackend({.device = flags.cuda_device,
                       .load_threads = std::min(ThreadsOf(flags), kMaxLoadThreads),
                       .record_steps = !flags.no_graphs,
                       .direct_bytes = int64_t{1024} * flags.direct_kib,
                       .interface = flags.interface});
  if (made.ok()) return made;
  return absl::Status(made.status().code(),
                      fmt::format("--device cuda: {}; use --device cpu, or see 'conclave doctor'",
                                  std::string(made.status().message())));
}

int Serve(const Flags& flags) {
  // Peers would find out later, each in its own words.
  const absl::StatusOr<std::string> address =
      ResolveListenAddress(flags.interface, flags.advertise_address);
  if (!address.ok()) return Fail(std::string(address.status().message()), kExitError);
  AgentOptions credentials;
  credentials.tls = flags.tls;
  credentials.secret_file = flags.secret;
  if (const absl::Status status = CheckCredentials(credentials); !status.ok()) {
    return Fail(std::string(status.message()), kExitError);
  }
  SignalWaiter signals;
  const absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(flags);
  if (!backend.ok()) return Fail(std::string(backend.status().message()), kExitError);
  const std::unique_ptr<RankRuntime> runtime =
      MakeModelRuntime(**backend, {.threads = ThreadsOf(flags),
                                   .interface = flags.interface,
                                   .advertise_address = flags.advertise_address,
                                   .model_dir = flags.model});
  WorkerAgent agent(MakeAgentOptions(flags, **backend), *runtime);
  std::unique_ptr<HealthListener> health;
  if (!flags.health_listen.empty()) {
    absl::StatusOr<std::unique_ptr<HealthListener>> started = HealthListener::Start(
        flags.health_listen, [&agent] { return agent.Alive(kAliveLimit * base::TimeScale()); },
        absl::Seconds(1));
    if (!started.ok()) return Fail(std::string(started.status().message()), kExitError);
    health = *std::move(started);
  }
  signals.Start([&agent] { agent.Leave(); }, [&agent] { agent.Stop(); },
                absl::Seconds(flags.drain_limit));
  const absl::Status ended = agent.Run();
  signals.Stop();  // a second signal must not reach an agent that is going away
  if (!ended.ok()) return Fail(std::string(ended.message()), kExitError);
  return 0;
}

int Main(int argc, char** argv) {
  base::FlagSet app("A worker of Conclave: serves one rank of a gpt-oss model.", "conclave-worker");
  Flags flags;
  Declare(app, flags);
  const base::ParsedFlags parsed = app.Parse(argc, argv);
  if (parsed.outcome == ParseOutcome::kError) {
    return Fail(fmt::format("{} (see --help)", parsed.text), kExitUsage);
  }
  if (parsed.outcome == ParseOutcome::kHelp) {
    std::fputs(parsed.text.c_str(), stdout);
    return 0;
  }
  if (absl::Status status = base::InitLogging("worker", flags.log_level, flags.log_format);
      !status.ok()) {
    return Fail(std::string(status.message()), kExitUsage);
  }
  if (flags.probe) {
    fmt::print("{}\n", ProbeJson(flags.cuda_device));
    return 0;
  }
  if (const std::string missing = MissingFlag(flags); !missing.empty()) {
    return Fail(missing, kExitUsage);
  }
  return Serve(flags);
}

}  // namespace
}  // namespace conclave::worker

int main(int argc, char** argv) {
  // Our own errors say what matters in one line; GRPC_VERBOSITY=debug brings gRPC's back.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  conclave::base::ReportUnreadableFiles("conclave-worker");
  return conclave::worker::Main(argc, argv);
}
