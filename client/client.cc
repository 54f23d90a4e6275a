#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>

#include "base/grpc_status.h"
#include "base/status_macros.h"
#include "base/tls.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"

namespace conclave::client {

void Cancellation::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* context : running_) context->TryCancel();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void Cancellation::Attach(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  if (cancelled_) context->TryCancel();
  running_.insert(context);
}

void Cancellation::Detach(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  running_.erase(context);
}

// The context of one call, with its options applied, for as long as the call runs.
class Call {
 public:
  explicit Call(const CallOptions& options) : cancellation_(options.cancellation) {
    if (options.timeout != absl::InfiniteDuration()) {
      context_.set_deadline(std::chrono::system_clock::now() +
                            absl::ToChronoNanoseconds(options.timeout));
    }
    if (cancellation_ != nullptr) cancellation_->Attach(&context_);
  }
  ~Call() {
    if (cancellation_ != nullptr) cancellation_->Detach(&context_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
  Cancellation* cancellation_;
};

namespace {

constexpr char kServiceConfig[] =
#include "client/service_config.inc"
    ;

grpc::ChannelArguments Arguments(const std::string& server, bool retry) {
  grpc::ChannelArguments arguments;
  if (retry) arguments.SetServiceConfigJSON(kServiceConfig);
  // Log-probabilities or token labels of a long input pass gRPC's default of 4 MiB.
  arguments.SetMaxReceiveMessageSize(-1);
  // A server that comes back should be found soon; gRPC's default grows to two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // gRPC would send even calls to this machine through $http_proxy.
  if (base::IsLoopback(server)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> Unary(const std::shared_ptr<grpc::Channel>& channel,
                               grpc::Status (Service::Stub::*method)(grpc::ClientContext*,
                                                                     const Request&, Response*),
                               const Request& request, const CallOptions& options) {
  typename Service::Stub stub(channel);
  Call call(options);
  Response response;
  const grpc::Status status = (stub.*method)(call.context(), request, &response);
  if (!status.ok()) return base::FromGrpc(status);
  return response;
}

}  // namespace

Client::Client(const std::string& server, bool retry)
    : Client(grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(),
                                       Arguments(server, retry))) {}

absl::StatusOr<Client> Client::Connect(const std::string& server,
                                       const base::ChannelSecurity& security, bool retry) {
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                   base::Dial(server, security, Arguments(server, retry)));
  return Client(std::move(channel));
}

absl::StatusOr<v1::Finish> Client::Generate(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_part, const CallOptions& options) {
  v1::GenerationService::Stub stub(channel_);
  Call call(options);
  const auto reader = stub.Generate(call.context(), request);
  v1::GenerateResponse part;
  v1::Finish finish;
  bool finished = false;
  while (reader->Read(&part)) {
    if (part.has_finish()) {
      finish = part.finish();
      finished = true;
    }
    on_part(part);
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return base::FromGrpc(status);
  if (!finished) return absl::InternalError("the server ended the stream without a finish reason");
  return finish;
}

absl::StatusOr<v1::ChatFinish> Client::Chat(
    const v1::ChatRequest& request, const std::function<void(const v1::ChatResponse&)>& on_event,
    const CallOptions& options) {
  v1::GenerationService::Stub stub(channel_);
  Call call(options);
  const auto reader = stub.Chat(call.context(), request);
  v1::ChatResponse event;
  v1::ChatFinish finish;
  bool finished = false;
  while (reader->Read(&event)) {
    if (event.has_finish()) {
      finish = event.finish();
      finished = true;
    }
    on_event(event);
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return base::FromGrpc(status);
  if (!finished) return absl::InternalError("the server ended the stream without a finish reason");
  return finish;
}

absl::StatusOr<v1::GenerateBatchResponse> Client::GenerateBatch(
    const v1::GenerateBatchRequest& request, const CallOptions& options) {
  using Service = v1::GenerationService;
  return Unary<Service>(channel_, &Service::Stub::GenerateBatch, request, options);
}

absl::StatusOr<v1::ClassifySequenceResponse> Client::ClassifySequence(
    const v1::ClassifySequenceRequest& request, const CallOptions& options) {
  using Service = v1::ClassificationService;
  return Unary<Service>(channel_, &Service::Stub::ClassifySequence, request, options);
}

absl::StatusOr<v1::ClassifyTokensResponse> Client::ClassifyTokens(
    const v1::ClassifyTokensRequest& request, const CallOptions& options) {
  using Service = v1::ClassificationService;
  return Unary<Service>(channel_, &Service::Stub::ClassifyTokens, request, options);
}

absl::StatusOr<v1::ScoreLabelsResponse> Client::ScoreLabels(const v1::ScoreLabelsRequest& request,
                                                            const CallOptions& options) {
  using Service = v1::ClassificationService;
  return Unary<Service>(channel_, &Service::Stub::ScoreLabels, request, options);
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel(const CallOptions& options) {
  using Service = v1::ModelService;
  return Unary<Service>(channel_, &Service::Stub::GetModel, v1::GetModelRequest(), options);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request,
                                                      const CallOptions& options) {
  using Service = v1::ModelService;
  return Unary<Service>(channel_, &Service::Stub::Tokenize, request, options);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request,
                                                          const CallOptions& options) {
  using Service = v1::ModelService;
  return Unary<Service>(channel_, &Service::Stub::Detokenize, request, options);
}

absl::StatusOr<v1::GetClusterResponse> Client::GetCluster(const CallOptions& options) {
  using Service = v1::ClusterService;
  return Unary<Service>(channel_, &Service::Stub::GetCluster, v1::GetClusterRequest(), options);
}

absl::StatusOr<v1::RebalanceResponse> Client::Rebalance(const v1::RebalanceRequest& request,
                                                        const CallOptions& options) {
  using Service = v1::ClusterService;
  return Unary<Service>(channel_, &Service::Stub::Rebalance, request, options);
}

absl::StatusOr<v1::DrainResponse> Client::Drain(const v1::DrainRequest& request,
                                                const CallOptions& options) {
  using Service = v1::ClusterService;
  return Unary<Service>(channel_, &Service::Stub::Drain, request, options);
}

absl::StatusOr<bool> Client::Serving(const CallOptions& options) {
  using Service = grpc::health::v1::Health;
  const auto response = Unary<Service>(channel_, &Service::Stub::Check,
                                       grpc::health::v1::HealthCheckRequest(), options);
  if (!response.ok()) return response.status();
  return response->status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

}  // namespace conclave::client
