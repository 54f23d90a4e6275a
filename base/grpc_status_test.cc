#include "base/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

#include "base/retry_delay.h"

namespace conclave::base {
namespace {

TEST(GrpcStatus, CodeAndMessageSurviveTheWire) {
  const absl::Status status = absl::InvalidArgumentError("n is 99: at most 32");
  const grpc::Status wire = ToGrpc(status);
  EXPECT_EQ(wire.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(wire.error_details().empty());
  EXPECT_EQ(FromGrpc(wire), status);
  EXPECT_TRUE(FromGrpc(ToGrpc(absl::OkStatus())).ok());
}

// The bytes any other client decodes: google.rpc.Status{code: 8, message: "full", details: [Any{
// type_url, value: RetryInfo{retry_delay: Duration{seconds: 2, nanos: 500000000}}}]}.
TEST(GrpcStatus, TheRetryDelayIsARetryInfoInTheDetails) {
  const grpc::Status wire =
      ToGrpc(WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Milliseconds(2500)));
  EXPECT_EQ(wire.error_details(),
            "\x1a\x36"
            "\x0a\x28type.googleapis.com/google.rpc.RetryInfo"
            "\x12\x0a\x0a\x08\x08\x02\x10\x80\xca\xb5\xee\x01"
            "\x08\x08\x12\x04"
            "full");
  EXPECT_EQ(RetryDelay(FromGrpc(wire)), absl::Milliseconds(2500));
}

TEST(GrpcStatus, ALongMessageIsCutBetweenCharacters) {
  std::string message(999, 'a');
  message.append("\u00e4").append(1 << 20, 'b');
  absl::Status status = absl::InvalidArgumentError(message);
  status = WithRetryDelay(status, absl::Seconds(1));
  const grpc::Status sent = ToGrpc(status);
  EXPECT_EQ(sent.error_message(), message.substr(0, 999).append("..."));
  EXPECT_LT(sent.error_details().size(), 1200u);
  EXPECT_TRUE(RetryDelay(FromGrpc(sent)).has_value());
  EXPECT_EQ(ToGrpc(absl::InternalError(std::string(1000, 'a'))).error_message().size(), 1000u);
}

TEST(GrpcStatus, DetailsThatMakeNoSenseAreLeftOut) {
  for (const std::string details :
       {"\x1a\xff", "\x1a\x03\x0a\x7f\x01", "text", "\x1a\x02\x08\x01"}) {
    const absl::Status status =
        FromGrpc(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", details));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(status.message(), "full");
    EXPECT_FALSE(RetryDelay(status).has_value());
  }
}

}  // namespace
}  // namespace conclave::base
