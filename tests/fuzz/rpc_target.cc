#include <grpcpp/generic/generic_stub.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/check.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "proto/conclave/v1/classification.pb.h"
#include "proto/conclave/v1/cluster.pb.h"
#include "proto/conclave/v1/generation.pb.h"
#include "proto/conclave/v1/model.pb.h"
#include "tests/fuzz/live_coordinator.h"
#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

using grpc::ByteBuffer;
using grpc::StatusCode;

// What a user's bytes may lead to; anything else (INTERNAL, UNKNOWN, a call that never ends) is a
// finding.
bool IsPublicCode(StatusCode code) {
  return code == StatusCode::OK || code == StatusCode::INVALID_ARGUMENT ||
         code == StatusCode::FAILED_PRECONDITION || code == StatusCode::RESOURCE_EXHAUSTED;
}

// Workers and coordinator come from one build: gRPC's own parser may answer for it.
bool IsInternalCode(StatusCode code) {
  return IsPublicCode(code) || code == StatusCode::INTERNAL || code == StatusCode::UNIMPLEMENTED ||
         code == StatusCode::ABORTED || code == StatusCode::DEADLINE_EXCEEDED ||
         code == StatusCode::CANCELLED;
}

ByteBuffer ToBuffer(std::string_view bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size());
  return ByteBuffer(&slice, 1);
}

std::string ToString(const ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return "";
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

struct Reply {
  grpc::Status status;
  std::vector<std::string> messages;
};

// One call of any method, unary or not, by its name and raw bytes. Reads while it writes: neither
// side may have to wait for the other to buffer.
class RawCall {
 public:
  RawCall(const char* method, std::vector<std::string_view> requests, absl::Duration patience)
      : requests_(std::move(requests)), stub_(LiveCoordinator::Get().channel()) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + patience));
    call_ = stub_.PrepareCall(&context_, method, &queue_);
  }

  Reply Run() {
    call_->StartCall(Expect(kStarted));
    while (pending_ > 0) Handle();
    queue_.Shutdown();
    return std::move(reply_);
  }

 private:
  enum Event : intptr_t { kStarted, kWritten, kAllWritten, kRead, kFinished };

  void* Expect(Event event) {
    ++pending_;
    return reinterpret_cast<void*>(event);
  }

  void Handle() {
    void* tag = nullptr;
    bool ok = false;
    CONCLAVE_CHECK(queue_.Next(&tag, &ok));
    --pending_;
    switch (static_cast<Event>(reinterpret_cast<intptr_t>(tag))) {
      case kStarted:
        call_->Read(&incoming_, Expect(kRead));
        if (ok) Write();
        break;
      case kWritten:
        if (ok) Write();
        break;
      case kRead:
        if (!ok) {
          call_->Finish(&reply_.status, Expect(kFinished));
          break;
        }
        reply_.messages.push_back(ToString(incoming_));
        incoming_.Clear();
        call_->Read(&incoming_, Expect(kRead));
        break;
      case kAllWritten:
      case kFinished:
        break;
    }
  }

  void Write() {
    if (written_ == requests_.size()) return call_->WritesDone(Expect(kAllWritten));
    call_->Write(ToBuffer(requests_[written_++]), Expect(kWritten));
  }

  const std::vector<std::string_view> requests_;
  size_t written_ = 0;
  int pending_ = 0;  // events to come
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  ByteBuffer incoming_;
  Reply reply_;
};

Reply Call(const char* method, const std::vector<std::string_view>& requests,
           absl::Duration patience) {
  return RawCall(method, requests, patience).Run();
}

const absl::Duration kPatience = absl::Seconds(20) * base::TimeScale();

// Says what came before it ends the process.
void CheckCode(const grpc::Status& status, bool expected) {
  if (expected) return;
  std::fprintf(stderr, "code %d: %s\n", static_cast<int>(status.error_code()),
               status.error_message().c_str());
  CONCLAVE_CHECK(expected);
}

template <typename Response>
void CheckUnary(const Reply& reply) {
  CheckCode(reply.status, IsPublicCode(reply.status.error_code()));
  if (!reply.status.ok()) {
    CONCLAVE_CHECK(!reply.status.error_message().empty());
    return;
  }
  CONCLAVE_CHECK(reply.messages.size() == 1);
  Response response;
  CONCLAVE_CHECK(response.ParseFromString(reply.messages[0]));
}

// Guarantee of every stream: each token once, `finish` on the last response and only there.
void CheckStream(const Reply& reply, bool may_be_lost) {
  const StatusCode code = reply.status.error_code();
  CheckCode(reply.status, IsPublicCode(code) || (may_be_lost && code == StatusCode::UNAVAILABLE));
  uint32_t tokens = 0;
  for (size_t i = 0; i < reply.messages.size(); ++i) {
    v1::GenerateResponse response;
    CONCLAVE_CHECK(response.ParseFromString(reply.messages[i]));
    tokens += static_cast<uint32_t>(response.tokens_size());
    const bool last = i + 1 == reply.messages.size();
    CONCLAVE_CHECK(response.has_finish() == (last && reply.status.ok()));
    if (response.has_finish()) {
      CONCLAVE_CHECK(response.finish().usage().completion_tokens() == tokens);
    }
  }
  if (reply.status.ok()) CONCLAVE_CHECK(!reply.messages.empty());
}

template <typename Response>
void Unary(const char* method, std::string_view body) {
  CheckUnary<Response>(Call(method, {body}, kPatience));
}

constexpr char kGenerate[] = "/conclave.v1.GenerationService/Generate";

void Generate(uint8_t, std::string_view body) {
  CheckStream(Call(kGenerate, {body}, kPatience), false);
}
// One `finish`, on the last response.
void Chat(uint8_t, std::string_view body) {
  const Reply reply = Call("/conclave.v1.GenerationService/Chat", {body}, kPatience);
  CheckCode(reply.status, IsPublicCode(reply.status.error_code()));
  for (size_t i = 0; i < reply.messages.size(); ++i) {
    v1::ChatResponse response;
    CONCLAVE_CHECK(response.ParseFromString(reply.messages[i]));
    const bool last = i + 1 == reply.messages.size();
    CONCLAVE_CHECK(response.has_finish() == (last && reply.status.ok()));
  }
  if (reply.status.ok()) CONCLAVE_CHECK(!reply.messages.empty());
}
void GenerateBatch(uint8_t, std::string_view body) {
  Unary<v1::GenerateBatchResponse>("/conclave.v1.GenerationService/GenerateBatch", body);
}
void ClassifySequence(uint8_t, std::string_view body) {
  Unary<v1::ClassifySequenceResponse>("/conclave.v1.ClassificationService/ClassifySequence", body);
}
void ClassifyTokens(uint8_t, std::string_view body) {
  Unary<v1::ClassifyTokensResponse>("/conclave.v1.ClassificationService/ClassifyTokens", body);
}
void ScoreLabels(uint8_t, std::string_view body) {
  Unary<v1::ScoreLabelsResponse>("/conclave.v1.ClassificationService/ScoreLabels", body);
}
void GetModel(uint8_t, std::string_view body) {
  Unary<v1::GetModelResponse>("/conclave.v1.ModelService/GetModel", body);
}
void Tokenize(uint8_t, std::string_view body) {
  Unary<v1::TokenizeResponse>("/conclave.v1.ModelService/Tokenize", body);
}
void Detokenize(uint8_t, std::string_view body) {
  Unary<v1::DetokenizeResponse>("/conclave.v1.ModelService/Detokenize", body);
}
void GetCluster(uint8_t, std::string_view body) {
  Unary<v1::GetClusterResponse>("/conclave.v1.ClusterService/GetCluster", body);
}

void Rebalance(uint8_t, std::string_view body) {
  Unary<v1::RebalanceResponse>("/conclave.v1.ClusterService/Rebalance", body);
}

// The service is idle, so the drain ends at once; it is always undone.
void Drain(uint8_t, std::string_view body) {
  constexpr char kDrain[] = "/conclave.v1.ClusterService/Drain";
  Unary<v1::DrainResponse>(kDrain, body);
  v1::DrainRequest resume;
  resume.set_resume(true);
  const grpc::Status status = Call(kDrain, {resume.SerializeAsString()}, kPatience).status;
  CheckCode(status, status.ok());
}

void Put(uint8_t, std::string_view body) {
  const Reply reply = Call("/conclave.internal.v1.WorkerRegistry/Put", {body}, kPatience);
  CheckCode(reply.status, IsInternalCode(reply.status.error_code()));
}
// Waits for its value by design, so not for long.
void Get(uint8_t, std::string_view body) {
  const Reply reply =
      Call("/conclave.internal.v1.WorkerRegistry/Get", {body}, absl::Milliseconds(2));
  CheckCode(reply.status, IsInternalCode(reply.status.error_code()));
}

// A stranger's stream: messages with two bytes of length before each. Option 1: Register first.
void Join(uint8_t options, std::string_view body) {
  internal::v1::WorkerMessage hello;
  hello.mutable_register_()->set_protocol_version(internal::v1::PROTOCOL_VERSION_CURRENT);
  hello.mutable_register_()->set_device("cpu");
  const std::string hello_bytes = hello.SerializeAsString();
  std::vector<std::string_view> messages;
  if ((options & 1) != 0) messages.push_back(hello_bytes);
  while (body.size() >= 2 && messages.size() < 16) {
    const size_t length = static_cast<uint8_t>(body[0]) | static_cast<uint8_t>(body[1]) << 8;
    messages.push_back(body.substr(2, length));
    body.remove_prefix(std::min(body.size(), 2 + length));
  }
  const Reply reply = Call("/conclave.internal.v1.WorkerRegistry/Join", messages, kPatience);
  CheckCode(reply.status, IsInternalCode(reply.status.error_code()));
}

// The group's own worker says something wrong while a request runs: the request may be lost, the
// group not. Option 1: in the current epoch and step.
void MemberSays(uint8_t options, std::string_view body) {
  internal::v1::WorkerMessage message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) return;
  const auto said =
      LiveCoordinator::Get().worker().SayBeforeNextAnswer(std::move(message), (options & 1) != 0);
  v1::GenerateRequest request;
  request.mutable_prompt()->mutable_tokens()->add_ids(7);
  request.mutable_stop()->set_max_tokens(4);
  request.mutable_stop()->set_ignore_eos(true);
  const std::string bytes = request.SerializeAsString();
  CheckStream(Call(kGenerate, {bytes}, kPatience), true);
  // Else the answer after a wrong one that passed would end the next call's epoch.
  CONCLAVE_CHECK(said->WaitForNotificationWithTimeout(kPatience));
}

constexpr void (*kMethods[])(uint8_t options, std::string_view body) = {
    Generate,
    GenerateBatch,
    ClassifySequence,
    ClassifyTokens,
    GetModel,
    Tokenize,
    Detokenize,
    GetCluster,
    Put,
    Get,
    Join,
    MemberSays,
    Rebalance,
    Chat,
    ScoreLabels,
    Drain,
};

}  // namespace

int FuzzRpc(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  LiveCoordinator::Get().WaitServing();
  const std::string_view body(reinterpret_cast<const char*>(data) + 2, size - 2);
  kMethods[data[0] % std::size(kMethods)](data[1], body);
  LiveCoordinator::Get().WaitServing();
  return 0;
}

}  // namespace conclave::tests
