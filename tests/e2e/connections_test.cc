// What becomes of connections: a client that does not read, one that says nothing any more, and one
// that is told to connect anew.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "gmock/gmock.h"
#include "proto/conclave/v1/model.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;

constexpr int kCompletions = 16;
constexpr int kTokens = 200;

// Many times what gRPC's buffers hold.
v1::GenerateRequest LongAnswer() {
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, kTokens);
  request.set_n(kCompletions);
  request.set_logprobs(20);
  return request;
}

// gRPC's own window grows with what it sees the line carry; this one does not.
std::shared_ptr<grpc::Channel> SmallWindow(const std::string& address) {
  grpc::ChannelArguments small;
  small.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 16);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), small);
}

TEST(ConnectionsTest, AClientThatDoesNotReadLosesItsStreamAndAPromptMayBeTooLong) {
  Server server({.args = {"--max-unread-bytes", "50000", "--max-prompt-tokens", "8"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  grpc::ClientContext context;
  const auto stub = v1::GenerationService::NewStub(SmallWindow(server.address()));
  const auto reader = stub->Generate(&context, LongAnswer());
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(30));
  while (server.Cluster().counters().requests_cancelled() < kCompletions && absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  size_t tokens = 0;
  for (v1::GenerateResponse part; reader->Read(&part);) tokens += part.tokens_size();
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_GT(tokens, 0u);
  EXPECT_LT(tokens, size_t{kCompletions} * kTokens);
  const auto longer = GenerateOne(server.channel(), GreedyRequest(Tokens(9, 1), 4));
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr("--max-prompt-tokens 8"));
}

// The most memory that a process has ever held, in bytes.
size_t PeakBytes(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    size_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %zu kB", &kilobytes) == 1) return kilobytes << 10;
  }
  return 0;
}

TEST(ConnectionsTest, ManyClientsThatDoNotReadHoldNoMoreThanTheyMayAndNotForLong) {
  constexpr int kStreams = 40;
  constexpr int kOpen = 16;
  constexpr size_t kUnread = 128 << 10;
  Server server({.args = {"--max-unread-bytes", std::to_string(kUnread), "--max-unread-seconds",
                          "1", "--max-open-calls", std::to_string(kOpen)}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ASSERT_TRUE(GenerateOne(server.channel(), LongAnswer()).ok());
  const size_t before = PeakBytes(server.CoordinatorPid());
  const auto stub = v1::GenerationService::NewStub(SmallWindow(server.address()));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < kStreams; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->Generate(contexts.back().get(), LongAnswer()));
  }
  // Each is cut while its client still takes nothing, and makes room for another.
  uint32_t most_open = 0;
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(60));
  int cut = 0;
  while (cut < kStreams && absl::Now() < end) {
    const v1::GetClusterResponse cluster = server.Cluster();
    most_open = std::max(most_open, cluster.counters().queued() + cluster.counters().running());
    const std::string log = server.log();
    cut = 0;
    for (size_t at = 0; (at = log.find("event=client_takes_nothing", at)) != std::string::npos;) {
      ++cut;
      ++at;
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_EQ(cut, kStreams);
  EXPECT_LE(most_open, uint32_t{kOpen} * kCompletions);
  // What waits, the message that is on its way, and its copy in gRPC.
  const size_t grown = PeakBytes(server.CoordinatorPid()) - before;
  std::printf("%d streams, %d at a time: the coordinator grew by %zu bytes\n", kStreams, kOpen,
              grown);
  // Sanitizers keep what was freed for a while.
  if (std::getenv("CONCLAVE_SANITIZER") == nullptr) {
    EXPECT_LT(grown, kOpen * 4 * kUnread);
  }
  for (const auto& reader : readers) {
    for (v1::GenerateResponse part; reader->Read(&part);) {
    }
    EXPECT_FALSE(reader->Finish().ok());
  }
}

TEST(ConnectionsTest, LimitsOfClientsAreNotThoseOfWorkers) {
  Server server({.args = {"--max-message-bytes", "1024", "--keepalive-seconds", "1"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const v1::GetClusterResponse first = server.Cluster();
  // Silent for longer than a client may be, and for less than it takes to be given up.
  ASSERT_EQ(first.ranks_size(), 1);
  const auto worker = static_cast<pid_t>(first.ranks(0).pid());
  ASSERT_EQ(::kill(worker, SIGSTOP), 0);
  absl::SleepFor(absl::Milliseconds(2700));
  ASSERT_EQ(::kill(worker, SIGCONT), 0);
  // On a connection of its own: the first was idle for a while, too.
  const auto generated = GenerateOne(SmallWindow(server.address()), LongAnswer());
  EXPECT_TRUE(generated.ok()) << generated.status() << server.log();
  // Results of its steps were larger than a client's message may be. Heartbeats tell of the steps.
  EXPECT_TRUE(server.WaitForCluster(
      [](const v1::GetClusterResponse& cluster) {
        return cluster.ranks_size() == 1 && cluster.ranks(0).mxfp4_launches() > 0;
      },
      Scaled(absl::Seconds(10))));
  EXPECT_EQ(server.Cluster().epoch(), first.epoch());
  v1::TokenizeRequest large;
  large.set_text(std::string(1024, 'x'));
  v1::TokenizeResponse ids;
  grpc::ClientContext context;
  EXPECT_EQ(
      v1::ModelService::NewStub(server.channel())->Tokenize(&context, large, &ids).error_code(),
      grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(ConnectionsTest, AnOldConnectionIsLeftAndItsStreamGoesOnToItsEnd) {
  Server server({.args = {"--max-connection-age", "1"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const auto channel = SmallWindow(server.address());
  grpc::ClientContext context;
  const auto reader = v1::GenerationService::NewStub(channel)->Generate(&context, LongAnswer());
  v1::GenerateResponse part;
  ASSERT_TRUE(reader->Read(&part));
  int tokens = part.tokens_size();
  // The rest waits, unread, for longer than the connection may be used for new calls.
  EXPECT_TRUE(channel->WaitForStateChange(
      GRPC_CHANNEL_READY, absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(20)))));
  grpc::ClientContext second;
  v1::GetModelResponse model;
  EXPECT_TRUE(v1::ModelService::NewStub(channel)->GetModel(&second, {}, &model).ok());
  while (reader->Read(&part)) tokens += part.tokens_size();
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(tokens, kCompletions * kTokens);
}

// Connected to 127.0.0.1; -1: it is not.
int ConnectTo(const std::string& address) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) return -1;
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return ::connect(socket, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0 ? socket : -1;
}

// Whether the other side has closed the connection by then. What it says is not listened to.
bool IsClosed(int socket, absl::Time end) {
  while (absl::Now() < end) {
    pollfd ready = {.fd = socket, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 100) <= 0) continue;
    char bytes[4096];
    if (::read(socket, bytes, sizeof(bytes)) <= 0) return true;
  }
  return false;
}

TEST(ConnectionsTest, AClientThatSaysNothingAnyMoreIsLetGo) {
  Server server({.args = {"--keepalive-seconds", "1"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ASSERT_TRUE(server.channel()->WaitForConnected(
      absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(10)))));
  const int socket = ConnectTo(server.address());
  ASSERT_GE(socket, 0);
  // How HTTP/2 begins: the preface and empty settings (RFC 9113, 3.4 and 6.5).
  constexpr std::string_view kBegin("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
  ASSERT_EQ(::write(socket, kBegin.data(), kBegin.size()), static_cast<ssize_t>(kBegin.size()));
  EXPECT_TRUE(IsClosed(socket, absl::Now() + Scaled(absl::Seconds(10))));
  ::close(socket);
  // One that answers stays.
  absl::SleepFor(absl::Seconds(2));
  EXPECT_EQ(server.channel()->GetState(false), GRPC_CHANNEL_READY);
}

}  // namespace
}  // namespace conclave::tests
