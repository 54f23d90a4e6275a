#ifndef CONCLAVE_COORDINATOR_LIMITED_ENGINE_H_
#define CONCLAVE_COORDINATOR_LIMITED_ENGINE_H_

// The engine as the public services see it where there are API keys: requests that carry an account
// are taken from it and counted until they end.

#include <utility>
#include <vector>

#include "coordinator/api_key_account.h"
#include "coordinator/engine.h"

namespace conclave::coordinator {

// Thread-safe.
class LimitedEngine final : public Engine {
 public:
  explicit LimitedEngine(Engine& engine) : engine_(engine) {}  // borrowed

  // All of `requests` are of one account, or of none.
  absl::StatusOr<std::vector<RequestId>> SubmitForks(std::vector<Request>& requests) override;

  void Cancel(RequestId id) override { engine_.Cancel(id); }
  void Rebalance(const v1::RebalanceRequest& request, RebalanceDone done) override {
    engine_.Rebalance(request, std::move(done));
  }
  void Drain(const v1::DrainRequest& request, DrainDone done) override {
    engine_.Drain(request, std::move(done));
  }
  CallAccount& calls() override { return engine_.calls(); }
  v1::GetClusterResponse Snapshot() override { return engine_.Snapshot(); }
  bool Serving() override { return engine_.Serving(); }

 private:
  Engine& engine_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_LIMITED_ENGINE_H_
