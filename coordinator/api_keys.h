#ifndef CONCLAVE_COORDINATOR_API_KEYS_H_
#define CONCLAVE_COORDINATOR_API_KEYS_H_

// Who may call the public services: the keys of a file, one a line.
//
//   # name   key                    options
//   alice    k-5f2c...e1            max-requests=8 tokens-per-minute=60000
//   ci       sha256:9f86...0a08     expires=2027-01-31
//   ops      k-77aa...09            admin
//
// The file is read again when it changes, within a second; one that is broken is logged and the
// keys stay as they are. Calls under way go on whatever becomes of their key.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/credentials.h"
#include "coordinator/api_key_account.h"

namespace conclave::coordinator {

struct ApiKey {
  std::string name;
  base::Digest digest = {};
  absl::Time expires = absl::InfiniteFuture();
  bool admin = false;  // may change what is served: ClusterService but for GetCluster
  ApiKeyLimits limits;
};

// INVALID_ARGUMENT names the line, never what is in it. At least one key; names and keys are
// unique.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& text, const std::string& path);

// Thread-safe.
class ApiKeys {
 public:
  // Borrows the clocks: one that never jumps, and the one that says what date it is.
  static absl::StatusOr<std::shared_ptr<ApiKeys>> Open(const std::string& path,
                                                       const base::Clock& clock,
                                                       const base::Clock& wall);

  // Whether a call of `method` ("/package.Service/Method") with this authorization header may go
  // on: UNAUTHENTICATED without a key that is valid now, PERMISSION_DENIED where it takes an admin.
  // The time it takes does not depend on which key it is.
  absl::Status Check(std::string_view method, std::string_view authorization);

  // Of the header's key; null when there is none.
  std::shared_ptr<ApiKeyAccount> Account(std::string_view authorization);

 private:
  struct Held {
    ApiKey key;
    std::shared_ptr<ApiKeyAccount> account;
  };
  using Keys = std::vector<Held>;

  ApiKeys(const std::string& path, const base::Clock& clock, const base::Clock& wall,
          base::FileWatch watch, std::vector<ApiKey> keys);

  std::shared_ptr<const Keys> Current();
  void Replace(std::vector<ApiKey> keys) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static const Held* Find(const Keys& keys, std::string_view authorization);

  const std::string path_;
  const base::Clock& clock_;
  const base::Clock& wall_;
  absl::Mutex mutex_;  // guards all below
  base::FileWatch watch_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Keys> keys_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_API_KEYS_H_
