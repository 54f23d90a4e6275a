#ifndef CONCLAVE_MODEL_CONFIG_H_
#define CONCLAVE_MODEL_CONFIG_H_

// What config.json says of a gpt-oss checkpoint, checked once and then trusted.
//
//   ASSIGN_OR_RETURN(Config config, LoadConfig("/models/gpt-oss-20b"));
//   for (int layer = 0; layer < config.num_layers; ++layer) ... config.layer_types[layer] ...
//
// Immutable after loading; safe to share between threads.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::model {

enum class Architecture { kCausalLm, kSequenceClassification, kTokenClassification };
enum class LayerType : uint8_t { kSliding, kFull };
enum class ProblemType { kUnset, kRegression, kSingleLabel, kMultiLabel };

// Rotary embedding with YaRN scaling; one table for all layers.
struct Rope {
  double theta = 150000.0;
  bool yarn = true;
  double factor = 32.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double original_max_positions = 4096.0;
  bool truncate = false;
  // Multiplies cos and sin of both queries and keys.
  double attention_factor = 1.3465735902799727;
};

// Labels of a classification head.
struct HeadConfig {
  Architecture kind = Architecture::kSequenceClassification;
  std::vector<std::string> labels;  // [num_labels], by label id
  ProblemType problem_type = ProblemType::kUnset;
  // Checkpoint::BackboneFingerprint() of the backbone it was trained on, 16 hexadecimal digits (key
  // `backbone_fingerprint`, ours). Empty when not stated.
  std::string backbone_fingerprint;
};

struct Config {
  Architecture architecture = Architecture::kCausalLm;
  int num_layers = 0;
  int num_experts = 0;        // per layer
  int experts_per_token = 0;  // top-k
  int hidden_size = 0;
  int intermediate_size = 0;  // per expert
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // never hidden_size / num_heads
  int vocab_size = 0;
  int sliding_window = 0;  // keys a sliding layer sees, the query's own included
  int context_length = 0;  // prompt and completion together
  double rms_norm_eps = 1e-5;
  double swiglu_limit = 7.0;
  double swiglu_alpha = 1.702;
  bool attention_bias = true;
  bool tie_word_embeddings = false;
  bool mxfp4 = false;                  // config.json declares quant_method mxfp4, or is OpenAI's
  bool original = false;               // read from OpenAI's spelling, original/config.json
  std::vector<LayerType> layer_types;  // [num_layers]
  Rope rope;
  std::vector<int> eos_token_ids;  // may be empty
  std::optional<int> pad_token_id;
  std::optional<HeadConfig> head;  // set for the classification architectures

  int num_layers_of(LayerType type) const;
};

// The `architectures` entry of config.json: "GptOssForCausalLM".
std::string_view ArchitectureName(Architecture architecture);

// Inverse frequencies of the rotary embedding, [head_dim / 2], evaluated as Transformers does
// (float32 power), YaRN-interpolated.
std::vector<float> RopeInverseFrequencies(const Rope& rope, int head_dim);

// Parses config.json in either spelling in circulation (rope_scaling + rope_theta, or
// rope_parameters; num_experts_per_tok or experts_per_token), or original/config.json.
// `source` names the file in errors. INVALID_ARGUMENT names the field that is missing, of the wrong
// kind, out of range or in contradiction with another.
absl::StatusOr<Config> ParseConfig(std::string_view text, std::string_view source);

// Reads `dir`/config.json (or `dir`/original/config.json when the former is absent) and takes the
// end tokens of `dir`/generation_config.json when there is one. original/config.json names no
// padding token: that too comes from generation_config.json. NOT_FOUND without any config.json.
absl::StatusOr<Config> LoadConfig(const std::string& dir);

// Reads the labels of a head's own folder; its config.json need not describe a backbone, nor name
// an architecture: `unless_stated` is then the head's kind.
absl::StatusOr<HeadConfig> LoadHeadConfig(const std::string& dir, Architecture unless_stated);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CONFIG_H_
