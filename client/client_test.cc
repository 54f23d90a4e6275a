#include "client/client.h"

#include <atomic>
#include <string>
#include <vector>

#include "client/fake_server.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

v1::GenerateResponse Part(std::vector<uint32_t> tokens, const std::string& text, bool last) {
  v1::GenerateResponse part;
  for (const uint32_t token : tokens) part.add_tokens(token);
  part.set_text(text);
  if (last) part.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
  return part;
}

TEST(ClientTest, PartsOfAStreamArriveInOrder) {
  FakeServer server;
  server.answers.stream = {Part({1, 2}, "a", false), Part({3}, "b", true)};
  Client client(server.address());
  std::string text;
  const auto finish =
      client.Generate({}, [&](const v1::GenerateResponse& part) { text += part.text(); });
  ASSERT_TRUE(finish.ok()) << finish.status();
  EXPECT_EQ(finish->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(text, "ab");
}

TEST(ClientTest, TheServersCodeAndMessageArrive) {
  FakeServer server;
  server.answers.status = {grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full: 3 wait"};
  Client client(server.address());
  const auto cluster = client.GetCluster();
  EXPECT_EQ(cluster.status(), absl::ResourceExhaustedError("queue full: 3 wait"));
}

TEST(ClientTest, AStreamWithoutAFinishIsAnError) {
  FakeServer server;
  server.answers.stream = {Part({1}, "a", false)};
  Client client(server.address());
  const auto finish = client.Generate({}, [](const v1::GenerateResponse&) {});
  EXPECT_EQ(finish.status().code(), absl::StatusCode::kInternal);
}

TEST(ClientTest, AnUnavailableServerIsAskedAgainBeforeTheFirstToken) {
  FakeServer server;
  std::atomic<int> asked = 0;
  server.answers.generate = [&](grpc::ServerContext&, const v1::GenerateRequest&,
                                grpc::ServerWriter<v1::GenerateResponse>& writer) {
    if (asked.fetch_add(1) < 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
    writer.Write(Part({1, 2}, "a", true));
    return grpc::Status::OK;
  };
  std::string text;
  const auto take = [&](const v1::GenerateResponse& part) { text += part.text(); };
  EXPECT_TRUE(Client(server.address()).Generate({}, take).ok());
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(text, "a");
  asked = 0;
  EXPECT_TRUE(
      absl::IsUnavailable(Client(server.address(), /*retry=*/false).Generate({}, take).status()));
  EXPECT_EQ(asked, 1);
}

// It would be another answer.
TEST(ClientTest, AStreamThatHasBegunIsNotAskedForAgain) {
  FakeServer server;
  std::atomic<int> asked = 0;
  server.answers.generate = [&](grpc::ServerContext&, const v1::GenerateRequest&,
                                grpc::ServerWriter<v1::GenerateResponse>& writer) {
    ++asked;
    writer.Write(Part({1}, "a", false));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "a worker was lost");
  };
  Client client(server.address());
  std::string text;
  const auto finish =
      client.Generate({}, [&](const v1::GenerateResponse& part) { text += part.text(); });
  EXPECT_TRUE(absl::IsUnavailable(finish.status()));
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(text, "a");
}

TEST(ClientTest, CancellationEndsARunningCall) {
  FakeServer server;
  server.answers.stream = {Part({1}, "a", false)};
  server.answers.hang = true;
  Client client(server.address());
  Cancellation cancellation;
  const auto finish =
      client.Generate({}, [&](const v1::GenerateResponse&) { cancellation.Cancel(); },
                      {.cancellation = &cancellation});
  EXPECT_EQ(finish.status().code(), absl::StatusCode::kCancelled);
}

TEST(ClientTest, CancellationEndsACallMadeLater) {
  FakeServer server;
  server.answers.hang = true;
  Client client(server.address());
  Cancellation cancellation;
  cancellation.Cancel();
  const auto finish =
      client.Generate({}, [](const v1::GenerateResponse&) {}, {.cancellation = &cancellation});
  EXPECT_EQ(finish.status().code(), absl::StatusCode::kCancelled);
}

TEST(ClientTest, ATimeoutEndsACall) {
  FakeServer server;
  server.answers.hang = true;
  Client client(server.address());
  const auto finish =
      client.Generate({}, [](const v1::GenerateResponse&) {}, {.timeout = absl::Milliseconds(50)});
  EXPECT_EQ(finish.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, ServingFollowsTheHealthService) {
  FakeServer server;
  Client client(server.address());
  EXPECT_EQ(*client.Serving(), true);
  server.SetServing(false);
  EXPECT_EQ(*client.Serving(), false);
}

}  // namespace
}  // namespace conclave::client
