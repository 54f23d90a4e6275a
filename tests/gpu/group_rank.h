#ifndef CONCLAVE_TESTS_GPU_GROUP_RANK_H_
#define CONCLAVE_TESTS_GPU_GROUP_RANK_H_

// One rank of a world of GPU ranks without a service: what a worker process holds in an epoch, on
// the caller's thread.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_ops.h"
#include "model/config.h"
#include "model/model_source.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/communicator.h"
#include "worker/group_driver.h"
#include "worker/harness_options.h"
#include "worker/sequence_table.h"
#include "worker/transformer.h"
#include "worker/weights.h"

namespace conclave::gpu {

struct GroupRankOptions {
  std::string dir;
  std::optional<model::RandomWeights> random = std::nullopt;
  std::vector<std::pair<std::string, std::string>> heads = {};  // name, folder
  model::ParallelShape shape;
  int rank = 0;
  std::string epoch;  // prefix of the communicators' names
  int max_step_tokens = 256;
  int max_sequences = 16;
  int max_tokens = 1024;     // of all sequences of a group
  bool record_steps = true;  // as of CudaOptions
  int64_t direct_bytes = 0;  // as of NcclOptions
};

class GroupRank {
 public:
  static absl::StatusOr<std::unique_ptr<GroupRank>> Create(const GroupRankOptions& options,
                                                           worker::Rendezvous& rendezvous);
  ~GroupRank();

  const model::Config& config() const { return config_; }
  // Executed by all Runs.
  int64_t steps() const { return steps_; }
  // Graphs of steps that are held.
  int recorded() const { return ops_->recorded_steps(); }
  void ForgetRecorded() { ops_->ForgetRecorded(); }

  // Runs all requests to their end, spread over the groups in turn, prompts in chunks of `chunk`;
  // every rank makes the same call. Returns those of this rank's group, in their order, on its tp
  // rank 0; nothing of use on the others.
  absl::StatusOr<std::vector<worker::TestResult>> Run(
      const std::vector<worker::TestRequest>& requests, int chunk, internal::v1::ExchangeMode mode);

 private:
  GroupRank() = default;
  absl::Status Load(const GroupRankOptions& options, worker::Rendezvous& rendezvous);
  absl::Status Connect(const GroupRankOptions& options, void* stream,
                       worker::Rendezvous& rendezvous);
  worker::SequenceTable MakeTable() const;

  model::Config config_;
  model::Placement placement_;
  model::ParallelShape shape_;
  int rank_ = 0;
  int64_t steps_ = 0;
  worker::HarnessOptions limits_;
  // Graphs that ops recorded hold on to the communicators, which go last.
  std::unique_ptr<worker::Communicator> world_;
  std::unique_ptr<worker::Communicator> tp_group_;  // null where the world is the group
  std::unique_ptr<kernels::cuda::CudaOps> ops_;
  std::optional<worker::RankWeights> weights_;
  std::unique_ptr<worker::Transformer> transformer_;
};

}  // namespace conclave::gpu

#endif  // CONCLAVE_TESTS_GPU_GROUP_RANK_H_
