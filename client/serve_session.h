#ifndef CONCLAVE_CLIENT_SERVE_SESSION_H_
#define CONCLAVE_CLIENT_SERVE_SESSION_H_

// One run of `conclave serve`, from the first child to the last.
//
//   starting   the coordinator runs and has not said where it listens
//   forming    workers run; requests are not accepted yet
//   serving    the line `serving HOST:PORT` is out; losses are repaired in the background

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "client/interrupt.h"
#include "client/serve_display.h"
#include "client/serve_monitor.h"
#include "client/serve_options.h"
#include "client/supervisor.h"

namespace conclave::client {

// On one thread, which must be the process's main one (Spawn says why).
class ServeSession : private Supervisor::Events {
 public:
  // `options` are complete and checked.
  ServeSession(const ServeOptions& options, ServeDisplay* display);

  // Returns OK when it was stopped by SIGTERM (which drains first), SIGINT or SIGHUP, an error when
  // it cannot go on, INVALID_ARGUMENT when that is because of flags that only the coordinator can
  // judge. Either way no child is left.
  absl::Status Run();

 private:
  enum class Phase { kStarting, kForming, kServing };

  void OnLine(int child, bool is_stdout, const std::string& line) override;
  void OnExit(const Exit& exit) override;

  void ShowHeld();
  // SIGTERM to the coordinator; until it has drained, or a second signal comes.
  void Drain();
  absl::Status StartCoordinator();
  // When the coordinator has said both of its addresses.
  absl::Status StartWorkers();
  void OnSnapshot(ServeSnapshot snapshot);
  // Why the service cannot go on after a child ended; OK when it can. INVALID_ARGUMENT when it is
  // the flags.
  absl::Status JudgeExit(const Exit& exit) const;
  // The last line of a child's stderr, or where to look for it.
  std::string LastWords(int child) const;
  std::string LogFile(const std::string& child) const;
  // "coordinator", "rank 2", or "worker 2" while it has no rank.
  std::string Label(int child) const;

  const ServeOptions& options_;
  ServeDisplay* display_;
  // Before all that starts threads.
  SignalFd stop_signals_;
  SignalFd child_signals_;
  Supervisor supervisor_;
  std::unique_ptr<ServeMonitor> monitor_;  // from kForming on

  Phase phase_ = Phase::kStarting;
  bool stopping_ = false;
  absl::Status failure_;                  // not OK: the run ends
  bool serving_ = false;                  // what the last snapshot said
  CoordinatorAddresses bound_;            // as the coordinator said
  std::map<int, std::string> last_line_;  // by child, of stderr
  // The coordinator's last line while it starts: shown with the next one, or as the error when it
  // was the last of all.
  std::optional<std::string> held_;
  std::map<pid_t, int> rank_of_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_SESSION_H_
