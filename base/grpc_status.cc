#include "base/grpc_status.h"

#include <google/protobuf/unknown_field_set.h>

#include <string>

#include "absl/strings/cord.h"

namespace conclave::base {
namespace {

using google::protobuf::UnknownFieldSet;

// Fields of google.rpc.Status and of the google.protobuf.Any in its details.
constexpr int kCode = 1;
constexpr int kMessage = 2;
constexpr int kDetails = 3;
constexpr int kTypeUrl = 1;
constexpr int kValue = 2;

// Trailing metadata has room for about 8 KiB, of which this is a part, twice with details.
constexpr size_t kMaxMessageBytes = 1000;

// At most so much, cut between characters.
std::string ShortMessage(const absl::Status& status) {
  std::string message(status.message());
  if (message.size() <= kMaxMessageBytes) return message;
  size_t end = kMaxMessageBytes;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;
  message.resize(end);
  return message + "...";
}

// The payloads as a serialized google.rpc.Status; empty when there are none.
std::string Details(const absl::Status& status) {
  UnknownFieldSet rpc_status;
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    UnknownFieldSet any;
    any.AddLengthDelimited(kTypeUrl, std::string(type_url));
    any.AddLengthDelimited(kValue, std::string(payload));
    std::string bytes;
    any.SerializeToString(&bytes);
    rpc_status.AddLengthDelimited(kDetails, bytes);
  });
  if (rpc_status.empty()) return "";
  rpc_status.AddVarint(kCode, static_cast<uint64_t>(status.code()));
  rpc_status.AddLengthDelimited(kMessage, ShortMessage(status));
  std::string bytes;
  rpc_status.SerializeToString(&bytes);
  return bytes;
}

std::string Text(const UnknownFieldSet& fields, int number) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const auto& field = fields.field(i);
    if (field.number() == number && field.type() == field.TYPE_LENGTH_DELIMITED) {
      return field.length_delimited();
    }
  }
  return "";
}

// What does not parse is left out.
void AddPayloads(const std::string& details, absl::Status& status) {
  UnknownFieldSet rpc_status;
  if (!rpc_status.ParseFromString(details)) return;
  for (int i = 0; i < rpc_status.field_count(); ++i) {
    const auto& field = rpc_status.field(i);
    if (field.number() != kDetails || field.type() != field.TYPE_LENGTH_DELIMITED) continue;
    UnknownFieldSet any;
    if (!any.ParseFromString(field.length_delimited())) continue;
    const std::string url = Text(any, kTypeUrl);
    if (!url.empty()) status.SetPayload(url, absl::Cord(Text(any, kValue)));
  }
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), ShortMessage(status), Details(status)};
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status converted(static_cast<absl::StatusCode>(status.error_code()),
                         status.error_message());
  AddPayloads(status.error_details(), converted);
  return converted;
}

}  // namespace conclave::base
