#include "client/plan_report.h"

#include <fmt/format.h>

#include "base/status_macros.h"
#include "client/format.h"

namespace conclave::client {
namespace {

std::vector<uint32_t> ExpertsOf(const PlanReport& plan, size_t layer, int rank) {
  const std::vector<int> experts = plan.placement.layers[layer].ExpertsOf(rank);
  return {experts.begin(), experts.end()};
}

Json RankJson(const PlanReport& plan, int rank) {
  const model::RankBytes& bytes = plan.weights[rank];
  Json experts = Json::array();
  for (size_t layer = 0; layer < plan.placement.layers.size(); ++layer) {
    experts.push_back(ExpertsOf(plan, layer, rank));
  }
  return {{"rank", rank},
          {"dp_rank", plan.shape.dp_rank(rank)},
          {"tp_rank", plan.shape.tp_rank(rank)},
          {"bytes",
           {{"experts", bytes.experts},
            {"attention", bytes.attention},
            {"embedding", bytes.embedding},
            {"total", bytes.total()}}},
          {"kv_bytes_per_token", plan.kv_full + plan.kv_sliding},
          {"kv_bytes_per_token_full", plan.kv_full},
          {"kv_bytes_per_token_sliding", plan.kv_sliding},
          {"experts", std::move(experts)}};
}

std::string SizeTable(const PlanReport& plan) {
  Table table({"rank", "dp", "tp", "experts", "attention", "embedding", "total", "KV per token"});
  for (int rank = 0; rank < plan.shape.world(); ++rank) {
    const model::RankBytes& bytes = plan.weights[rank];
    table.AddRow({std::to_string(rank), std::to_string(plan.shape.dp_rank(rank)),
                  std::to_string(plan.shape.tp_rank(rank)), FormatBytes(bytes.experts),
                  FormatBytes(bytes.attention), FormatBytes(bytes.embedding),
                  FormatBytes(bytes.total()), FormatBytes(plan.kv_full + plan.kv_sliding)});
  }
  return table.ToString();
}

bool SameExperts(const PlanReport& plan, size_t a, size_t b) {
  return plan.placement.layers[a].ranks_of_expert == plan.placement.layers[b].ranks_of_expert;
}

// One row for each run of layers with the same placement; one column for each rank.
std::string ExpertMap(const PlanReport& plan) {
  std::vector<std::string> header = {"layers"};
  for (int rank = 0; rank < plan.shape.world(); ++rank) {
    header.push_back(fmt::format("rank {}", rank));
  }
  Table table(std::move(header));
  const size_t layers = plan.placement.layers.size();
  for (size_t begin = 0, end; begin < layers; begin = end) {
    end = begin + 1;
    while (end < layers && SameExperts(plan, begin, end)) ++end;
    std::vector<std::string> row = {end - begin == 1 ? fmt::format("{}", begin)
                                                     : fmt::format("{}-{}", begin, end - 1)};
    for (int rank = 0; rank < plan.shape.world(); ++rank) {
      row.push_back(FormatRanges(ExpertsOf(plan, begin, rank)));
    }
    table.AddRow(std::move(row));
  }
  return table.ToString();
}

}  // namespace

absl::StatusOr<PlanReport> MakePlan(const std::string& model_dir, const model::Config& config,
                                    const model::ParallelShape& shape, int bytes_per_kv_value) {
  PlanReport plan;
  plan.model_dir = model_dir;
  plan.shape = shape;
  plan.config = config;
  ASSIGN_OR_RETURN(const auto checkpoint, model::Checkpoint::Open(model_dir, plan.config));
  plan.layout = checkpoint->layout();
  plan.placement = model::BalancedPlacement(plan.config, shape.world());
  plan.weights = model::PlanWeights(plan.config, *checkpoint, shape, plan.placement);
  const int64_t kv = model::KvBytesPerTokenLayer(plan.config, shape.tp, bytes_per_kv_value);
  plan.kv_full = kv * plan.config.num_layers_of(model::LayerType::kFull);
  plan.kv_sliding = kv * plan.config.num_layers_of(model::LayerType::kSliding);
  return plan;
}

Json PlanJson(const PlanReport& plan) {
  Json ranks = Json::array();
  for (int rank = 0; rank < plan.shape.world(); ++rank) ranks.push_back(RankJson(plan, rank));
  return {{"model",
           {{"dir", plan.model_dir},
            {"architecture", std::string(model::ArchitectureName(plan.config.architecture))},
            {"layout", std::string(model::LayoutName(plan.layout))},
            {"layers", plan.config.num_layers},
            {"experts", plan.config.num_experts},
            {"experts_per_token", plan.config.experts_per_token},
            {"sliding_window", plan.config.sliding_window},
            {"context_length", plan.config.context_length}}},
          {"workers", plan.shape.world()},
          {"dp", plan.shape.dp},
          {"tp", plan.shape.tp},
          {"ranks", std::move(ranks)}};
}

std::string PlanText(const PlanReport& plan) {
  const model::Config& config = plan.config;
  std::string text = fmt::format(
      "{}: {}, {} layers, {} experts per layer ({} per token), {} files\n"
      "{} workers: dp {} x tp {}\n\n"
      "Bytes per rank\n{}",
      plan.model_dir, model::ArchitectureName(config.architecture), config.num_layers,
      config.num_experts, config.experts_per_token, model::LayoutName(plan.layout),
      plan.shape.world(), plan.shape.dp, plan.shape.tp, SizeTable(plan));
  if (plan.kv_sliding > 0) {
    text += fmt::format(
        "A token takes {} of KV for good and {} until it leaves the window of {} tokens.\n",
        FormatBytes(plan.kv_full), FormatBytes(plan.kv_sliding), config.sliding_window);
  }
  return text + fmt::format("\nExperts\n{}", ExpertMap(plan));
}

}  // namespace conclave::client
