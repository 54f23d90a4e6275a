#ifndef CONCLAVE_TESTS_E2E_OPERATIONS_TESTING_H_
#define CONCLAVE_TESTS_E2E_OPERATIONS_TESTING_H_

// What tests of operations do to a running service.

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "proto/conclave/v1/cluster.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {

// Looks until `condition` holds; false after `limit` (stretched under sanitizers).
bool WaitUntil(const std::function<bool()>& condition, absl::Duration limit);

// Of loopback; free just now.
int FreePort();

// ClusterService.Drain.
grpc::Status Drain(const Server& server, const v1::DrainRequest& request,
                   v1::DrainResponse* response);

// One that serve does not know of.
pid_t StartWorker(const Server& server, const std::vector<std::string>& more);

// Greedy streams, one thread each; each keeps how it ended.
class Streams {
 public:
  Streams(std::shared_ptr<grpc::Channel> channel, const std::vector<Tokens>& prompts,
          int max_tokens);
  ~Streams() { Join(); }

  struct Result {
    Tokens tokens;
    bool started = false;
    bool finished = false;
    grpc::Status status;
  };
  // Until so many have had a token.
  bool WaitStarted(int count);
  const std::vector<Result>& Join();

 private:
  std::vector<Result> results_;
  std::atomic<int> started_{0};
  std::vector<std::thread> threads_;
};

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_E2E_OPERATIONS_TESTING_H_
