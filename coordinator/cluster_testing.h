#ifndef CONCLAVE_COORDINATOR_CLUSTER_TESTING_H_
#define CONCLAVE_COORDINATOR_CLUSTER_TESTING_H_

// A small model on paper, and a worker's stream that only records.

#include <optional>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "coordinator/cluster_options.h"
#include "coordinator/worker_link.h"
#include "model/config.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Records what the worker is sent. Thread-safe.
class RecordingLink : public WorkerLink {
 public:
  void Send(internal::v1::CoordinatorMessage message) override {
    absl::MutexLock lock(&mutex_);
    messages_.push_back(std::move(message));
  }
  void Close() override {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  void Abort() override {
    absl::MutexLock lock(&mutex_);
    aborted_ = true;
  }

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }
  bool aborted() const {
    absl::MutexLock lock(&mutex_);
    return aborted_;
  }
  std::vector<internal::v1::CoordinatorMessage> messages() const {
    absl::MutexLock lock(&mutex_);
    return messages_;
  }
  // The last Assignment, if there was one.
  std::optional<internal::v1::Assignment> assignment() const {
    absl::MutexLock lock(&mutex_);
    for (auto message = messages_.rbegin(); message != messages_.rend(); ++message) {
      if (message->has_assignment()) return message->assignment();
    }
    return std::nullopt;
  }
  // Epochs it was told are over.
  std::vector<uint64_t> ended_epochs() const {
    absl::MutexLock lock(&mutex_);
    std::vector<uint64_t> epochs;
    for (const auto& message : messages_) {
      if (message.has_end_epoch()) epochs.push_back(message.end_epoch().epoch());
    }
    return epochs;
  }

 private:
  mutable absl::Mutex mutex_;  // guards all below
  std::vector<internal::v1::CoordinatorMessage> messages_;
  bool closed_ = false;
  bool aborted_ = false;
};

// Two layers, four experts in each, contiguous over the ranks.
inline ClusterOptions SmallClusterOptions(const model::ParallelShape& shape) {
  ClusterOptions options;
  options.shape = shape;
  options.model_dir = "/models/small";
  model::Config& config = options.config;
  config.num_layers = 2;
  config.layer_types = {model::LayerType::kSliding, model::LayerType::kFull};
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.hidden_size = 64;
  config.intermediate_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = 4;
  config.head_dim = 16;
  config.vocab_size = 1000;
  config.sliding_window = 16;
  config.context_length = 256;
  options.placement.world = shape.world();
  model::LayerPlacement layer;
  for (int expert = 0; expert < config.num_experts; ++expert) {
    layer.ranks_of_expert.push_back({expert * shape.world() / config.num_experts});
  }
  options.placement.layers = {layer, layer};
  options.weight_bytes.assign(shape.world(), 1 << 20);
  options.expert_bytes = 1 << 16;
  options.model_bytes = 1 << 20;
  options.max_step_tokens = 64;
  options.prefill_chunk = 32;
  options.max_running = 8;
  return options;
}

inline internal::v1::WorkerMessage RegisterMessage(int64_t pid) {
  internal::v1::WorkerMessage message;
  internal::v1::Register& registration = *message.mutable_register_();
  registration.set_protocol_version(internal::v1::PROTOCOL_VERSION_CURRENT);
  registration.set_device("cpu");
  registration.set_kernel("cpu_mxfp4_scalar");
  registration.set_total_memory_bytes(uint64_t{8} << 30);
  registration.set_free_memory_bytes(uint64_t{4} << 30);
  registration.set_host("a");
  registration.set_host_id("a");
  registration.set_pid(pid);
  return message;
}

inline internal::v1::WorkerMessage ReadyMessage(uint64_t epoch) {
  internal::v1::WorkerMessage message;
  message.mutable_ready()->set_epoch(epoch);
  message.mutable_ready()->set_weight_bytes(1 << 20);
  message.mutable_ready()->set_kv_bytes(1 << 16);
  message.mutable_ready()->set_resident_format("mxfp4");
  return message;
}

inline internal::v1::WorkerMessage HeartbeatMessage(uint64_t epoch) {
  internal::v1::WorkerMessage message;
  message.mutable_heartbeat()->set_epoch(epoch);
  message.mutable_heartbeat()->set_free_memory_bytes(uint64_t{4} << 30);
  return message;
}

inline internal::v1::WorkerMessage LeaveMessage() {
  internal::v1::WorkerMessage message;
  message.mutable_leave();
  return message;
}

inline internal::v1::WorkerMessage FaultMessage(uint64_t epoch, const std::string& why) {
  internal::v1::WorkerMessage message;
  message.mutable_fault()->set_epoch(epoch);
  message.mutable_fault()->set_message(why);
  return message;
}

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_TESTING_H_
