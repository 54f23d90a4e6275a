#include "worker/health_listener.h"

#include <grpcpp/create_channel.h>

#include <atomic>

#include "gtest/gtest.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"

namespace conclave::worker {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

TEST(HealthListener, ServesWhileAliveAndTellsWatchersWhenNot) {
  std::atomic<bool> alive = true;
  auto listener = HealthListener::Start(
      "127.0.0.1:0", [&] { return alive.load(); }, absl::Milliseconds(5));
  ASSERT_TRUE(listener.ok()) << listener.status();
  auto stub = Health::NewStub(grpc::CreateChannel(
      "127.0.0.1:" + std::to_string((*listener)->port()), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto watch = stub->Watch(&context, HealthCheckRequest());
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  alive = false;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  for (const char* service : {"liveness", "readiness"}) {
    HealthCheckRequest named;
    named.set_service(service);
    grpc::ClientContext check;
    EXPECT_TRUE(stub->Check(&check, named, &response).ok()) << service;
    EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING) << service;
  }
  alive = true;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  context.TryCancel();
}

TEST(HealthListener, APortInUseIsAnError) {
  const auto yes = [] { return true; };
  auto first = HealthListener::Start("127.0.0.1:0", yes, absl::Seconds(1));
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  EXPECT_EQ(HealthListener::Start(taken, yes, absl::Seconds(1)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(HealthListener::Start("nonsense", yes, absl::Seconds(1)).ok());
}

}  // namespace
}  // namespace conclave::worker
