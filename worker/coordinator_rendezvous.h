#ifndef CONCLAVE_WORKER_COORDINATOR_RENDEZVOUS_H_
#define CONCLAVE_WORKER_COORDINATOR_RENDEZVOUS_H_

// The coordinator's Put and Get as the Rendezvous of one epoch.

#include <memory>
#include <set>
#include <string>

#include "absl/synchronization/mutex.h"
#include "proto/conclave/internal/v1/worker.grpc.pb.h"
#include "worker/communicator.h"

namespace conclave::worker {

class CoordinatorRendezvous final : public Rendezvous {
 public:
  CoordinatorRendezvous(std::shared_ptr<internal::v1::WorkerRegistry::StubInterface> stub,
                        uint64_t epoch);

  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

  // Any thread: running calls and all later ones are ABORTED.
  void Cancel();

 private:
  // Runs one call with a context that Cancel reaches.
  template <typename Call>
  absl::Status Run(absl::Duration timeout, const Call& call);

  const std::shared_ptr<internal::v1::WorkerRegistry::StubInterface> stub_;
  const uint64_t epoch_;
  absl::Mutex mutex_;  // guards both below
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> running_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_COORDINATOR_RENDEZVOUS_H_
