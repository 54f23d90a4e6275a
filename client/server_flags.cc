#include "client/server_flags.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/status_macros.h"
#include "base/tls.h"

namespace conclave::client {
namespace {

absl::StatusOr<std::string> ApiKey(const std::string& file) {
  if (!file.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> keys, base::ReadSecrets(file));
    return keys.front();
  }
  const char* key = std::getenv(kApiKeyVariable);
  if (key == nullptr || *key == '\0') return "";
  if (base::CheckSecret(key).ok()) return key;
  return absl::InvalidArgumentError(
      fmt::format("${} is not a key: 16 to 1024 printable characters", kApiKeyVariable));
}

}  // namespace

CallOptions ServerFlags::call_options() const {
  return {.timeout =
              timeout_seconds > 0 ? absl::Seconds(timeout_seconds) : absl::InfiniteDuration()};
}

absl::StatusOr<Client> ServerFlags::Connect(bool retry) const {
  base::ChannelSecurity security{.tls = tls || !tls_files.empty(), .files = tls_files};
  ASSIGN_OR_RETURN(security.secret, ApiKey(api_key_file));
  if (!security.secret.empty() && !security.tls && !base::IsLoopback(server)) {
    fmt::print(stderr, "conclave: the API key goes to {} in plaintext: give --tls\n", server);
  }
  return Client::Connect(server, security, retry);
}

void AddServerFlags(base::FlagSet& command, ServerFlags* flags) {
  command.Add("--server", &flags->server, "Address of the server").Type("HOST:PORT").ShowDefault();
  command.Add("--timeout", &flags->timeout_seconds, "Give up after this long [no limit]")
      .Type("SECONDS")
      .NonNegative();
  command.AddSwitch("--tls", &flags->tls, "Speak TLS; trust the system's authorities")
      .Group("Security");
  const auto file = [&command](const char* flag, std::string* value, const char* help) {
    command.Add(flag, value, help).Type("FILE").Group("Security");
  };
  file("--tls-ca", &flags->tls_files.ca, "Speak TLS; trust these authorities instead");
  file("--tls-cert", &flags->tls_files.cert, "Speak TLS; show this certificate");
  file("--tls-key", &flags->tls_files.key, "Private key of --tls-cert");
  file("--api-key-file", &flags->api_key_file, "API key to bring [$CONCLAVE_API_KEY]");
}

}  // namespace conclave::client
