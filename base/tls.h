#ifndef CONCLAVE_BASE_TLS_H_
#define CONCLAVE_BASE_TLS_H_

// Protected ends of gRPC connections.
//
//   ASSIGN_OR_RETURN(auto credentials, MakeServerCredentials({.tls = files, .check = check}));
//   builder.AddListeningPort(address, credentials, &port);
//
//   ASSIGN_OR_RETURN(auto channel, Dial(address, {.tls = true, .files = files}, arguments));

#include <grpcpp/channel.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/credentials.h"

namespace conclave::base {

// Decides on one call before anything of it is read: `method` is "/package.Service/Method", and
// `authorization` the header of that name ("" without one). Any thread; must not block.
using CallCheck =
    std::function<absl::Status(std::string_view method, std::string_view authorization)>;

struct ServerSecurity {
  // Without a certificate: plaintext. With `ca`, clients must show a certificate that it vouches
  // for. The files are read again when they change, at the next handshake; new ones that are broken
  // are logged and passed over.
  TlsFiles tls = {};
  // Null: none. It sees every call of every service of the port, those of gRPC's own services and
  // of unknown methods included.
  CallCheck check = nullptr;
};

// For one listening port.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    ServerSecurity security);

struct ChannelSecurity {
  bool tls = false;
  TlsFiles files = {};      // ca: instead of the system's; cert and key: shown to the server
  std::string secret = {};  // sent with every call as "authorization: Bearer SECRET"; empty: none
};

// Reads the files; connects when the first call is made.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const ChannelSecurity& security,
                                                    const grpc::ChannelArguments& arguments);

// Whether HOST:PORT can be reached from this machine alone.
bool IsLoopback(std::string_view address);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_TLS_H_
