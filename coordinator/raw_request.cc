#include "coordinator/raw_request.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"

namespace conclave::coordinator {
namespace {

namespace pb = google::protobuf;

bool ParseFrom(const grpc::ByteBuffer& bytes, pb::Message* message) {
  grpc::ByteBuffer copy = bytes;  // counts references; the reader wants a mutable one
  grpc::ProtoBufferReader reader(&copy);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

void StringsToBytes(pb::DescriptorProto* type) {
  for (pb::FieldDescriptorProto& field : *type->mutable_field()) {
    if (field.type() == pb::FieldDescriptorProto::TYPE_STRING) {
      field.set_type(pb::FieldDescriptorProto::TYPE_BYTES);
    }
  }
  for (pb::DescriptorProto& nested : *type->mutable_nested_type()) StringsToBytes(&nested);
}

// Adds `file` and what it imports to `pool`, every string field turned into bytes: the same wire
// format without the check of UTF-8.
void AddLenient(const pb::FileDescriptor* file, pb::DescriptorPool* pool,
                std::set<std::string>* added) {
  if (!added->insert(file->name()).second) return;
  for (int i = 0; i < file->dependency_count(); ++i) {
    AddLenient(file->dependency(i), pool, added);
  }
  pb::FileDescriptorProto copy;
  file->CopyTo(&copy);
  for (pb::DescriptorProto& type : *copy.mutable_message_type()) StringsToBytes(&type);
  pool->BuildFile(copy);
}

std::string Path(const std::string& prefix, const pb::FieldDescriptor* field, int index) {
  const std::string dot = prefix.empty() ? "" : ".";
  return field->is_repeated() ? fmt::format("{}{}{}[{}]", prefix, dot, field->name(), index)
                              : fmt::format("{}{}{}", prefix, dot, field->name());
}

std::optional<std::string> FindBadText(const pb::Message& message, const std::string& prefix) {
  const pb::Reflection* reflection = message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const pb::FieldDescriptor* field : fields) {
    const bool is_message = field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE;
    if (!is_message && field->type() != pb::FieldDescriptor::TYPE_BYTES) continue;
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string path = Path(prefix, field, i);
      if (is_message) {
        const pb::Message& nested = field->is_repeated()
                                        ? reflection->GetRepeatedMessage(message, field, i)
                                        : reflection->GetMessage(message, field);
        if (auto bad = FindBadText(nested, path)) return bad;
        continue;
      }
      std::string scratch;
      const std::string& text =
          field->is_repeated() ? reflection->GetRepeatedStringReference(message, field, i, &scratch)
                               : reflection->GetStringReference(message, field, &scratch);
      if (!base::ValidateUtf8(text).ok()) return path;
    }
  }
  return std::nullopt;
}

// Only on the way to an error: parses again, leniently, to say what is wrong.
absl::Status Explain(const grpc::ByteBuffer& bytes, const pb::Descriptor* descriptor) {
  pb::DescriptorPool pool;
  std::set<std::string> added;
  AddLenient(descriptor->file(), &pool, &added);
  const pb::Descriptor* lenient = pool.FindMessageTypeByName(descriptor->full_name());
  if (lenient != nullptr) {
    pb::DynamicMessageFactory factory;
    const std::unique_ptr<pb::Message> message(factory.GetPrototype(lenient)->New());
    if (ParseFrom(bytes, message.get())) {
      if (auto path = FindBadText(*message, "")) {
        return absl::InvalidArgumentError(fmt::format("{} is not valid UTF-8", *path));
      }
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("the request is not a {} message", descriptor->full_name()));
}

// At most 2 GiB, which is protobuf's own limit.
grpc::Slice Serialize(const pb::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  const bool whole =
      message.SerializeToArray(const_cast<uint8_t*>(slice.begin()), static_cast<int>(slice.size()));
  CONCLAVE_CHECK(whole);
  return slice;
}

}  // namespace

absl::Status ParseRequest(const grpc::ByteBuffer& bytes, pb::Message* message) {
  if (ParseFrom(bytes, message)) return absl::OkStatus();
  return Explain(bytes, message->GetDescriptor());
}

grpc::ByteBuffer SerializeResponse(const pb::Message& message) {
  const grpc::Slice slice = Serialize(message);
  return grpc::ByteBuffer(&slice, 1);
}

void ReplyParts::Append(const pb::Message& part) {
  bytes_ += part.ByteSizeLong();
  if (bytes_ <= max_bytes_) {
    slices_.push_back(Serialize(part));
  } else {
    slices_.clear();
  }
}

absl::StatusOr<grpc::ByteBuffer> ReplyParts::Take() {
  if (bytes_ > max_bytes_) {
    return ReplyTooLarge(fmt::format("the reply has {} bytes", bytes_),
                         static_cast<int>(max_bytes_));
  }
  return grpc::ByteBuffer(slices_.data(), slices_.size());
}

absl::Status ReplyTooLarge(std::string_view what, int max_bytes) {
  return absl::ResourceExhaustedError(fmt::format(
      "{}: more than {}, the most there may be (--max-reply-bytes); ask for less in one call", what,
      max_bytes));
}

}  // namespace conclave::coordinator
