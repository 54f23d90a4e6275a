#include "coordinator/raw_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {
namespace {

using ::testing::HasSubstr;

grpc::ByteBuffer Bytes(const std::string& text) {
  grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

TEST(ParseRequestTest, RoundTripsAMessage) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("grüße");
  v1::GenerateRequest parsed;
  ASSERT_TRUE(ParseRequest(SerializeResponse(request), &parsed).ok());
  EXPECT_EQ(parsed.prompt().text(), "grüße");
}

TEST(ParseRequestTest, NamesTheFieldWhoseTextIsNotUtf8) {
  v1::GenerateBatchRequest request;
  request.add_requests()->mutable_prompt()->set_text("fine");
  request.add_requests()->mutable_prompt()->set_text("\xC3(");
  v1::GenerateBatchRequest parsed;
  const absl::Status status = ParseRequest(SerializeResponse(request), &parsed);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("requests[1].prompt.text"));
}

TEST(ParseRequestTest, RefusesBytesThatAreNoMessage) {
  v1::GenerateRequest parsed;
  const absl::Status status = ParseRequest(Bytes("\xFF\xFF\xFF"), &parsed);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("conclave.v1.GenerateRequest"));
}

TEST(ParseRequestTest, AnEmptyBufferIsTheEmptyMessage) {
  v1::GenerateRequest parsed;
  EXPECT_TRUE(ParseRequest(Bytes(""), &parsed).ok());
}

TEST(ReplyPartsTest, PartsAreOneMessageOnTheWireAndNotTooLarge) {
  ReplyParts parts(1024);
  for (uint32_t i = 0; i < 3; ++i) {
    v1::GenerateBatchResponse part;
    part.add_results()->set_index(i);
    parts.Append(part);
  }
  const auto bytes = parts.Take();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  v1::GenerateBatchResponse whole;
  ASSERT_TRUE(ParseRequest(*bytes, &whole).ok());
  ASSERT_EQ(whole.results_size(), 3);
  EXPECT_EQ(whole.results(2).index(), 2);
  ReplyParts none(1024);
  ASSERT_TRUE(none.Take().ok());
  ReplyParts large(1024);
  v1::GenerateBatchResponse part;
  part.add_results()->set_text(std::string(600, 'x'));
  large.Append(part);
  large.Append(part);
  EXPECT_EQ(large.Take().status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace conclave::coordinator
