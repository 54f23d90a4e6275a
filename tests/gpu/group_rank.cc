#include "tests/gpu/group_rank.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <thread>

#include "base/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "model/checkpoint.h"
#include "worker/nccl_communicator.h"

namespace conclave::gpu {
namespace {

constexpr int kBlockTokens = 16;

// Slots for the most rows that a rank dispatches: a power of two, as the coordinator's.
int BucketOf(const std::vector<internal::v1::StepPlan>& plans, int tp) {
  int most = 1;
  for (const internal::v1::StepPlan& plan : plans) {
    int rows = 0;
    for (const auto& chunk : plan.chunks()) rows += std::max(1, chunk.tokens_size());
    most = std::max(most, rows);
  }
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>((most + tp - 1) / tp)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GroupRank>> GroupRank::Create(const GroupRankOptions& options,
                                                             worker::Rendezvous& rendezvous) {
  std::unique_ptr<GroupRank> rank(new GroupRank);
  RETURN_IF_ERROR(rank->Load(options, rendezvous));
  return rank;
}

GroupRank::~GroupRank() = default;

absl::Status GroupRank::Load(const GroupRankOptions& options, worker::Rendezvous& rendezvous) {
  shape_ = options.shape;
  rank_ = options.rank;
  const model::ModelSource source = {.dir = options.dir, .random = options.random};
  ASSIGN_OR_RETURN(config_, model::LoadConfig(source));
  RETURN_IF_ERROR(model::CheckShape(config_, shape_));
  ASSIGN_OR_RETURN(auto checkpoint, model::OpenCheckpoint(source, config_));
  placement_ = model::BalancedPlacement(config_, shape_.world());
  limits_.max_step_tokens = options.max_step_tokens;
  limits_.max_sequences = options.max_sequences;
  limits_.full_blocks = options.max_tokens / kBlockTokens + options.max_sequences;
  limits_.sliding_blocks = limits_.full_blocks;

  const int share = (options.max_step_tokens + shape_.tp - 1) / shape_.tp;
  kernels::CudaOptions cuda;
  cuda.max_sequences = options.max_sequences;
  cuda.max_step_tokens = options.max_step_tokens;
  cuda.max_expert_copies = std::max(options.max_step_tokens, share * shape_.world());
  cuda.max_step_blocks = 2 * int64_t{limits_.full_blocks};
  cuda.record_steps = options.record_steps;
  const model::Range kv_heads = model::KvHeadRange(config_, shape_.tp, shape_.tp_rank(rank_));
  ASSIGN_OR_RETURN(auto ops, kernels::cuda::CudaOps::Create(config_, kv_heads.size(), cuda));
  RETURN_IF_ERROR(Connect(options, ops->stream(), rendezvous));
  ops_ = std::move(ops);

  worker::WeightsRequest request;
  request.shape = shape_;
  request.rank = rank_;
  request.placement = &placement_;
  request.heads = options.heads;
  request.threads =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / shape_.world());
  ASSIGN_OR_RETURN(weights_, LoadRankWeights(config_, std::move(checkpoint), request, *ops_,
                                             [](int64_t, int64_t) { return true; }));
  worker::TransformerOptions transformer;
  transformer.shape = shape_;
  transformer.rank = rank_;
  transformer.max_step_tokens = limits_.max_step_tokens;
  transformer.max_sequences = limits_.max_sequences;
  transformer.block_tokens = kBlockTokens;
  transformer.full_blocks = limits_.full_blocks;
  transformer.sliding_blocks = limits_.sliding_blocks;
  worker::Communicator* const group = shape_.tp == 1   ? nullptr
                                      : shape_.dp == 1 ? world_.get()
                                                       : tp_group_.get();
  ASSIGN_OR_RETURN(transformer_,
                   worker::Transformer::Create(config_, *weights_, placement_, transformer, *ops_,
                                               world_.get(), group));
  return absl::OkStatus();
}

absl::Status GroupRank::Connect(const GroupRankOptions& options, void* stream,
                                worker::Rendezvous& rendezvous) {
  if (shape_.world() == 1) return absl::OkStatus();
  worker::NcclOptions nccl;
  nccl.stream = stream;
  nccl.direct_bytes = options.direct_bytes;
  ASSIGN_OR_RETURN(world_, worker::ConnectNccl(options.epoch + "world", rank_, shape_.world(),
                                               rendezvous, nccl));
  if (shape_.tp == 1 || shape_.dp == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(tp_group_,
                   worker::ConnectNccl(fmt::format("{}tp{}", options.epoch, shape_.dp_rank(rank_)),
                                       shape_.tp_rank(rank_), shape_.tp, rendezvous, nccl));
  return absl::OkStatus();
}

worker::SequenceTable GroupRank::MakeTable() const {
  worker::SequenceTable::Limits limits;
  limits.max_sequences = limits_.max_sequences;
  limits.max_step_tokens = limits_.max_step_tokens;
  limits.vocab_size = config_.vocab_size;
  limits.context_length = config_.context_length;
  limits.num_layers = config_.num_layers;
  limits.experts_per_token = config_.experts_per_token;
  limits.num_experts = config_.num_experts;
  limits.sliding_window = config_.sliding_window;
  limits.block_tokens = kBlockTokens;
  limits.full_blocks = limits_.full_blocks;
  limits.sliding_blocks = limits_.sliding_blocks;
  for (const worker::HeadWeights& head : weights_->heads) {
    limits.head_labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  return worker::SequenceTable(limits);
}

absl::StatusOr<std::vector<worker::TestResult>> GroupRank::Run(
    const std::vector<worker::TestRequest>& requests, int chunk, internal::v1::ExchangeMode mode) {
  // Plans do not depend on what is sampled: every rank makes those of all groups.
  std::vector<worker::GroupDriver> groups(shape_.dp, worker::GroupDriver(config_, limits_, chunk));
  for (size_t i = 0; i < requests.size(); ++i) groups[i % shape_.dp].Add(requests[i]);
  worker::SequenceTable table = MakeTable();
  worker::GroupDriver& mine = groups[shape_.dp_rank(rank_)];
  while (!std::all_of(groups.begin(), groups.end(), [](const auto& g) { return g.Done(); })) {
    std::vector<internal::v1::StepPlan> plans;
    for (worker::GroupDriver& group : groups) plans.push_back(group.Next());
    ASSIGN_OR_RETURN(const worker::ResolvedStep step, table.Apply(plans[shape_.dp_rank(rank_)]));
    ASSIGN_OR_RETURN(const worker::StepOutput output,
                     transformer_->Step(step, mode, BucketOf(plans, shape_.tp)));
    for (worker::Communicator* communicator : {world_.get(), tp_group_.get()}) {
      if (communicator != nullptr) RETURN_IF_ERROR(communicator->Check());
    }
    mine.Absorb(output);
    ++steps_;
  }
  return mine.results();
}

}  // namespace conclave::gpu
