#include <cmath>
#include <string_view>

#include "base/check.h"
#include "model/config.h"
#include "model/placement.h"
#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

// What the other rooms take for granted.
void CheckConfig(const model::Config& config) {
  CONCLAVE_CHECK(static_cast<int>(config.layer_types.size()) == config.num_layers);
  CONCLAVE_CHECK(config.experts_per_token >= 1 && config.experts_per_token <= config.num_experts);
  CONCLAVE_CHECK(config.num_kv_heads >= 1 && config.num_heads % config.num_kv_heads == 0);
  CONCLAVE_CHECK(config.head_dim >= 2 && config.head_dim % 2 == 0);
  CONCLAVE_CHECK(config.hidden_size >= 1 && config.intermediate_size >= 1);
  CONCLAVE_CHECK(config.vocab_size >= 1 && config.context_length >= 1);
  CONCLAVE_CHECK(config.sliding_window >= 1);
  for (int id : config.eos_token_ids) CONCLAVE_CHECK(id >= 0 && id < config.vocab_size);
  for (float frequency : model::RopeInverseFrequencies(config.rope, config.head_dim)) {
    CONCLAVE_CHECK(std::isfinite(frequency));
  }
  CONCLAVE_CHECK(std::isfinite(config.rope.attention_factor));
  const bool classifies = config.architecture != model::Architecture::kCausalLm;
  CONCLAVE_CHECK(config.head.has_value() == classifies);
  if (classifies) CONCLAVE_CHECK(!config.head->labels.empty());
}

// Every shape that is accepted can be planned.
void CheckPlacements(const model::Config& config) {
  for (const model::ParallelShape shape :
       {model::ParallelShape{1, 1}, model::ParallelShape{2, 2}, model::ParallelShape{3, 1}}) {
    if (!model::CheckShape(config, shape).ok()) continue;
    const model::Placement placement = model::BalancedPlacement(config, shape.world());
    CONCLAVE_CHECK(static_cast<int>(placement.layers.size()) == config.num_layers);
  }
}

}  // namespace

int FuzzConfig(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = model::ParseConfig(text, "config.json");
  if (!config.ok()) {
    CONCLAVE_CHECK(config.status().code() == absl::StatusCode::kInvalidArgument);
    CONCLAVE_CHECK(config.status().message().substr(0, 12) == "config.json:");
    return 0;
  }
  CheckConfig(*config);
  // Placements of 1024 layers with 4096 experts are right, and slow.
  if (config->num_layers * config->num_experts <= 4096) CheckPlacements(*config);
  return 0;
}

}  // namespace conclave::tests
