#include "base/retry_delay.h"

#include <google/protobuf/unknown_field_set.h>

#include <string>

#include "absl/strings/cord.h"

namespace conclave::base {
namespace {

using google::protobuf::UnknownFieldSet;

constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

// Fields of google.rpc.RetryInfo and of the google.protobuf.Duration in it.
constexpr int kDelay = 1;
constexpr int kSeconds = 1;
constexpr int kNanos = 2;

}  // namespace

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  absl::Duration rest;
  UnknownFieldSet duration;
  duration.AddVarint(kSeconds, absl::IDivDuration(delay, absl::Seconds(1), &rest));
  duration.AddVarint(kNanos, absl::ToInt64Nanoseconds(rest));
  std::string bytes;
  duration.SerializeToString(&bytes);
  UnknownFieldSet info;
  info.AddLengthDelimited(kDelay, bytes);
  info.SerializeToString(&bytes);
  status.SetPayload(kRetryInfo, absl::Cord(bytes));
  return status;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfo);
  UnknownFieldSet info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) return std::nullopt;
  absl::Duration delay;
  for (int i = 0; i < info.field_count(); ++i) {
    const auto& field = info.field(i);
    UnknownFieldSet duration;
    if (field.number() != kDelay || field.type() != field.TYPE_LENGTH_DELIMITED ||
        !duration.ParseFromString(field.length_delimited())) {
      continue;
    }
    for (int j = 0; j < duration.field_count(); ++j) {
      const auto& part = duration.field(j);
      if (part.type() != part.TYPE_VARINT) continue;
      const auto value = static_cast<int64_t>(part.varint());
      if (part.number() == kSeconds) delay += absl::Seconds(value);
      if (part.number() == kNanos) delay += absl::Nanoseconds(value);
    }
  }
  return delay;
}

}  // namespace conclave::base
