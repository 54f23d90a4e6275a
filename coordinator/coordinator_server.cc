#include "coordinator/coordinator_server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "coordinator/classification_service.h"
#include "coordinator/cluster_service.h"
#include "coordinator/generation_service.h"
#include "coordinator/health_watch.h"
#include "coordinator/metrics_listener.h"
#include "coordinator/metrics_text.h"
#include "coordinator/model_service.h"
#include "coordinator/worker_registry_service.h"

namespace conclave::coordinator {
namespace {

// A batch of long prompts fits; an accident does not.
constexpr int kMaxRequestBytes = 64 << 20;
constexpr int kMinPingMs = 5'000;
// Calls still open when the servers go down are cut after this.
constexpr absl::Duration kShutdownLimit = absl::Seconds(2);

std::string HostOf(const std::string& address) {
  const size_t colon = address.rfind(':');
  return colon == std::string::npos ? address : address.substr(0, colon);
}

bool IsLoopback(const std::string& address) {
  const std::string host = HostOf(address);
  return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::string address;
};

absl::StatusOr<Listener> Listen(const std::string& flag, const std::string& address,
                                const std::vector<grpc::Service*>& services) {
  grpc::ServerBuilder builder;
  int port = 0;
  // Two processes must not share a port by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  // Workers and long streams may ask this often whether we are still here.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingMs);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  for (grpc::Service* service : services) builder.RegisterService(service);
  Listener listener;
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || port == 0) {
    return absl::UnavailableError(fmt::format(
        "{} {}: cannot listen there; is the port taken, is it an address of this machine?", flag,
        address));
  }
  listener.address = fmt::format("{}:{}", HostOf(address), port);
  return listener;
}

class Server final : public CoordinatorServer {
 public:
  explicit Server(ServingModel model) : model_(std::move(model)) {}
  ~Server() override { Stop(); }

  absl::Status Start(const CoordinatorOptions& options) {
    ASSIGN_OR_RETURN(engine_, EngineLoop::Create(options.engine, clock_));
    registry_.emplace(*engine_, engine_->rendezvous());
    generation_.emplace(model_, *engine_, *executor_);
    classification_.emplace(model_, *engine_, *executor_);
    models_.emplace(model_, *engine_);
    cluster_.emplace(*engine_);
    ASSIGN_OR_RETURN(internal_,
                     Listen("--internal-listen", options.internal_listen, {&*registry_}));
    ASSIGN_OR_RETURN(public_, Listen("--listen", options.listen,
                                     {&*generation_, &*classification_, &*models_, &*cluster_}));
    std::vector<grpc::Server*> servers = {public_.server.get(), internal_.server.get()};
    if (!options.health_listen.empty()) {
      ASSIGN_OR_RETURN(health_, Listen("--health-listen", options.health_listen, {}));
      servers.push_back(health_.server.get());
    }
    health_watch_.emplace(
        std::move(servers), [this] { return engine_->Serving(); },
        [this] { return engine_->Live(); });
    if (options.metrics_listen.empty()) return absl::OkStatus();
    facts_ = {
        .model = model_.name,
        .ready = false,
        .workers_wanted = options.engine.cluster.shape.world(),
        .queue_limit = options.engine.max_queued,
        .running_limit = options.engine.cluster.max_running * options.engine.cluster.shape.dp};
    ASSIGN_OR_RETURN(metrics_,
                     MetricsListener::Start(options.metrics_listen, [this] { return Metrics(); }));
    return absl::OkStatus();
  }

  std::string listen_address() const override { return public_.address; }
  std::string internal_address() const override { return internal_.address; }
  std::string metrics_address() const override {
    return metrics_ == nullptr ? "" : metrics_->address();
  }

  void Drain(std::function<void()> done) override {
    engine_->DrainForGood([done = std::move(done)](const auto&) { done(); });
  }

  void Stop() override {
    health_watch_.reset();
    metrics_ = nullptr;
    if (engine_ != nullptr) engine_->Stop();
    const auto deadline = absl::ToChronoTime(absl::Now() + kShutdownLimit);
    for (Listener* listener : {&public_, &internal_, &health_}) {
      if (listener->server != nullptr) listener->server->Shutdown(deadline);
      listener->server.reset();
    }
    executor_.reset();  // last: calls that just ended may have posted to it
  }

 private:
  std::string Metrics() {
    ProcessFacts facts = facts_;
    facts.ready = engine_->Serving();
    return MetricsText(engine_->Report(), engine_->calls(), facts);
  }

  const ServingModel model_;
  const base::SteadyClock clock_;
  ProcessFacts facts_;
  std::unique_ptr<base::Executor> executor_ = std::make_unique<base::Executor>();
  std::unique_ptr<EngineLoop> engine_;
  std::optional<WorkerRegistryService> registry_;
  std::optional<GenerationServiceImpl> generation_;
  std::optional<ClassificationServiceImpl> classification_;
  std::optional<ModelServiceImpl> models_;
  std::optional<ClusterServiceImpl> cluster_;
  Listener internal_;
  Listener public_;
  Listener health_;
  std::optional<HealthWatch> health_watch_;
  std::unique_ptr<MetricsListener> metrics_;
};

// What the engine needs to know of the model.
absl::Status FillEngineOptions(const ServingModel& model, EngineOptions& engine) {
  ClusterOptions& cluster = engine.cluster;
  cluster.model_dir = model.dir;
  cluster.random_weights = model.random_weights;
  cluster.config = model.config;
  cluster.heads = model.heads;
  cluster.allow_forced_routing = model.allow_forced_routing;
  return PlanModel(*model.checkpoint, cluster);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    CoordinatorOptions options) {
  if (options.model.allow_forced_routing && !IsLoopback(options.listen)) {
    return absl::InvalidArgumentError(
        fmt::format("--allow-forced-routing is a test hook: --listen {} must be a loopback address",
                    options.listen));
  }
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  ASSIGN_OR_RETURN(ServingModel model, LoadServingModel(options.model));
  RETURN_IF_ERROR(FillEngineOptions(model, options.engine));
  auto server = std::make_unique<Server>(std::move(model));
  RETURN_IF_ERROR(server->Start(options));
  return server;
}

}  // namespace conclave::coordinator
