#include "coordinator/assignment.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "model/memory_plan.h"

namespace conclave::coordinator {
namespace {

constexpr int kCpuValueBytes = 4;
constexpr int kCudaValueBytes = 2;
constexpr int kCpuPartialBytes = 8;
constexpr int kCudaPartialBytes = 4;

// What a worker reports is checked like any input.
int64_t Clamped(uint64_t bytes) {
  return static_cast<int64_t>(
      std::min<uint64_t>(bytes, uint64_t{1} << 60));  // an exbibyte, so that sums stay in range
}

internal::v1::Placement ToProto(const model::Placement& placement) {
  internal::v1::Placement proto;
  for (const model::LayerPlacement& layer : placement.layers) {
    internal::v1::LayerPlacement* out = proto.add_layers();
    for (const std::vector<int>& ranks : layer.ranks_of_expert) {
      out->add_experts()->mutable_ranks()->Add(ranks.begin(), ranks.end());
    }
  }
  return proto;
}

bool WeightsArePrivate(const ClusterOptions& options) {
  return options.copies_weights || options.random_weights.has_value();
}

MemoryNeeds Needs(const ClusterOptions& options, bool cuda) {
  const model::Config& config = options.config;
  const int value_bytes = cuda ? kCudaValueBytes : kCpuValueBytes;
  const int64_t block_layer_bytes =
      kBlockTokens * model::KvBytesPerTokenLayer(config, options.shape.tp, value_bytes);
  int labels = 0;
  for (const Head& head : options.heads) {
    labels = std::max(labels, static_cast<int>(head.config.labels.size()));
  }
  const model::ActivationSizes sizes = {
      .max_step_tokens = options.max_step_tokens,
      .max_sequences = options.max_running,
      .activation_bytes = value_bytes,
      .partial_bytes = cuda ? kCudaPartialBytes : kCpuPartialBytes,
      .labels = labels};
  return {
      .weight_bytes = options.weight_bytes,
      .weights_are_private = WeightsArePrivate(options),
      .model_bytes = options.model_bytes,
      .activation_bytes = model::PlanActivations(config, options.shape, sizes),
      .full_block_bytes = block_layer_bytes * config.num_layers_of(model::LayerType::kFull),
      .sliding_block_bytes = block_layer_bytes * config.num_layers_of(model::LayerType::kSliding),
      .max_running = options.max_running,
      .per_sequence = PeakBlocks(config.context_length, options.prefill_chunk,
                                 std::max(1, config.sliding_window)),
      .decoding_sliding =
          PeakSlidingBlocks(config.context_length, 1, std::max(1, config.sliding_window))};
}

RankMemory MemoryOf(const ClusterOptions& options, const ClusterMember& member) {
  const bool cuda = member.registration.device() == "cuda";
  int64_t held = Clamped(member.kv_bytes);
  if (cuda || WeightsArePrivate(options)) held += Clamped(member.weight_bytes);
  return {.host_id = member.registration.host_id(),
          .cuda = cuda,
          .total_bytes = Clamped(member.registration.total_memory_bytes()),
          .free_bytes = Clamped(member.free_memory_bytes),
          .held_bytes = held};
}

}  // namespace

internal::v1::Assignment MakeAssignment(const ClusterOptions& options, uint64_t epoch,
                                        const internal::v1::CacheShape& cache, bool continues) {
  internal::v1::Assignment assignment;
  assignment.set_continues(continues);
  assignment.set_epoch(epoch);
  assignment.set_dp(options.shape.dp);
  assignment.set_tp(options.shape.tp);
  assignment.set_model_dir(options.model_dir);
  for (const Head& head : options.heads) {
    internal::v1::HeadSource* source = assignment.add_heads();
    source->set_name(head.name);
    source->set_dir(head.dir);
  }
  *assignment.mutable_placement() = ToProto(options.placement);
  *assignment.mutable_cache() = cache;
  assignment.set_max_step_tokens(options.max_step_tokens);
  assignment.set_require_mxfp4(options.require_mxfp4);
  assignment.set_allow_forced_routing(options.allow_forced_routing);
  if (options.random_weights.has_value()) {
    internal::v1::RandomWeights* random = assignment.mutable_random_weights();
    random->set_seed(options.random_weights->seed);
    random->set_layers(static_cast<uint32_t>(options.random_weights->layers));
  }
  return assignment;
}

absl::StatusOr<internal::v1::CacheShape> FitMembers(const ClusterOptions& options,
                                                    std::span<const ClusterMember* const> by_rank) {
  std::vector<RankMemory> memory;
  for (const ClusterMember* member : by_rank) memory.push_back(MemoryOf(options, *member));
  const bool cuda = !memory.empty() && memory.front().cuda;
  return FitMemory(Needs(options, cuda), memory, options.kv_cache_bytes);
}

absl::Status FitMoves(const ClusterOptions& options, std::span<const ClusterMember* const> by_rank,
                      std::span<const RankMoves> moves) {
  std::vector<RankMemory> memory;
  std::vector<int64_t> more;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    memory.push_back(MemoryOf(options, *by_rank[rank]));
    const RankMoves& move = moves[rank];
    const int experts = std::max(0, move.gained - move.dropped) + move.most_in_a_layer;
    const bool own = memory.back().cuda || WeightsArePrivate(options);
    more.push_back(own ? experts * options.expert_bytes : 0);
  }
  return CheckRoom(memory, more);
}

}  // namespace conclave::coordinator
