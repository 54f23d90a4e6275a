#ifndef CONCLAVE_CLIENT_CLIENT_H_
#define CONCLAVE_CLIENT_CLIENT_H_

// Calls a Conclave server. A whole program:
//
//   #include <iostream>
//   #include "client/client.h"
//
//   int main() {
//     conclave::client::Client client("127.0.0.1:50051");
//     conclave::v1::GenerateRequest request;
//     request.mutable_prompt()->set_text("The capital of France is");
//     request.mutable_stop()->set_max_tokens(32);
//     const auto finish = client.Generate(request, [](const conclave::v1::GenerateResponse& part) {
//       std::cout << part.text() << std::flush;
//     });
//     if (!finish.ok()) std::cerr << finish.status().ToString() << "\n";
//     return finish.ok() ? 0 : 1;
//   }
//
// Statuses carry the server's code and message. When the server cannot be reached: UNAVAILABLE.

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "proto/conclave/v1/model.grpc.pb.h"

namespace conclave::base {
struct ChannelSecurity;
}  // namespace conclave::base

namespace conclave::client {

// Ends calls before they are done. Thread-safe.
class Cancellation {
 public:
  // Calls that run, and those made later, end with CANCELLED.
  void Cancel();
  bool cancelled() const;

 private:
  friend class Call;
  void Attach(grpc::ClientContext* context);
  void Detach(grpc::ClientContext* context);

  mutable absl::Mutex mutex_;  // guards both fields below
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> running_;
};

struct CallOptions {
  // From the start of the call; past it, it ends with DEADLINE_EXCEEDED.
  absl::Duration timeout = absl::InfiniteDuration();
  // Optional, not owned: must outlive the call.
  Cancellation* cancellation = nullptr;
};

// Thread-safe; one connection, shared by all calls.
class Client {
 public:
  // `server` is HOST:PORT. Plaintext, without a key. Connects when the first call is made. With
  // `retry`, calls that generate or classify are made again, three times at most, while the server
  // answers UNAVAILABLE before it has answered anything else
  // (proto/conclave/v1/service_config.json).
  explicit Client(const std::string& server, bool retry = true);
  // The same with TLS, a certificate, an API key, as base/tls.h says. Errors are those of files.
  static absl::StatusOr<Client> Connect(const std::string& server,
                                        const base::ChannelSecurity& security, bool retry = true);

  // `on_part` is called on this thread for each part of the stream, as it arrives, the last one
  // (which carries `finish`) included.
  absl::StatusOr<v1::Finish> Generate(
      const v1::GenerateRequest& request,
      const std::function<void(const v1::GenerateResponse&)>& on_part,
      const CallOptions& options = {});
  // The same for the events of a chat.
  absl::StatusOr<v1::ChatFinish> Chat(const v1::ChatRequest& request,
                                      const std::function<void(const v1::ChatResponse&)>& on_event,
                                      const CallOptions& options = {});
  absl::StatusOr<v1::GenerateBatchResponse> GenerateBatch(const v1::GenerateBatchRequest& request,
                                                          const CallOptions& options = {});

  absl::StatusOr<v1::ClassifySequenceResponse> ClassifySequence(
      const v1::ClassifySequenceRequest& request, const CallOptions& options = {});
  absl::StatusOr<v1::ClassifyTokensResponse> ClassifyTokens(
      const v1::ClassifyTokensRequest& request, const CallOptions& options = {});

  absl::StatusOr<v1::ScoreLabelsResponse> ScoreLabels(const v1::ScoreLabelsRequest& request,
                                                      const CallOptions& options = {});

  absl::StatusOr<v1::GetModelResponse> GetModel(const CallOptions& options = {});
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                const CallOptions& options = {});
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    const CallOptions& options = {});
  absl::StatusOr<v1::GetClusterResponse> GetCluster(const CallOptions& options = {});
  absl::StatusOr<v1::RebalanceResponse> Rebalance(const v1::RebalanceRequest& request,
                                                  const CallOptions& options = {});

  absl::StatusOr<v1::DrainResponse> Drain(const v1::DrainRequest& request,
                                          const CallOptions& options = {});

  // grpc.health.v1: whether requests are accepted now.
  absl::StatusOr<bool> Serving(const CallOptions& options = {});

 private:
  explicit Client(std::shared_ptr<grpc::Channel> channel) : channel_(std::move(channel)) {}

  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CLIENT_H_
