#include "coordinator/coordinator_server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/stat.h>

#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "base/tls.h"
#include "coordinator/classification_service.h"
#include "coordinator/cluster_service.h"
#include "coordinator/generation_service.h"
#include "coordinator/health_watch.h"
#include "coordinator/limited_engine.h"
#include "coordinator/metrics_listener.h"
#include "coordinator/metrics_text.h"
#include "coordinator/model_service.h"
#include "coordinator/worker_registry_service.h"

namespace conclave::coordinator {
namespace {

// Calls still open when the servers go down are cut after this.
constexpr absl::Duration kShutdownLimit = absl::Seconds(2);

std::string HostOf(const std::string& address) {
  const size_t colon = address.rfind(':');
  return colon == std::string::npos ? address : address.substr(0, colon);
}

struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::string address;
};

// `clients`: what limits them; null where workers connect. `credentials` null: plaintext, for
// everybody.
absl::StatusOr<Listener> Listen(const std::string& flag, const std::string& address,
                                const ProtectionOptions* clients,
                                std::shared_ptr<grpc::ServerCredentials> credentials,
                                const std::vector<grpc::Service*>& services) {
  grpc::ServerBuilder builder;
  int port = 0;
  // Two processes must not share a port by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(
      address, credentials == nullptr ? grpc::InsecureServerCredentials() : std::move(credentials),
      &port);
  if (clients == nullptr) {
    LimitWorkers(builder);
  } else {
    LimitClients(*clients, builder);
  }
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

CallAccount::KeyNames KeyNames(std::shared_ptr<ApiKeys> keys) {
  return [keys = std::move(keys)](std::string_view authorization) -> std::string {
    const auto account = keys->Account(authorization);
    return account == nullptr ? "" : account->name();
  };
}

class Server final : public CoordinatorServer {
 public:
  explicit Server(ServingModel model) : model_(std::move(model)) {}
  ~Server() override { Stop(); }

  absl::Status Start(const CoordinatorOptions& options) {
    ASSIGN_OR_RETURN(engine_, EngineLoop::Create(options.engine, clock_));
    const ProtectionOptions& protection = options.protection;
    ASSIGN_OR_RETURN(keys_, OpenApiKeys(protection, clock_));
    if (keys_ != nullptr) engine_->calls().NameKeys(KeyNames(keys_));
    ASSIGN_OR_RETURN(auto public_credentials,
                     PublicCredentials(protection, options.listen, keys_, engine_->calls()));
    ASSIGN_OR_RETURN(auto worker_credentials, WorkerCredentials(protection));
    registry_.emplace(*engine_, engine_->rendezvous());
    limited_.emplace(*engine_);
    generation_.emplace(model_, *limited_, *executor_, keys_.get());
    classification_.emplace(model_, *limited_, *executor_, keys_.get());
    models_.emplace(model_, *engine_);
    cluster_.emplace(*engine_);
    ASSIGN_OR_RETURN(internal_, Listen("--internal-listen", options.internal_listen, nullptr,
                                       worker_credentials, {&*registry_}));
    ASSIGN_OR_RETURN(public_, Listen("--listen", options.listen, &protection, public_credentials,
                                     {&*generation_, &*classification_, &*models_, &*cluster_}));
    std::vector<grpc::Server*> servers = {public_.server.get(), internal_.server.get()};
    if (!options.health_listen.empty()) {
      ASSIGN_OR_RETURN(health_,
                       Listen("--health-listen", options.health_listen, &protection, nullptr, {}));
      servers.push_back(health_.server.get());
    }
    if (!protection.control.empty()) {
      RETURN_IF_ERROR(ListenForControl(protection));
      servers.push_back(control_.server.get());
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
  std::string health_address() const override { return health_.address; }
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
    for (Listener* listener : {&public_, &internal_, &health_, &control_}) {
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

  absl::Status ListenForControl(const ProtectionOptions& protection) {
    // The socket must not be there for others for a moment.
    const mode_t before = umask(S_IRWXG | S_IRWXO);
    auto control = Listen("--control-socket", "unix:" + protection.control, &protection, nullptr,
                          {&*cluster_});
    umask(before);
    RETURN_IF_ERROR(control.status());
    control_ = *std::move(control);
    return absl::OkStatus();
  }

  const ServingModel model_;
  const base::SteadyClock clock_;
  ProcessFacts facts_;
  std::unique_ptr<base::Executor> executor_ = std::make_unique<base::Executor>();
  std::shared_ptr<ApiKeys> keys_;
  std::unique_ptr<EngineLoop> engine_;
  std::optional<LimitedEngine> limited_;
  std::optional<WorkerRegistryService> registry_;
  std::optional<GenerationServiceImpl> generation_;
  std::optional<ClassificationServiceImpl> classification_;
  std::optional<ModelServiceImpl> models_;
  std::optional<ClusterServiceImpl> cluster_;
  Listener internal_;
  Listener public_;
  Listener health_;
  Listener control_;
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
  if (options.model.allow_forced_routing && !base::IsLoopback(options.listen)) {
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
