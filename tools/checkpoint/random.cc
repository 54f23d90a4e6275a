#include "tools/checkpoint/random.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
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

using nlohmann::json;

constexpr int kMaxLayers = 1024;
constexpr float kStd = 0.02f;

// SplitMix64.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  // Nearly normal, mean 0, standard deviation 1: the sum of four uniform numbers.
  float Normal() {
    const uint64_t bits = Next();
    const auto sum = static_cast<float>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) +
                                        (bits >> 32 & 0xFFFF) + (bits >> 48));
    return (sum - 131070.0f) * (1.0f / 37837.2f);  // 65536 / sqrt(3)
  }

 private:
  uint64_t state_;
};

using Fill = std::function<void(int64_t, std::span<std::byte>)>;

Fill NormalValues(Generator generator, float mean, float deviation) {
  return [=](int64_t, std::span<std::byte> out) mutable {
    for (size_t i = 0; i + 1 < out.size(); i += 2) {
      const uint16_t value = model::FloatToBf16(mean + deviation * generator.Normal());
      std::memcpy(&out[i], &value, sizeof(value));
    }
  };
}

// Any nibble is a valid value; all 16 alike have a standard deviation of 2.93.
Fill Blocks(Generator generator) {
  return [=](int64_t, std::span<std::byte> out) mutable {
    for (size_t i = 0; i < out.size(); i += sizeof(uint64_t)) {
      const uint64_t bits = generator.Next();
      std::memcpy(&out[i], &bits, std::min(sizeof(bits), out.size() - i));
    }
  };
}

// 2^-7 three times out of four, else 2^-8: 0.0206 with Blocks.
Fill Scales(Generator generator) {
  return [=](int64_t, std::span<std::byte> out) mutable {
    for (std::byte& scale : out)
      scale = (generator.Next() & 3) == 0 ? std::byte{119} : std::byte{120};
  };
}

// The tensors of a checkpoint, in the order in which shards are filled.
class Tensors {
 public:
  Tensors(const model::Config& config, uint64_t seed) : config_(config), seed_(seed) {
    for (int layer = 0; layer < config.num_layers; ++layer) AddLayer(layer);
    const int64_t vocab = config.vocab_size;
    const int64_t hidden = config.hidden_size;
    Add("model.embed_tokens.weight", {vocab, hidden}, 0, kStd);
    Add("model.norm.weight", {hidden}, 1, kStd);
    if (config.head.has_value()) {
      const auto labels = static_cast<int64_t>(config.head->labels.size());
      Add("score.weight", {labels, hidden}, 0, kStd);
      if (config.head->kind == model::Architecture::kTokenClassification) {
        Add("score.bias", {labels}, 0, kStd);
      }
    } else if (!config.tie_word_embeddings) {
      Add("lm_head.weight", {vocab, hidden}, 0, kStd);
    }
  }

  std::vector<NewTensor> Take() { return std::move(tensors_); }

 private:
  // A stream of its own for each tensor, so that order and shards change nothing.
  Generator NextGenerator() const {
    Generator mixer(seed_ + 0x632BE59BD9B4E019u * (tensors_.size() + 1));
    return Generator(mixer.Next());
  }

  void Add(std::string name, std::vector<int64_t> shape, float mean, float deviation) {
    tensors_.push_back({std::move(name), model::TensorType::kBf16, std::move(shape),
                        NormalValues(NextGenerator(), mean, deviation)});
  }

  void AddExperts(const std::string& name, int64_t rows, int64_t cols) {
    const int64_t experts = config_.num_experts;
    const int64_t blocks = cols / model::kMxfp4BlockValues;
    Add(name + "_bias", {experts, rows}, 0, kStd);
    tensors_.push_back({name + "_blocks",
                        model::TensorType::kU8,
                        {experts, rows, blocks, model::kMxfp4BlockBytes},
                        Blocks(NextGenerator())});
    tensors_.push_back({name + "_scales",
                        model::TensorType::kU8,
                        {experts, rows, blocks},
                        Scales(NextGenerator())});
  }

  void AddProjection(const std::string& name, int64_t rows, int64_t cols) {
    if (config_.attention_bias) Add(name + ".bias", {rows}, 0, kStd);
    Add(name + ".weight", {rows, cols}, 0, kStd);
  }

  void AddLayer(int layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const int64_t hidden = config_.hidden_size;
    const int64_t q = int64_t{config_.num_heads} * config_.head_dim;
    const int64_t kv = int64_t{config_.num_kv_heads} * config_.head_dim;
    Add(prefix + "input_layernorm.weight", {hidden}, 1, kStd);
    AddProjection(prefix + "self_attn.o_proj", hidden, q);
    AddProjection(prefix + "self_attn.q_proj", q, hidden);
    AddProjection(prefix + "self_attn.k_proj", kv, hidden);
    AddProjection(prefix + "self_attn.v_proj", kv, hidden);
    Add(prefix + "self_attn.sinks", {config_.num_heads}, 0, 1);
    Add(prefix + "mlp.router.bias", {config_.num_experts}, 0, kStd);
    Add(prefix + "mlp.router.weight", {config_.num_experts, hidden}, 0, kStd);
    AddExperts(prefix + "mlp.experts.gate_up_proj", 2 * int64_t{config_.intermediate_size}, hidden);
    AddExperts(prefix + "mlp.experts.down_proj", hidden, config_.intermediate_size);
    Add(prefix + "post_attention_layernorm.weight", {hidden}, 1, kStd);
  }

  const model::Config& config_;
  const uint64_t seed_;
  std::vector<NewTensor> tensors_;
};

void SetLayers(json& object, int layers) {
  object["num_hidden_layers"] = layers;
  object["layer_types"] = json::array();
  for (int layer = 0; layer < layers; ++layer) {
    object["layer_types"].push_back(layer % 2 == 0 ? "sliding_attention" : "full_attention");
  }
}

int64_t BytesWith(const model::Config& config, int layers) {
  model::Config changed = config;
  changed.num_layers = layers;
  int64_t bytes = 0;
  for (const NewTensor& tensor : Tensors(changed, 0).Take()) bytes += tensor.bytes();
  return bytes;
}

absl::StatusOr<int> LayersFor(const model::Config& config, int64_t bytes) {
  const int64_t one = BytesWith(config, 1);
  const int64_t per_layer = BytesWith(config, 2) - one;
  const int64_t more = bytes > one ? (bytes - one + per_layer - 1) / per_layer : 0;
  if (more < kMaxLayers) return static_cast<int>(1 + more);
  return absl::InvalidArgumentError(fmt::format(
      "{} bytes take {} layers of {}, more than {}: make the layers of the config larger", bytes,
      1 + more, per_layer, kMaxLayers));
}

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options) {
  ASSIGN_OR_RETURN(json object, ReadJson(options.config));
  object["quantization_config"]["quant_method"] = "mxfp4";
  ASSIGN_OR_RETURN(model::Config config, model::ParseConfig(object.dump(), options.config));
  if (options.bytes > 0) {
    ASSIGN_OR_RETURN(const int layers, LayersFor(config, options.bytes));
    SetLayers(object, layers);
    ASSIGN_OR_RETURN(config, model::ParseConfig(object.dump(), options.config));
  }
  RETURN_IF_ERROR(MakeFolder(options.out));
  RETURN_IF_ERROR(WriteShards(options.out, Tensors(config, options.seed).Take(), options.shards,
                              ShardNumbers::kReleased));
  RETURN_IF_ERROR(WriteJson(options.out + "/config.json", object));
  if (options.tokenizer.empty()) return absl::OkStatus();
  return CopyIfThere(options.tokenizer, options.out + "/tokenizer.json");
}

}  // namespace conclave::tools
