#ifndef CONCLAVE_TESTS_GPU_OFFLINE_MODEL_H_
#define CONCLAVE_TESTS_GPU_OFFLINE_MODEL_H_

// The worker's forward pass without a service: one rank, its weights and its cache on one device,
// on the caller's thread.
//
//   ASSIGN_OR_RETURN(auto model, OfflineModel::Create({.dir = dir, .device = Device::kCuda}));
//   ASSIGN_OR_RETURN(const Trace trace, model->Run({.ids = ids, .forced = reference.expert_ids}));

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/placement.h"
#include "tests/gpu/device_ops.h"
#include "worker/group_driver.h"
#include "worker/harness_options.h"
#include "worker/sequence_table.h"
#include "worker/transformer.h"
#include "worker/weights.h"

namespace conclave::gpu {

using worker::TestRequest;
using worker::TestResult;
using Trace = worker::Transformer::Trace;

struct OfflineOptions {
  std::string dir;
  Device device = Device::kCpu;
  std::vector<std::pair<std::string, std::string>> heads = {};  // name, folder
  int threads = 1;                                              // as of DeviceOptions
  int max_step_tokens = 256;
  int max_sequences = 8;
  int max_tokens = 256;      // of all sequences together
  bool record_steps = true;  // as of CudaOptions
};

struct TraceRequest {
  std::vector<int> ids;
  int chunk = 0;  // tokens in a step; 0: all
  // [layers][rows, k], -1 where the router decides; empty: nothing is forced.
  std::vector<std::vector<int32_t>> forced = {};
  // As of Transformer::TraceStep.
  std::vector<std::vector<float>> layer_inputs = {};
};

class OfflineModel {
 public:
  static absl::StatusOr<std::unique_ptr<OfflineModel>> Create(const OfflineOptions& options);

  const model::Config& config() const { return config_; }
  const worker::RankWeights& weights() const { return *weights_; }
  const kernels::KernelInfo& kernel() const { return ops_->info(); }

  // Trace of all rows of one sequence. INVALID_ARGUMENT when `request` does not fit the model.
  absl::StatusOr<Trace> Run(const TraceRequest& request);

  // All requests side by side to their end, prompts in chunks of `chunk`.
  absl::StatusOr<std::vector<TestResult>> Generate(const std::vector<TestRequest>& requests,
                                                   int chunk);

 private:
  OfflineModel() = default;
  absl::Status Load(const OfflineOptions& options);
  absl::Status Check(const TraceRequest& request) const;
  worker::SequenceTable MakeTable() const;

  model::Config config_;
  model::Placement placement_;
  worker::HarnessOptions limits_;
  std::unique_ptr<kernels::Ops> ops_;
  std::optional<worker::RankWeights> weights_;
  std::unique_ptr<worker::Transformer> transformer_;
};

}  // namespace conclave::gpu

#endif  // CONCLAVE_TESTS_GPU_OFFLINE_MODEL_H_
