#include "client/serve_session.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status_macros.h"
#include "client/exit_code.h"

namespace conclave::client {
namespace {

constexpr int kCoordinator = 0;  // its child number; workers follow

// Before the service ever ran, a child that keeps ending is a mistake that time will not mend.
constexpr int kMaxFailuresAtStart = 5;

// A safety net under SIGCHLD and the pipes, which wake us at once.
constexpr absl::Duration kStep = absl::Milliseconds(200);

// For the coordinator to end, after the limit of its drain.
constexpr absl::Duration kDrainMargin = absl::Seconds(8);

// The rest of `line` when it begins with "`word` ".
std::string After(std::string_view word, std::string_view line) {
  if (!line.starts_with(word) || line.size() <= word.size() || line[word.size()] != ' ') return "";
  return std::string(line.substr(word.size() + 1));
}

// A hang-up stops the service too, unless it is ignored: nohup means what it says.
std::vector<int> StopSignals() {
  std::vector<int> signals = {SIGINT, SIGTERM};
  struct sigaction hang_up = {};
  if (sigaction(SIGHUP, nullptr, &hang_up) == 0 && hang_up.sa_handler != SIG_IGN) {
    signals.push_back(SIGHUP);
  }
  return signals;
}

}  // namespace

ServeSession::ServeSession(const ServeOptions& options, ServeDisplay* display)
    : options_(options),
      display_(display),
      stop_signals_(StopSignals()),
      child_signals_({SIGCHLD}),
      supervisor_({.restart = !options.no_restart,
                   .backoff = {},
                   // SIGTERM alone would be the beginning of a drain.
                   .stop_signals = {SIGTERM, SIGINT}},
                  this) {}

absl::Status ServeSession::Run() {
  int signal = 0;
  failure_ = StartCoordinator();
  while (failure_.ok() && !stopping_) {
    const std::array<int, 3> wake = {stop_signals_.fd(), child_signals_.fd(),
                                     monitor_ ? monitor_->fd() : child_signals_.fd()};
    supervisor_.Step(kStep, wake);
    while (child_signals_.Take() != 0) {
    }
    if (monitor_) OnSnapshot(monitor_->Take());
    if (phase_ == Phase::kStarting && !bound_.listen.empty() && !bound_.internal.empty()) {
      failure_.Update(StartWorkers());
    }
    signal = stop_signals_.Take();
    stopping_ = signal != 0;
  }
  monitor_.reset();
  display_->EndProgress();
  if (failure_.ok()) ShowHeld();
  if (signal == SIGTERM) Drain();
  if (stopping_) display_->Message("stopping (once more to stop at once)");
  const std::array<int, 1> hurry = {stop_signals_.fd()};
  supervisor_.StopAll(hurry);
  return failure_;
}

void ServeSession::Drain() {
  display_->Message(
      fmt::format("draining, for {} s at most (once more to stop at once)", options_.drain_limit));
  supervisor_.StopChild(kCoordinator);
  const absl::Time limit =
      base::SteadyNow() + absl::Seconds(options_.drain_limit) + kDrainMargin * base::TimeScale();
  pollfd second = {stop_signals_.fd(), POLLIN, 0};
  while (supervisor_.pid(kCoordinator) > 0 && base::SteadyNow() < limit) {
    const std::array<int, 2> wake = {stop_signals_.fd(), child_signals_.fd()};
    supervisor_.Step(kStep, wake);
    while (child_signals_.Take() != 0) {
    }
    if (poll(&second, 1, 0) > 0) return;
  }
}

absl::Status ServeSession::StartCoordinator() {
  return supervisor_
      .Start({.name = "coordinator",
              .argv = CoordinatorArgv(options_, {.listen = options_.listen,
                                                 .internal = options_.internal_listen,
                                                 .health = options_.health_listen,
                                                 .metrics = options_.metrics_listen}),
              .log_file = LogFile("coordinator"),
              .lines_of_stdout = true})
      .status();
}

absl::Status ServeSession::StartWorkers() {
  phase_ = Phase::kForming;
  ShowHeld();
  fmt::print("internal {}\n", bound_.internal);
  if (!bound_.health.empty()) fmt::print("health {}\n", bound_.health);
  if (!bound_.metrics.empty()) fmt::print("metrics {}\n", bound_.metrics);
  std::fflush(stdout);
  // A coordinator that is started again is found where the workers and clients know it.
  supervisor_.set_argv(kCoordinator, CoordinatorArgv(options_, bound_));
  const int workers = options_.shape.world();
  display_->Message(fmt::format("starting {} worker{} (dp {} x tp {}) on {}", workers,
                                workers == 1 ? "" : "s", options_.shape.dp, options_.shape.tp,
                                options_.device));
  for (int i = 0; i < workers; ++i) {
    const std::string name = fmt::format("worker {}", i);
    RETURN_IF_ERROR(supervisor_
                        .Start({.name = name,
                                .argv = WorkerArgv(options_, i, DialAddress(bound_.internal)),
                                .log_file = LogFile(fmt::format("worker-{}", i)),
                                .lines_of_stdout = false})
                        .status());
  }
  monitor_ = std::make_unique<ServeMonitor>(options_.control_socket.empty()
                                                ? DialAddress(bound_.listen)
                                                : "unix:" + options_.control_socket);
  return absl::OkStatus();
}

void ServeSession::OnSnapshot(ServeSnapshot snapshot) {
  for (const auto& rank : snapshot.cluster.ranks()) {
    rank_of_[static_cast<pid_t>(rank.pid())] = static_cast<int>(rank.rank());
  }
  if (!snapshot.serving) {
    display_->Progress(snapshot.cluster);
  } else if (!serving_) {
    display_->EndProgress();
    if (phase_ == Phase::kForming) {
      phase_ = Phase::kServing;
      fmt::print("serving {}\n", bound_.listen);
      std::fflush(stdout);
    } else {
      display_->Message("serving again");
    }
  }
  serving_ = snapshot.serving;
}

void ServeSession::OnLine(int child, bool is_stdout, const std::string& line) {
  if (child == kCoordinator && is_stdout) {
    const std::array<std::pair<const char*, std::string*>, 4> said = {
        {{"internal", &bound_.internal},
         {"health", &bound_.health},
         {"metrics", &bound_.metrics},
         {"listening", &bound_.listen}}};
    for (const auto& [word, address] : said) {
      const std::string rest = After(word, line);
      if (rest.empty()) continue;
      *address = rest;
      return;
    }
  }
  if (!is_stdout && !line.empty()) last_line_[child] = line;
  if (phase_ != Phase::kStarting) {
    display_->ChildLine(Label(child), line);
    return;
  }
  ShowHeld();
  held_ = line;
}

void ServeSession::ShowHeld() {
  if (held_.has_value()) display_->ChildLine(Label(kCoordinator), *held_);
  held_.reset();
}

void ServeSession::OnExit(const Exit& exit) {
  if (stopping_ || !failure_.ok()) return;
  failure_ = JudgeExit(exit);
  if (!failure_.ok()) return;
  const std::string next =
      exit.restart_in == absl::InfiniteDuration()
          ? "not started again (--no-restart)"
          : fmt::format("starting it again in {:.1f} s", absl::ToDoubleSeconds(exit.restart_in));
  display_->Message(
      fmt::format("{} ended: {}; {}", Label(exit.child), DescribeExit(exit.wait_status), next));
}

absl::Status ServeSession::JudgeExit(const Exit& exit) const {
  const bool coordinator = exit.child == kCoordinator;
  if (coordinator && WIFEXITED(exit.wait_status) && WEXITSTATUS(exit.wait_status) == kExitUsage) {
    return absl::InvalidArgumentError(LastWords(exit.child));
  }
  const bool no_restart = options_.no_restart;
  std::string when;
  if (phase_ == Phase::kStarting) {
    when = " before it listened";
  } else if (phase_ == Phase::kForming && no_restart) {
    when = " before the service was ready";
  } else if (phase_ == Phase::kForming && exit.failures >= kMaxFailuresAtStart) {
    when = fmt::format(" for the {}th time before the service was ready", exit.failures);
  } else if (phase_ == Phase::kServing && no_restart && coordinator) {
    when = "";
  } else {
    return absl::OkStatus();
  }
  return absl::InternalError(fmt::format("{} ended with {}{}: {}", Label(exit.child),
                                         DescribeExit(exit.wait_status), when,
                                         LastWords(exit.child)));
}

std::string ServeSession::LastWords(int child) const {
  const auto last = last_line_.find(child);
  if (last != last_line_.end()) return last->second;
  return options_.log_dir.empty() ? "see the lines above" : "see its log in " + options_.log_dir;
}

std::string ServeSession::LogFile(const std::string& child) const {
  return options_.log_dir.empty() ? "" : fmt::format("{}/{}.log", options_.log_dir, child);
}

std::string ServeSession::Label(int child) const {
  if (child == kCoordinator) return supervisor_.name(child);
  const auto rank = rank_of_.find(supervisor_.pid(child));
  return rank == rank_of_.end() ? supervisor_.name(child) : fmt::format("rank {}", rank->second);
}

}  // namespace conclave::client
