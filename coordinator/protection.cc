#include "coordinator/protection.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "base/tls.h"
#include "coordinator/refusal_log.h"

namespace conclave::coordinator {
namespace {

constexpr int kMaxSeconds = std::numeric_limits<int>::max() / 1000;  // gRPC counts milliseconds
constexpr int kMinMessageBytes = 1 << 10;
constexpr int kKeepaliveTimeoutMs = 20'000;  // or the silence before it, if that is shorter
// Missed heartbeats tell of a lost worker long before; this is for connections that nobody has.
constexpr int kWorkerKeepaliveSeconds = 60;
// Workers and long streams may ask this often whether we are still here.
constexpr int kMinPingMs = 5'000;

absl::Status CheckFiles(const base::TlsFiles& files, const std::string& flags,
                        const std::string& ca_flag) {
  if (files.cert.empty() == files.key.empty() && (files.ca.empty() || !files.cert.empty())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("--{}cert and --{}key go together, and {} needs them", flags, flags, ca_flag));
}

// `path` is as gRPC has it: "/conclave.v1.GenerationService/Generate".
void CountRefusal(std::string_view path, absl::StatusCode code, CallAccount& calls) {
  for (size_t i = 0; i < kMethods; ++i) {
    const auto method = static_cast<Method>(i);
    std::string own = fmt::format("/conclave.v1.{}", MethodName(method));
    own[own.rfind('.')] = '/';
    if (own == path) return calls.Count(method, code);
  }
}

// Keys expire by the date as the administrator has set it, later corrections included.
class WallClock final : public base::Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

// The secrets of a file. It is read again when it changes, so that a new one can be added before
// the old one goes.
class SharedSecret {
 public:
  static absl::StatusOr<std::shared_ptr<SharedSecret>> Open(const std::string& path) {
    base::FileWatch watch({path});  // before it is read: a change in between must not be missed
    ASSIGN_OR_RETURN(const std::vector<std::string> secrets, base::ReadSecrets(path));
    return std::make_shared<SharedSecret>(path, std::move(watch), secrets);
  }

  SharedSecret(std::string path, base::FileWatch watch, const std::vector<std::string>& secrets)
      : path_(std::move(path)), watch_(std::move(watch)) {
    absl::MutexLock lock(&mutex_);
    Set(secrets);
  }

  absl::Status Check(std::string_view authorization) {
    const base::Digest digest = base::Sha256(base::BearerSecret(authorization));
    bool known = false;
    absl::MutexLock lock(&mutex_);
    Refresh();
    for (const base::Digest& secret : digests_) known |= base::SameDigest(secret, digest);
    if (known) return absl::OkStatus();
    return absl::UnauthenticatedError(
        "this port is for workers with the coordinator's --internal-secret");
  }

 private:
  void Set(const std::vector<std::string>& secrets) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    digests_.clear();
    for (const std::string& secret : secrets) digests_.push_back(base::Sha256(secret));
  }

  void Refresh() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!watch_.Changed()) return;
    const auto secrets = base::ReadSecrets(path_);
    if (secrets.ok()) return Set(*secrets);
    base::Log().error("event=internal_secret_refused keeping=old error=\"{}\"",
                      std::string(secrets.status().message()));
  }

  const std::string path_;
  absl::Mutex mutex_;  // guards both below
  base::FileWatch watch_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Digest> digests_ ABSL_GUARDED_BY(mutex_);
};

// After so long without a word the other side is asked whether it is there. 0: never.
void KeepAlive(int seconds, grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingMs);
  if (seconds == 0) return;
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, seconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             std::min(seconds * 1000, kKeepaliveTimeoutMs));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Else gRPC asks twice and then no more until it has something to send.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

}  // namespace

void DeclareProtection(base::FlagSet& app, ProtectionOptions& options) {
  const auto file = [&app](const char* flag, std::string* value, const char* help) {
    app.Add(flag, value, help).Type("FILE").Group("Protection");
  };
  file("--tls-cert", &options.tls.cert, "certificate chain of the public port: it speaks TLS");
  file("--tls-key", &options.tls.key, "its private key");
  file("--tls-client-ca", &options.tls.ca, "clients must show a certificate of this authority");
  file("--api-keys", &options.api_keys, "calls must bring one of these keys");
  app.Add("--control-socket", &options.control,
          "ClusterService and health for this user alone, without keys or TLS")
      .Type("PATH")
      .Group("Protection");
  file("--internal-secret", &options.worker_secret, "workers must bring this file's secret");
  file("--internal-tls-cert", &options.worker_tls.cert, "certificate chain of the workers' port");
  file("--internal-tls-key", &options.worker_tls.key, "its private key");
  file("--internal-tls-ca", &options.worker_tls.ca, "workers must show a certificate of this");
  app.AddSwitch("--internal-insecure", &options.worker_insecure,
                "let anybody join who reaches --internal-listen")
      .Group("Protection");
  app.Add("--max-message-bytes", &options.max_message_bytes, "of one request")
      .Range(kMinMessageBytes, std::numeric_limits<int>::max())
      .ShowDefault()
      .Group("Protection");
  app.Add("--max-open-calls", &options.max_open_calls, "of one connection; more wait at the client")
      .Range(1, std::numeric_limits<int>::max())
      .ShowDefault()
      .Group("Protection");
  app.Add("--keepalive-seconds", &options.keepalive_seconds,
          "silence after which a client is asked whether it is there; 0: never")
      .Range(0, kMaxSeconds)
      .ShowDefault()
      .Group("Protection");
  app.Add("--max-connection-age", &options.max_connection_seconds,
          "seconds until clients are made to connect anew, streams finish; 0: never")
      .Range(0, kMaxSeconds)
      .ShowDefault()
      .Group("Protection");
}

absl::Status CheckProtection(const ProtectionOptions& options, const std::string& internal_listen) {
  RETURN_IF_ERROR(CheckFiles(options.tls, "tls-", "--tls-client-ca"));
  RETURN_IF_ERROR(CheckFiles(options.worker_tls, "internal-tls-", "--internal-tls-ca"));
  const bool guarded = !options.worker_secret.empty() || !options.worker_tls.ca.empty();
  if (guarded || options.worker_insecure || base::IsLoopback(internal_listen)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(fmt::format(
      "--internal-listen {} can be reached from other machines: give --internal-secret FILE, here "
      "and to the workers, or --internal-tls-cert, -key and -ca, or take the risk with "
      "--internal-insecure",
      internal_listen));
}

absl::StatusOr<std::shared_ptr<ApiKeys>> OpenApiKeys(const ProtectionOptions& options,
                                                     const base::Clock& clock) {
  if (options.api_keys.empty()) return nullptr;
  static const WallClock wall;
  return ApiKeys::Open(options.api_keys, clock, wall);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> PublicCredentials(
    const ProtectionOptions& options, const std::string& listen, std::shared_ptr<ApiKeys> keys,
    CallAccount& calls) {
  if (keys == nullptr) {
    if (options.tls.ca.empty() && !base::IsLoopback(listen)) {
      base::Log().warn(
          "event=public_port_open listen={} note=\"whoever reaches it may generate, drain and "
          "rebalance: give --api-keys or --tls-client-ca, unless something in front decides who "
          "may\"",
          listen);
    }
    return base::MakeServerCredentials({.tls = options.tls});
  }
  if (options.tls.cert.empty() && !base::IsLoopback(listen)) {
    base::Log().warn(
        "event=keys_in_plaintext listen={} note=\"whoever sees the traffic sees the API keys: give "
        "--tls-cert and --tls-key, unless something in front ends TLS\"",
        listen);
  }
  return base::MakeServerCredentials(
      {.tls = options.tls,
       .check = [keys = std::move(keys), &calls, log = std::make_shared<RefusalLog>("public")](
                    std::string_view method, std::string_view authorization) {
         absl::Status status = keys->Check(method, authorization);
         if (status.ok()) return status;
         CountRefusal(method, status.code(), calls);
         log->Note(method, status);
         return status;
       }});
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> WorkerCredentials(
    const ProtectionOptions& options) {
  if (options.worker_secret.empty()) {
    return base::MakeServerCredentials({.tls = options.worker_tls});
  }
  ASSIGN_OR_RETURN(auto secret, SharedSecret::Open(options.worker_secret));
  return base::MakeServerCredentials(
      {.tls = options.worker_tls,
       .check = [secret = std::move(secret), log = std::make_shared<RefusalLog>("internal")](
                    std::string_view method, std::string_view authorization) {
         absl::Status status = secret->Check(authorization);
         if (!status.ok()) log->Note(method, status);
         return status;
       }});
}

void LimitClients(const ProtectionOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_open_calls);
  KeepAlive(options.keepalive_seconds, builder);
  if (options.max_connection_seconds > 0) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               options.max_connection_seconds * 1000);
  }
}

void LimitWorkers(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(-1);
  KeepAlive(kWorkerKeepaliveSeconds, builder);
}

}  // namespace conclave::coordinator
