#include "worker/agent_stream.h"

#include "base/grpc_status.h"

namespace conclave::worker {

AgentStream::AgentStream(internal::v1::WorkerRegistry::StubInterface& stub)
    : stream_(stub.Join(&context_)) {}

bool AgentStream::Read(internal::v1::CoordinatorMessage* message) { return stream_->Read(message); }

void AgentStream::Send(const internal::v1::WorkerMessage& message) {
  absl::MutexLock lock(&write_mutex_);
  if (broken_) return;
  broken_ = !stream_->Write(message);
}

void AgentStream::Cancel() { context_.TryCancel(); }

absl::Status AgentStream::Finish() {
  absl::MutexLock lock(&write_mutex_);
  broken_ = true;
  return base::FromGrpc(stream_->Finish());
}

}  // namespace conclave::worker
