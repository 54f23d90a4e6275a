#include "worker/rank_plan.h"

#include <fmt/format.h>

#include "base/status_macros.h"

namespace conclave::worker {
namespace {

// Far above any plan; keeps sums and products of sizes within int.
constexpr uint32_t kMaxSize = 1 << 24;

// A size as the forward pass counts it.
absl::StatusOr<int> Positive(uint32_t value, const char* what) {
  if (value < 1 || value > kMaxSize) {
    return absl::InvalidArgumentError(fmt::format("assignment: {} is {}", what, value));
  }
  return static_cast<int>(value);
}

absl::StatusOr<model::ParallelShape> ParseShape(const internal::v1::Assignment& assignment,
                                                const model::Config& config) {
  const uint64_t world = uint64_t{assignment.dp()} * assignment.tp();
  if (world < 1 || world > static_cast<uint64_t>(config.num_experts) ||
      assignment.rank() >= world) {
    return absl::InvalidArgumentError(
        fmt::format("assignment: rank {} of dp {} x tp {} with {} experts", assignment.rank(),
                    assignment.dp(), assignment.tp(), config.num_experts));
  }
  const model::ParallelShape shape = {.dp = static_cast<int>(assignment.dp()),
                                      .tp = static_cast<int>(assignment.tp())};
  RETURN_IF_ERROR(model::CheckShape(config, shape));
  return shape;
}

absl::StatusOr<std::vector<int>> ParseRanks(const internal::v1::ExpertRanks& holders, int world) {
  std::vector<int> ranks;
  for (uint32_t rank : holders.ranks()) {
    const bool ascending = ranks.empty() || static_cast<int64_t>(rank) > ranks.back();
    if (rank >= static_cast<uint32_t>(world) || !ascending) {
      return absl::InvalidArgumentError(
          fmt::format("rank {} is out of order or not below {}", rank, world));
    }
    ranks.push_back(static_cast<int>(rank));
  }
  if (ranks.empty()) return absl::InvalidArgumentError("no rank holds it");
  return ranks;
}

absl::StatusOr<model::Placement> ParsePlacement(const internal::v1::Placement& placement, int world,
                                                const model::Config& config) {
  if (placement.layers_size() != config.num_layers) {
    return absl::InvalidArgumentError(fmt::format("placement: {} layers, the model has {}",
                                                  placement.layers_size(), config.num_layers));
  }
  model::Placement parsed;
  parsed.world = world;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const internal::v1::LayerPlacement& experts = placement.layers(layer);
    if (experts.experts_size() != config.num_experts) {
      return absl::InvalidArgumentError(
          fmt::format("placement: layer {} has {} experts, the model {}", layer,
                      experts.experts_size(), config.num_experts));
    }
    model::LayerPlacement& out = parsed.layers.emplace_back();
    for (int expert = 0; expert < config.num_experts; ++expert) {
      absl::StatusOr<std::vector<int>> ranks = ParseRanks(experts.experts(expert), world);
      if (!ranks.ok()) {
        return absl::InvalidArgumentError(fmt::format("placement: layer {}, expert {}: {}", layer,
                                                      expert,
                                                      std::string(ranks.status().message())));
      }
      out.ranks_of_expert.push_back(*std::move(ranks));
    }
  }
  return parsed;
}

}  // namespace

absl::StatusOr<RankPlan> ParseAssignment(const internal::v1::Assignment& assignment,
                                         const model::Config& config) {
  RankPlan plan;
  ASSIGN_OR_RETURN(plan.options.shape, ParseShape(assignment, config));
  ASSIGN_OR_RETURN(plan.placement,
                   ParsePlacement(assignment.placement(), plan.options.shape.world(), config));
  plan.options.rank = static_cast<int>(assignment.rank());
  const internal::v1::CacheShape& cache = assignment.cache();
  ASSIGN_OR_RETURN(plan.options.max_step_tokens,
                   Positive(assignment.max_step_tokens(), "max_step_tokens"));
  ASSIGN_OR_RETURN(plan.options.max_sequences,
                   Positive(cache.max_sequences(), "cache.max_sequences"));
  ASSIGN_OR_RETURN(plan.options.block_tokens, Positive(cache.block_tokens(), "cache.block_tokens"));
  ASSIGN_OR_RETURN(plan.options.full_blocks, Positive(cache.full_blocks(), "cache.full_blocks"));
  ASSIGN_OR_RETURN(plan.options.sliding_blocks,
                   Positive(cache.sliding_blocks(), "cache.sliding_blocks"));
  for (const internal::v1::HeadSource& head : assignment.heads()) {
    plan.heads.emplace_back(head.name(), head.dir());
  }
  return plan;
}

SequenceTable::Limits TableLimits(const model::Config& config, const TransformerOptions& options,
                                  std::vector<int> head_labels) {
  SequenceTable::Limits limits;
  limits.max_sequences = options.max_sequences;
  limits.max_step_tokens = options.max_step_tokens;
  limits.vocab_size = config.vocab_size;
  limits.context_length = config.context_length;
  limits.num_layers = config.num_layers;
  limits.experts_per_token = config.experts_per_token;
  limits.num_experts = config.num_experts;
  limits.sliding_window = config.sliding_window;
  limits.block_tokens = options.block_tokens;
  limits.full_blocks = options.full_blocks;
  limits.sliding_blocks = options.sliding_blocks;
  limits.head_labels = std::move(head_labels);
  return limits;
}

}  // namespace conclave::worker
