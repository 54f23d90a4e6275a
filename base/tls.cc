#include "base/tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/client_interceptor.h>

#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/logging.h"
#include "base/status_macros.h"

namespace conclave::base {
namespace {

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

grpc_ssl_server_certificate_config* MakeConfig(const TlsPems& pems) {
  const grpc_ssl_pem_key_cert_pair pair = {pems.key.c_str(), pems.cert.c_str()};
  // gRPC wants roots even where no client is asked for a certificate.
  const std::string& roots = pems.ca.empty() ? pems.cert : pems.ca;
  return grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
}

// What gRPC calls back with, for as long as it has the credentials.
class PortGuard {
 public:
  // `watch`: of the files since before they were read.
  PortGuard(ServerSecurity security, FileWatch watch, TlsPems pems)
      : tls_(std::move(security.tls)),
        check_(std::move(security.check)),
        watch_(std::move(watch)),
        pems_(std::move(pems)) {}

  // grpc_ssl_server_certificate_config_callback: before the first handshake and at every one.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<PortGuard*>(self)->Refresh(config);
  }

  // grpc_auth_metadata_processor, for every call.
  static void Process(void* self, grpc_auth_context*, const grpc_metadata* metadata, size_t count,
                      grpc_process_auth_metadata_done_cb done, void* user_data) {
    std::string_view method;
    std::string_view authorization;
    for (size_t i = count; i-- > 0;) {  // the first of a name counts
      if (View(metadata[i].key) == ":path") method = View(metadata[i].value);
      if (View(metadata[i].key) == "authorization") authorization = View(metadata[i].value);
    }
    const CallCheck& check = static_cast<PortGuard*>(self)->check_;
    const absl::Status status = check == nullptr ? absl::OkStatus() : check(method, authorization);
    const std::string message(status.message());
    done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.code()),
         status.ok() ? nullptr : message.c_str());
  }

  static void Destroy(void* self) { delete static_cast<PortGuard*>(self); }

 private:
  grpc_ssl_certificate_config_reload_status Refresh(grpc_ssl_server_certificate_config** config) {
    absl::MutexLock lock(&mutex_);
    if (started_ && !watch_.Changed()) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    if (started_) {
      absl::StatusOr<TlsPems> pems = LoadTls(tls_);
      if (!pems.ok()) {
        Log().error("event=tls_files_refused keeping=old error=\"{}\"",
                    std::string(pems.status().message()));
        return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
      }
      Log().info("event=tls_files_reloaded cert={}", tls_.cert);
      pems_ = *std::move(pems);
    }
    started_ = true;
    *config = MakeConfig(pems_);
    pems_ = {};  // gRPC has them
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const TlsFiles tls_;
  const CallCheck check_;
  absl::Mutex mutex_;  // guards all below
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  FileWatch watch_ ABSL_GUARDED_BY(mutex_);
  TlsPems pems_ ABSL_GUARDED_BY(mutex_);
};

// gRPC's C++ credentials take no check of calls without TLS, and no certificates that change other
// than through files it does not verify; those of its C core do.
class GuardedCredentials final : public grpc::ServerCredentials {
 public:
  // Takes ownership.
  explicit GuardedCredentials(grpc_server_credentials* credentials) : credentials_(credentials) {}
  ~GuardedCredentials() override { grpc_server_credentials_release(credentials_); }
  GuardedCredentials(const GuardedCredentials&) = delete;
  GuardedCredentials& operator=(const GuardedCredentials&) = delete;

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    Log().error("event=auth_metadata_processor_ignored");
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};

grpc_server_credentials* MakeCore(const TlsFiles& tls, PortGuard* guard) {
  if (tls.cert.empty()) return grpc_insecure_server_credentials_create();
  return grpc_ssl_server_credentials_create_with_options(
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          tls.ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                         : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
          &PortGuard::Fetch, guard));
}

class SecretInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit SecretInterceptor(const std::string& header) : header_(header) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using Hook = grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(Hook::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", header_});
    }
    methods->Proceed();
  }

 private:
  const std::string& header_;
};

class SecretInterceptors final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit SecretInterceptors(const std::string& secret) : header_("Bearer " + secret) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new SecretInterceptor(header_);
  }

 private:
  const std::string header_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    ServerSecurity security) {
  if (security.tls.empty() && security.check == nullptr) return grpc::InsecureServerCredentials();
  if (security.tls.cert.empty() && !security.tls.ca.empty()) {
    return absl::InvalidArgumentError(
        security.tls.ca + ": clients can show certificates only to a server that has one");
  }
  const TlsFiles tls = security.tls;
  FileWatch watch({tls.cert, tls.key, tls.ca});
  ASSIGN_OR_RETURN(TlsPems pems, LoadTls(tls));
  auto guard = std::make_unique<PortGuard>(std::move(security), std::move(watch), std::move(pems));
  grpc_server_credentials* core = MakeCore(tls, guard.get());
  if (core == nullptr) return absl::InternalError(tls.cert + ": gRPC does not take it");
  // Connections outlive the C++ object: the guard goes when the core lets go of it.
  grpc_server_credentials_set_auth_metadata_processor(
      core, {&PortGuard::Process, &PortGuard::Destroy, guard.release()});
  return std::make_shared<GuardedCredentials>(core);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const ChannelSecurity& security,
                                                    const grpc::ChannelArguments& arguments) {
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (security.tls) {
    ASSIGN_OR_RETURN(TlsPems pems, LoadTls(security.files));
    credentials = grpc::SslCredentials({.pem_root_certs = std::move(pems.ca),
                                        .pem_private_key = std::move(pems.key),
                                        .pem_cert_chain = std::move(pems.cert)});
  }
  if (security.secret.empty()) return grpc::CreateCustomChannel(target, credentials, arguments);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<SecretInterceptors>(security.secret));
  return grpc::experimental::CreateCustomChannelWithInterceptors(target, credentials, arguments,
                                                                 std::move(interceptors));
}

bool IsLoopback(std::string_view address) {
  const std::string_view host = address.substr(0, address.rfind(':'));
  const bool numeric = host.find_first_not_of("0123456789.") == std::string_view::npos;
  return host == "localhost" || host == "[::1]" || (numeric && host.starts_with("127.")) ||
         address.starts_with("unix:");
}

}  // namespace conclave::base
