#include "tests/e2e/operations_testing.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "absl/time/clock.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"

namespace conclave::tests {

bool WaitUntil(const std::function<bool()>& condition, absl::Duration limit) {
  const absl::Time end = absl::Now() + Scaled(limit);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  socklen_t size = sizeof(address);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
}

grpc::Status Drain(const Server& server, const v1::DrainRequest& request,
                   v1::DrainResponse* response) {
  grpc::ClientContext context;
  return v1::ClusterService::NewStub(server.channel())->Drain(&context, request, response);
}

pid_t StartWorker(const Server& server, const std::vector<std::string>& more) {
  std::vector<std::string> command = {BinaryPath("worker/conclave-worker"),
                                      "--coordinator",
                                      server.internal_address(),
                                      "--advertise-address",
                                      "127.0.0.1",
                                      "--interface",
                                      "lo",
                                      "--threads",
                                      "1"};
  command.insert(command.end(), more.begin(), more.end());
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  return pid;
}

Streams::Streams(std::shared_ptr<grpc::Channel> channel, const std::vector<Tokens>& prompts,
                 int max_tokens)
    : results_(prompts.size()) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    threads_.emplace_back([this, channel, prompt = prompts[i], max_tokens, i] {
      grpc::ClientContext context;
      auto reader = v1::GenerationService::NewStub(channel)->Generate(
          &context, GreedyRequest(prompt, max_tokens));
      v1::GenerateResponse part;
      while (reader->Read(&part)) {
        EXPECT_FALSE(results_[i].finished) << "a message after the last one";
        results_[i].tokens.insert(results_[i].tokens.end(), part.tokens().begin(),
                                  part.tokens().end());
        results_[i].finished = part.has_finish();
        started_.fetch_add(results_[i].started ? 0 : 1);
        results_[i].started = true;
      }
      results_[i].status = reader->Finish();
    });
  }
}

bool Streams::WaitStarted(int count) {
  return WaitUntil([&] { return started_.load() >= count; }, absl::Seconds(30));
}

const std::vector<Streams::Result>& Streams::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  return results_;
}

}  // namespace conclave::tests
