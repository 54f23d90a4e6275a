#include "worker/coordinator_rendezvous.h"

#include <fmt/format.h>

#include <utility>

#include "absl/time/clock.h"
#include "base/grpc_status.h"
#include "base/status_macros.h"

namespace conclave::worker {
namespace {

constexpr absl::Duration kPutTimeout = absl::Seconds(30);

absl::Status EpochEnded() { return absl::AbortedError("the epoch has ended"); }

}  // namespace

CoordinatorRendezvous::CoordinatorRendezvous(
    std::shared_ptr<internal::v1::WorkerRegistry::StubInterface> stub, uint64_t epoch)
    : stub_(std::move(stub)), epoch_(epoch) {}

template <typename Call>
absl::Status CoordinatorRendezvous::Run(absl::Duration timeout, const Call& call) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return EpochEnded();
    running_.insert(&context);
  }
  const grpc::Status status = call(context);
  absl::MutexLock lock(&mutex_);
  running_.erase(&context);
  return cancelled_ ? EpochEnded() : base::FromGrpc(status);
}

absl::Status CoordinatorRendezvous::Put(const std::string& key, const std::string& value) {
  internal::v1::PutRequest request;
  request.set_epoch(epoch_);
  request.set_key(key);
  request.set_value(value);
  internal::v1::PutResponse response;
  return Run(kPutTimeout, [&](grpc::ClientContext& context) {
    return stub_->Put(&context, request, &response);
  });
}

absl::StatusOr<std::string> CoordinatorRendezvous::Get(const std::string& key,
                                                       absl::Duration timeout) {
  internal::v1::GetRequest request;
  request.set_epoch(epoch_);
  request.set_key(key);
  internal::v1::GetResponse response;
  absl::Status status = Run(timeout, [&](grpc::ClientContext& context) {
    return stub_->Get(&context, request, &response);
  });
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(
        fmt::format("no peer published '{}' in {}", key, absl::FormatDuration(timeout)));
  }
  RETURN_IF_ERROR(status);
  return std::move(*response.mutable_value());
}

void CoordinatorRendezvous::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* context : running_) context->TryCancel();
}

}  // namespace conclave::worker
