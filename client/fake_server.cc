#include "client/fake_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <thread>

#include "base/check.h"

namespace conclave::client {

class FakeServer::Generation final : public v1::GenerationService::Service {
 public:
  explicit Generation(FakeServer* fake) : fake_(fake) {}
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    if (fake_->answers.generate) return fake_->answers.generate(*context, *request, *writer);
    fake_->requests.generate = *request;
    for (const auto& part : fake_->answers.stream) writer->Write(part);
    while (fake_->answers.hang && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return fake_->answers.status;
  }
  grpc::Status Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatResponse>* writer) override {
    fake_->requests.chat = *request;
    for (const auto& event : fake_->answers.chat) writer->Write(event);
    while (fake_->answers.hang && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return fake_->answers.status;
  }

 private:
  FakeServer* fake_;
};

class FakeServer::Classification final : public v1::ClassificationService::Service {
 public:
  explicit Classification(FakeServer* fake) : fake_(fake) {}
  grpc::Status ClassifySequence(grpc::ServerContext* /*context*/,
                                const v1::ClassifySequenceRequest* request,
                                v1::ClassifySequenceResponse* response) override {
    fake_->requests.sequence = *request;
    *response = fake_->answers.sequence;
    return fake_->answers.status;
  }
  grpc::Status ClassifyTokens(grpc::ServerContext* /*context*/,
                              const v1::ClassifyTokensRequest* request,
                              v1::ClassifyTokensResponse* response) override {
    fake_->requests.tokens = *request;
    *response = fake_->answers.tokens;
    return fake_->answers.status;
  }
  grpc::Status ScoreLabels(grpc::ServerContext* /*context*/, const v1::ScoreLabelsRequest* request,
                           v1::ScoreLabelsResponse* response) override {
    fake_->requests.labels = *request;
    *response = fake_->answers.labels;
    return fake_->answers.status;
  }

 private:
  FakeServer* fake_;
};

class FakeServer::Model final : public v1::ModelService::Service {
 public:
  explicit Model(FakeServer* fake) : fake_(fake) {}
  grpc::Status GetModel(grpc::ServerContext* /*context*/, const v1::GetModelRequest* /*request*/,
                        v1::GetModelResponse* response) override {
    *response = fake_->answers.model;
    return grpc::Status::OK;
  }
  grpc::Status Tokenize(grpc::ServerContext* /*context*/, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    fake_->requests.tokenize = *request;
    *response = fake_->answers.tokenize;
    return grpc::Status::OK;
  }

 private:
  FakeServer* fake_;
};

class FakeServer::Cluster final : public v1::ClusterService::Service {
 public:
  explicit Cluster(FakeServer* fake) : fake_(fake) {}
  grpc::Status GetCluster(grpc::ServerContext* /*context*/,
                          const v1::GetClusterRequest* /*request*/,
                          v1::GetClusterResponse* response) override {
    *response = fake_->answers.look ? fake_->answers.look() : fake_->answers.cluster;
    return fake_->answers.status;
  }
  grpc::Status Rebalance(grpc::ServerContext* /*context*/, const v1::RebalanceRequest* request,
                         v1::RebalanceResponse* response) override {
    fake_->requests.rebalance = *request;
    *response = fake_->answers.rebalance;
    return fake_->answers.status;
  }
  grpc::Status Drain(grpc::ServerContext* /*context*/, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override {
    fake_->requests.drain = *request;
    *response = fake_->answers.drain;
    return fake_->answers.status;
  }

 private:
  FakeServer* fake_;
};

FakeServer::FakeServer(const std::string& address) {
  services_.push_back(std::make_unique<Generation>(this));
  services_.push_back(std::make_unique<Classification>(this));
  services_.push_back(std::make_unique<Model>(this));
  services_.push_back(std::make_unique<Cluster>(this));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  for (const auto& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
  CONCLAVE_CHECK(server_ != nullptr);
  address_ = address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  SetServing(true);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

void FakeServer::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

}  // namespace conclave::client
