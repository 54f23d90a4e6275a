#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/config_head.h"
#include "model/config_reader.h"
#include "model/config_rope.h"

namespace conclave::model {
namespace {

using nlohmann::json;

// Far above any model, low enough that no product of them leaves int64 and that positions are exact
// in float32.
constexpr int kMaxLayers = 1024;
constexpr int kMaxExperts = 4096;
constexpr int kMaxWidth = 65536;  // hidden_size, intermediate_size
constexpr int kMaxHeads = 4096;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxVocab = 1 << 24;
constexpr int kMaxContext = 1 << 24;
constexpr int kMxfp4Block = 32;
constexpr FieldReader::RealRange kSwiglu = {0.0, 1e6};

// The sizes that both spellings name. All define shapes of weights, so none has a default.
void ReadSizes(FieldReader& fields, Config& config) {
  config.num_layers = fields.Int("num_hidden_layers", 1, kMaxLayers);
  config.num_experts = fields.Int({"num_local_experts", "num_experts"}, 1, kMaxExperts);
  config.experts_per_token =
      fields.Int({"num_experts_per_tok", "experts_per_token"}, 1, kMaxExperts);
  config.hidden_size = fields.Int("hidden_size", 1, kMaxWidth);
  config.intermediate_size = fields.Int("intermediate_size", 1, kMaxWidth);
  config.num_heads = fields.Int("num_attention_heads", 1, kMaxHeads);
  config.num_kv_heads = fields.Int("num_key_value_heads", 1, kMaxHeads);
  config.head_dim = fields.Int("head_dim", 2, kMaxHeadDim);
  config.vocab_size = fields.Int("vocab_size", 1, kMaxVocab);
  config.swiglu_limit = fields.RealOr("swiglu_limit", 7.0, kSwiglu);
}

std::vector<LayerType> AlternatingLayerTypes(int num_layers) {
  std::vector<LayerType> types(static_cast<size_t>(num_layers));
  for (size_t layer = 0; layer < types.size(); ++layer) {
    types[layer] = layer % 2 == 0 ? LayerType::kSliding : LayerType::kFull;
  }
  return types;
}

std::vector<LayerType> ReadLayerTypes(FieldReader& fields, int num_layers) {
  const json* list = fields.Find("layer_types");
  if (list == nullptr) return AlternatingLayerTypes(num_layers);
  if (!list->is_array()) {
    fields.Fail("layer_types", "is not a list");
    return {};
  }
  if (list->size() != static_cast<size_t>(num_layers)) {
    fields.Fail("layer_types", fmt::format("has {} entries but num_hidden_layers is {}",
                                           list->size(), num_layers));
    return {};
  }
  std::vector<LayerType> types;
  for (const json& item : *list) {
    const bool sliding = item == "sliding_attention";
    if (!sliding && item != "full_attention") {
      fields.Fail(fmt::format("layer_types[{}]", types.size()),
                  "is neither \"sliding_attention\" nor \"full_attention\"");
      return {};
    }
    types.push_back(sliding ? LayerType::kSliding : LayerType::kFull);
  }
  return types;
}

// `sliding_window: null` would make sliding layers full ones; the key's absence means the default.
int ReadSlidingWindow(FieldReader& fields, const json& object) {
  const auto found = object.find("sliding_window");
  if (found != object.end() && found->is_null()) {
    fields.Fail("sliding_window", "is null; layers of sliding attention need a number");
  }
  return fields.IntOr("sliding_window", 128, 1, kMaxContext);
}

bool ReadMxfp4(FieldReader& fields) {
  const json* quantization = fields.Find("quantization_config");
  if (quantization == nullptr) return false;
  if (!quantization->is_object()) {
    fields.Fail("quantization_config", "is not an object");
    return false;
  }
  FieldReader inner(*quantization, fields.source(), "quantization_config.");
  const std::optional<std::string> method = inner.OptionalString("quant_method");
  if (method != "mxfp4") {
    inner.Fail("quant_method", method.has_value() ? fmt::format("is \"{}\"; \"mxfp4\" is supported",
                                                                method->substr(0, 60))
                                                  : "is missing");
  }
  fields.Absorb(inner.status());
  return true;
}

void ReadTransformers(FieldReader& fields, const json& object, Config& config) {
  const std::optional<std::string> model_type = fields.OptionalString("model_type");
  const std::optional<Architecture> architecture = ReadArchitecture(fields);
  if (model_type.has_value() && *model_type != "gpt_oss") {
    fields.Fail("model_type",
                fmt::format("is \"{}\"; \"gpt_oss\" is supported", model_type->substr(0, 60)));
  }
  config.architecture = architecture.value_or(Architecture::kCausalLm);
  ReadSizes(fields, config);
  config.context_length = fields.IntOr("max_position_embeddings", 131072, 1, kMaxContext);
  config.layer_types = ReadLayerTypes(fields, config.num_layers);
  config.sliding_window = ReadSlidingWindow(fields, object);
  config.rms_norm_eps = fields.RealOr("rms_norm_eps", 1e-5, {0.0, 1.0});
  config.swiglu_alpha = fields.RealOr("swiglu_alpha", 1.702, kSwiglu);
  config.attention_bias = fields.BoolOr("attention_bias", true);
  config.tie_word_embeddings = fields.BoolOr("tie_word_embeddings", false);
  config.mxfp4 = ReadMxfp4(fields);
  config.rope = ReadRope(fields, config.context_length);
  config.eos_token_ids = fields.IntList("eos_token_id", 0, config.vocab_size - 1);
  config.pad_token_id = fields.OptionalInt("pad_token_id", 0, config.vocab_size - 1);
  if (config.architecture != Architecture::kCausalLm) {
    config.head = ReadHead(fields, config.architecture);
  }
}

void ReadOriginal(FieldReader& fields, const json& object, Config& config) {
  config.original = true;
  config.mxfp4 = true;
  ReadSizes(fields, config);
  const int initial = fields.IntOr("initial_context_length", 4096, 1, kMaxContext);
  config.rope = ReadOriginalRope(fields, initial);
  const double context = initial * std::max(config.rope.factor, 1.0);
  if (context > kMaxContext) {
    fields.Fail("initial_context_length",
                fmt::format("times rope_scaling_factor is {}, more than {}", context, kMaxContext));
  }
  config.context_length = static_cast<int>(std::min<double>(context, kMaxContext));
  config.sliding_window = ReadSlidingWindow(fields, object);
  config.layer_types = AlternatingLayerTypes(config.num_layers);
}

void CheckSizes(FieldReader& fields, const Config& config) {
  const auto check = [&](bool good, const char* name, const std::string& message) {
    if (!good) fields.Fail(name, message);
  };
  check(
      config.experts_per_token <= config.num_experts, "num_experts_per_tok",
      fmt::format("is {} but there are {} experts", config.experts_per_token, config.num_experts));
  check(config.num_heads % config.num_kv_heads == 0, "num_attention_heads",
        fmt::format("is {}, not a multiple of num_key_value_heads, {}", config.num_heads,
                    config.num_kv_heads));
  check(config.head_dim % 2 == 0, "head_dim", fmt::format("is {}, an odd number", config.head_dim));
  if (!config.mxfp4) return;
  for (const auto& [name, width] : {std::pair{"hidden_size", config.hidden_size},
                                    std::pair{"intermediate_size", config.intermediate_size}}) {
    check(width % kMxfp4Block == 0, name,
          fmt::format("is {}, not a multiple of mxfp4's block of {}", width, kMxfp4Block));
  }
}

bool IsOriginal(const FieldReader& fields) {
  if (fields.Has("model_type") || fields.Has("architectures")) return false;
  return fields.Has("rope_scaling_factor") || fields.Has("rope_ntk_beta") ||
         (fields.Has("num_experts") && !fields.Has("num_local_experts"));
}

absl::Status ReadGenerationConfig(const std::string& path, Config& config) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const json object, ReadJsonObject(path));
  FieldReader fields(object, path, "");
  if (fields.Has("eos_token_id")) {
    config.eos_token_ids = fields.IntList("eos_token_id", 0, config.vocab_size - 1);
  }
  if (config.original) {
    config.pad_token_id = fields.OptionalInt("pad_token_id", 0, config.vocab_size - 1);
  }
  return fields.status();
}

absl::StatusOr<Config> ConfigFromJson(const json& object, const std::string& source) {
  FieldReader fields(object, source, "");
  Config config;
  if (IsOriginal(fields)) {
    ReadOriginal(fields, object, config);
  } else if (fields.Has("model_type") || fields.Has("architectures")) {
    ReadTransformers(fields, object, config);
  } else {
    fields.Fail("model_type", "is missing");
  }
  if (fields.ok()) CheckSizes(fields, config);
  RETURN_IF_ERROR(fields.status());
  return config;
}

}  // namespace

int Config::num_layers_of(LayerType type) const {
  return static_cast<int>(std::count(layer_types.begin(), layer_types.end(), type));
}

absl::StatusOr<Config> ParseConfig(std::string_view text, std::string_view source) {
  ASSIGN_OR_RETURN(const json object, ParseJsonObject(text, source));
  return ConfigFromJson(object, std::string(source));
}

absl::StatusOr<Config> LoadConfig(const std::string& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error)) {
    return absl::NotFoundError(fmt::format("{}: no such folder", dir));
  }
  std::string path = dir + "/config.json";
  if (!std::filesystem::exists(path, error)) {
    path = dir + "/original/config.json";
    if (!std::filesystem::exists(path, error)) {
      return absl::NotFoundError(
          fmt::format("{}: neither config.json nor original/config.json is there", dir));
    }
  }
  ASSIGN_OR_RETURN(const json object, ReadJsonObject(path));
  ASSIGN_OR_RETURN(Config config, ConfigFromJson(object, path));
  RETURN_IF_ERROR(ReadGenerationConfig(dir + "/generation_config.json", config));
  return config;
}

}  // namespace conclave::model
