#ifndef CONCLAVE_COORDINATOR_CALLER_H_
#define CONCLAVE_COORDINATOR_CALLER_H_

// What a call says of who makes it: until when they wait, and which API key they hold.

#include <grpcpp/server_context.h>

#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/api_keys.h"
#include "coordinator/engine.h"

namespace conclave::coordinator {

class Caller {
 public:
  // `keys` may be null. The call has passed their check.
  Caller(const grpc::CallbackServerContext& context, ApiKeys* keys)
      : deadline_(absl::FromChrono(context.deadline())) {
    if (keys == nullptr) return;
    const auto header = context.client_metadata().find("authorization");
    if (header != context.client_metadata().end()) {
      account_ = keys->Account({header->second.data(), header->second.size()});
    }
    // Its file may have changed since the check.
    if (account_ == nullptr) status_ = absl::UnauthenticatedError("the API key is not valid");
  }

  // UNAUTHENTICATED: the call is nobody's, and no limits would hold for it.
  const absl::Status& status() const { return status_; }

  // Whose share of the service a request takes is its key's to say; `user` divides it further.
  void Sign(Request& request) const {
    request.deadline = deadline_;
    request.account = account_;
    if (account_ == nullptr) return;
    const bool named = request.user.starts_with("user ");
    request.user = "key " + account_->name() + (named ? " " + request.user : "");
  }

 private:
  absl::Time deadline_;
  absl::Status status_;
  std::shared_ptr<ApiKeyAccount> account_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CALLER_H_
