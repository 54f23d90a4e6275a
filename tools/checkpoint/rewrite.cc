#include "tools/checkpoint/rewrite.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/bfloat16.h"
#include "model/config.h"
#include "model/mxfp4.h"
#include "tools/checkpoint/folder.h"
#include "tools/checkpoint/safetensors_writer.h"

namespace conclave::tools {
namespace {

using model::LayerTensors;
using model::TensorType;
using model::TensorView;
using nlohmann::json;

NewTensor Copy(std::string name, const TensorView& view) {
  return CopyOf(std::move(name), view.type, view.shape, {view.bytes});
}

// [E, rows, cols] in MXFP4 as bf16 [E, cols, rows].
NewTensor Transposed(std::string name, const TensorView& blocks, const TensorView& scales) {
  const int64_t rows = blocks.shape[1];
  const int64_t cols = blocks.shape[2] * model::kMxfp4BlockValues;
  const auto fill = [&blocks, &scales, rows, cols](int64_t offset, std::span<std::byte> out) {
    const auto* block_bytes = reinterpret_cast<const uint8_t*>(blocks.bytes.data());
    for (size_t i = 0; i < out.size(); i += sizeof(uint16_t)) {
      const int64_t index = (offset + static_cast<int64_t>(i)) / 2;
      const int64_t row = index % rows;
      const int64_t col = index / rows % cols;
      const int64_t expert = index / rows / cols;
      const int64_t block = (expert * rows + row) * blocks.shape[2] + col / 32;
      const uint16_t value = model::FloatToBf16(
          model::Mxfp4Value(block_bytes + block * model::kMxfp4BlockBytes,
                            static_cast<uint8_t>(scales.bytes[static_cast<size_t>(block)]),
                            static_cast<int>(col % model::kMxfp4BlockValues)));
      std::memcpy(&out[i], &value, sizeof(value));
    }
  };
  return {std::move(name), TensorType::kBf16, {blocks.shape[0], cols, rows}, fill};
}

void AddBf16Layer(const LayerTensors& layer, int index, std::vector<NewTensor>& out) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const auto copy = [&](const char* name, const TensorView& view) {
    if (!view.shape.empty()) out.push_back(Copy(prefix + name, view));
  };
  copy("input_layernorm.weight", layer.input_norm);
  copy("self_attn.q_proj.weight", layer.q_weight);
  copy("self_attn.q_proj.bias", layer.q_bias);
  copy("self_attn.k_proj.weight", layer.k_weight);
  copy("self_attn.k_proj.bias", layer.k_bias);
  copy("self_attn.v_proj.weight", layer.v_weight);
  copy("self_attn.v_proj.bias", layer.v_bias);
  copy("self_attn.o_proj.weight", layer.o_weight);
  copy("self_attn.o_proj.bias", layer.o_bias);
  copy("self_attn.sinks", layer.sinks);
  copy("post_attention_layernorm.weight", layer.post_norm);
  copy("mlp.router.weight", layer.router_weight);
  copy("mlp.router.bias", layer.router_bias);
  copy("mlp.experts.gate_up_proj_bias", layer.gate_up_bias);
  copy("mlp.experts.down_proj_bias", layer.down_bias);
  out.push_back(
      Transposed(prefix + "mlp.experts.gate_up_proj", layer.gate_up_blocks, layer.gate_up_scales));
  out.push_back(Transposed(prefix + "mlp.experts.down_proj", layer.down_blocks, layer.down_scales));
}

absl::Status WriteBf16(const RewriteOptions& options, const model::Config& config,
                       const model::Checkpoint& checkpoint) {
  if (config.original) {
    return absl::InvalidArgumentError(
        fmt::format("{}: its config.json is OpenAI's; Transformers' is wanted", options.in));
  }
  const model::ModelTensors& tensors = checkpoint.tensors();
  std::vector<NewTensor> out;
  out.push_back(Copy("model.embed_tokens.weight", tensors.embedding));
  out.push_back(Copy("model.norm.weight", tensors.final_norm));
  if (const model::HeadTensors* head = checkpoint.head(); head != nullptr) {
    out.push_back(Copy("score.weight", head->weight));
    if (!head->bias.shape.empty()) out.push_back(Copy("score.bias", head->bias));
  } else if (!config.tie_word_embeddings) {
    out.push_back(Copy("lm_head.weight", tensors.lm_head));
  }
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    AddBf16Layer(tensors.layers[i], static_cast<int>(i), out);
  }
  RETURN_IF_ERROR(
      WriteShards(options.out, std::move(out), options.shards, ShardNumbers::kSavePretrained));
  ASSIGN_OR_RETURN(json object, ReadJson(options.in + "/config.json"));
  object.erase("quantization_config");
  return WriteJson(options.out + "/config.json", object);
}

void AddOriginalLayer(const LayerTensors& layer, int index, std::vector<NewTensor>& out) {
  const std::string prefix = fmt::format("block.{}.", index);
  const auto copy = [&](const char* name, const TensorView& view) {
    out.push_back(Copy(prefix + name, view));
  };
  const auto join = [&](const char* name, const TensorView& q, const TensorView& k,
                        const TensorView& v) {
    std::vector<int64_t> shape = q.shape;
    shape[0] += k.shape[0] + v.shape[0];
    out.push_back(CopyOf(prefix + name, q.type, shape, {q.bytes, k.bytes, v.bytes}));
  };
  copy("attn.norm.scale", layer.input_norm);
  join("attn.qkv.weight", layer.q_weight, layer.k_weight, layer.v_weight);
  join("attn.qkv.bias", layer.q_bias, layer.k_bias, layer.v_bias);
  copy("attn.sinks", layer.sinks);
  copy("attn.out.weight", layer.o_weight);
  copy("attn.out.bias", layer.o_bias);
  copy("mlp.norm.scale", layer.post_norm);
  copy("mlp.gate.weight", layer.router_weight);
  copy("mlp.gate.bias", layer.router_bias);
  copy("mlp.mlp1_weight.blocks", layer.gate_up_blocks);
  copy("mlp.mlp1_weight.scales", layer.gate_up_scales);
  copy("mlp.mlp1_bias", layer.gate_up_bias);
  copy("mlp.mlp2_weight.blocks", layer.down_blocks);
  copy("mlp.mlp2_weight.scales", layer.down_scales);
  copy("mlp.mlp2_bias", layer.down_bias);
}

json OriginalConfig(const model::Config& config) {
  return {{"num_hidden_layers", config.num_layers},
          {"num_experts", config.num_experts},
          {"experts_per_token", config.experts_per_token},
          {"vocab_size", config.vocab_size},
          {"hidden_size", config.hidden_size},
          {"intermediate_size", config.intermediate_size},
          {"swiglu_limit", config.swiglu_limit},
          {"head_dim", config.head_dim},
          {"num_attention_heads", config.num_heads},
          {"num_key_value_heads", config.num_kv_heads},
          {"sliding_window", config.sliding_window},
          {"initial_context_length", static_cast<int>(config.rope.original_max_positions)},
          {"rope_theta", config.rope.theta},
          {"rope_scaling_factor", config.rope.factor},
          {"rope_ntk_alpha", config.rope.beta_slow},
          {"rope_ntk_beta", config.rope.beta_fast}};
}

// Everything that OpenAI's configuration leaves out must have the value that its reader assumes.
absl::Status CheckExpressible(const model::Config& config) {
  const json original = OriginalConfig(config);
  ASSIGN_OR_RETURN(const model::Config again, model::ParseConfig(original.dump(), "original"));
  const bool same =
      again.layer_types == config.layer_types && again.context_length == config.context_length &&
      again.rms_norm_eps == config.rms_norm_eps && again.swiglu_alpha == config.swiglu_alpha &&
      again.attention_bias == config.attention_bias &&
      again.tie_word_embeddings == config.tie_word_embeddings &&
      again.architecture == config.architecture && again.rope.yarn == config.rope.yarn &&
      again.rope.truncate == config.rope.truncate &&
      again.rope.attention_factor == config.rope.attention_factor;
  if (same) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "OpenAI's config.json has no word for one of: architecture, layer_types, context length, "
      "rms_norm_eps, swiglu_alpha, attention_bias, tie_word_embeddings, rope truncate or attention "
      "factor");
}

absl::Status WriteOriginal(const RewriteOptions& options, const model::Config& config,
                           const model::Checkpoint& checkpoint) {
  RETURN_IF_ERROR(CheckExpressible(config));
  const model::ModelTensors& tensors = checkpoint.tensors();
  std::vector<NewTensor> out;
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    AddOriginalLayer(tensors.layers[i], static_cast<int>(i), out);
  }
  out.push_back(Copy("embedding.weight", tensors.embedding));
  out.push_back(Copy("norm.scale", tensors.final_norm));
  out.push_back(Copy("unembedding.weight", tensors.lm_head));
  const std::string dir = options.out + "/original";
  RETURN_IF_ERROR(MakeFolder(dir));
  RETURN_IF_ERROR(WriteSafetensors(dir + "/model.safetensors", std::move(out)));
  return WriteJson(dir + "/config.json", OriginalConfig(config));
}

}  // namespace

absl::Status RewriteCheckpoint(const RewriteOptions& options) {
  ASSIGN_OR_RETURN(const model::Config config, model::LoadConfig(options.in));
  ASSIGN_OR_RETURN(const auto checkpoint, model::Checkpoint::Open(options.in, config));
  if (checkpoint->layout() == model::Layout::kBf16) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the experts are bf16; mxfp4 is wanted", options.in));
  }
  RETURN_IF_ERROR(MakeFolder(options.out));
  if (options.layout == model::Layout::kBf16) {
    RETURN_IF_ERROR(WriteBf16(options, config, *checkpoint));
  } else if (options.layout == model::Layout::kOriginal) {
    RETURN_IF_ERROR(WriteOriginal(options, config, *checkpoint));
  } else {
    return absl::InvalidArgumentError("the layout to write is bf16 or original");
  }
  for (const char* name : {"/tokenizer.json", "/generation_config.json"}) {
    RETURN_IF_ERROR(CopyIfThere(options.in + name, options.out + name));
  }
  return absl::OkStatus();
}

}  // namespace conclave::tools
