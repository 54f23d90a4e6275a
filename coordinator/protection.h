#ifndef CONCLAVE_COORDINATOR_PROTECTION_H_
#define CONCLAVE_COORDINATOR_PROTECTION_H_

// Who may reach the coordinator's ports, and how much one connection may ask of them.

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/credentials.h"
#include "base/flags.h"
#include "coordinator/api_keys.h"
#include "coordinator/call_account.h"

namespace conclave::coordinator {

struct ProtectionOptions {
  base::TlsFiles tls = {};         // of the public port; ca: of the clients
  std::string api_keys = {};       // file; empty: everybody may call
  std::string control = {};        // socket for this user alone, without keys or TLS; empty: none
  base::TlsFiles worker_tls = {};  // of the workers' port; ca: of the workers
  std::string worker_secret = {};  // file
  bool worker_insecure = false;
  // A batch of long prompts fits 64 MiB; an accident does not.
  int max_message_bytes = 64 << 20;
  int max_open_calls = 1024;  // of one connection
  int keepalive_seconds = 60;
  int max_connection_seconds = 0;  // 0: no limit
};

void DeclareProtection(base::FlagSet& app, ProtectionOptions& options);

// INVALID_ARGUMENT, with what to do, for what is incomplete or would leave the workers' port open
// to other machines.
absl::Status CheckProtection(const ProtectionOptions& options, const std::string& internal_listen);

// The keys are null where there are none. Calls that they refuse are counted in `calls`, borrowed,
// and logged.
absl::StatusOr<std::shared_ptr<ApiKeys>> OpenApiKeys(const ProtectionOptions& options,
                                                     const base::Clock& clock);
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> PublicCredentials(
    const ProtectionOptions& options, const std::string& listen, std::shared_ptr<ApiKeys> keys,
    CallAccount& calls);
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> WorkerCredentials(
    const ProtectionOptions& options);

// Message size, calls, keepalive and age of clients' connections.
void LimitClients(const ProtectionOptions& options, grpc::ServerBuilder& builder);
// Workers are the cluster's own: their messages may have any size, whatever clients may do.
void LimitWorkers(grpc::ServerBuilder& builder);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_PROTECTION_H_
