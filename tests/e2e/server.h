#ifndef CONCLAVE_TESTS_E2E_SERVER_H_
#define CONCLAVE_TESTS_E2E_SERVER_H_

// A whole service for a test: `conclave serve` with real child processes on loopback.
//
//   Server server({.workers = 4, .dp = 2, .tp = 2});
//   ASSERT_TRUE(server.WaitServing()) << server.log();
//   auto stub = v1::GenerationService::NewStub(server.channel());

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::tests {

struct ServerOptions {
  int workers = 1;
  int dp = 0;
  int tp = 0;
  std::string model = "demo/tiny_gpt_oss";
  std::vector<std::string> args;  // added to the command line
};

// Limits of liveness, stretched under sanitizers.
absl::Duration Scaled(absl::Duration duration);

class Server {
 public:
  // Starts the process; does not wait.
  explicit Server(const ServerOptions& options);
  // Stops it and everything it started.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Until the line `serving HOST:PORT`; false after 60 s (stretched) or when the process ended.
  bool WaitServing();
  // Sends SIGTERM (or `signal`) and returns the exit status as waitpid reports it.
  int Stop(int signal);

  pid_t pid() const { return pid_; }
  const std::string& address() const { return address_; }
  // As serve said them; empty: it did not.
  const std::string& internal_address() const { return internal_; }
  const std::string& metrics_address() const { return metrics_; }
  std::shared_ptr<grpc::Channel> channel() const { return channel_; }
  // What it has printed on stderr so far.
  std::string log() const;

  v1::GetClusterResponse Cluster() const;
  // Polls until `condition` holds for the cluster; false after `limit`.
  template <typename Condition>
  bool WaitForCluster(const Condition& condition, absl::Duration limit) const {
    const absl::Time end = absl::Now() + limit;
    while (absl::Now() < end) {
      if (condition(Cluster())) return true;
      absl::SleepFor(absl::Milliseconds(20));
    }
    return false;
  }
  // The coordinator's process; -1 when there is none just now.
  pid_t CoordinatorPid() const;
  // Until `part` is in the log; false after 20 s (stretched).
  bool WaitForLog(const std::string& part) const;
  // What grpc.health.v1 answers on the public port.
  bool Healthy() const;

 private:
  void ReadUntilServing(absl::Time deadline);

  pid_t pid_ = -1;
  int stdout_ = -1;
  std::string log_path_;
  std::string address_;
  std::string internal_;
  std::string metrics_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Path of a binary of this build by its label's path, e.g. "client/conclave".
std::string BinaryPath(const std::string& path);

// Runs a command to its end.
struct CommandResult {
  int exit_code = -1;
  std::string out;
  std::string err;
  int64_t peak_bytes = 0;  // of resident memory
};
CommandResult RunCommand(const std::vector<std::string>& command, const std::string& input = "");

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_E2E_SERVER_H_
