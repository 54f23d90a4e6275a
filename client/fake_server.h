#ifndef CONCLAVE_CLIENT_FAKE_SERVER_H_
#define CONCLAVE_CLIENT_FAKE_SERVER_H_

// The public services with answers chosen by a test.
//
//   FakeServer server;
//   server.answers.cluster.set_epoch(7);
//   Client client(server.address());

#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "proto/conclave/v1/model.grpc.pb.h"

namespace conclave::client {

// Set between calls, not during one.
struct FakeAnswers {
  // Generate sends these and ends with `status`, or with `hang` waits until the call is cancelled.
  std::vector<v1::GenerateResponse> stream;
  bool hang = false;
  // Answers Generate in place of all that, on many threads at once; its requests are not kept.
  std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&,
                             grpc::ServerWriter<v1::GenerateResponse>&)>
      generate;
  // Every method fails with it when it is not OK (Generate after its stream).
  grpc::Status status;
  // Chat sends these and ends as Generate does, `hang` included.
  std::vector<v1::ChatResponse> chat;
  v1::ClassifySequenceResponse sequence;
  v1::ClassifyTokensResponse tokens;
  v1::ScoreLabelsResponse labels;
  v1::GetModelResponse model;
  v1::TokenizeResponse tokenize;
  v1::GetClusterResponse cluster;
  // Answers GetCluster in place of it.
  std::function<v1::GetClusterResponse()> look;
  v1::RebalanceResponse rebalance;
  v1::DrainResponse drain;
};

// The last request of each kind.
struct FakeRequests {
  v1::GenerateRequest generate;
  v1::ChatRequest chat;
  v1::ClassifySequenceRequest sequence;
  v1::ClassifyTokensRequest tokens;
  v1::ScoreLabelsRequest labels;
  v1::TokenizeRequest tokenize;
  v1::RebalanceRequest rebalance;
  v1::DrainRequest drain;
};

class FakeServer {
 public:
  // Listens at `address`; port 0 takes a free one.
  explicit FakeServer(const std::string& address = "127.0.0.1:0");
  ~FakeServer();

  const std::string& address() const { return address_; }
  // grpc.health.v1, SERVING at first.
  void SetServing(bool serving);

  FakeAnswers answers;
  FakeRequests requests;

 private:
  class Generation;
  class Classification;
  class Model;
  class Cluster;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_FAKE_SERVER_H_
