#ifndef CONCLAVE_MODEL_CHECKPOINT_H_
#define CONCLAVE_MODEL_CHECKPOINT_H_

// A folder of weights in any of the three layouts in circulation, bound to the names the forward
// pass uses. Opening reads headers only.
//
//   mxfp4     Hugging Face release: experts as _blocks / _scales, [E, rows, cols/32, 16]
//   bf16      save_pretrained after dequantization: experts transposed, [E, in, out]
//   original  OpenAI's original/: fused qkv, block.N names, experts as mxfp4

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace conclave::model {

enum class Layout { kMxfp4, kBf16, kOriginal };
std::string_view LayoutName(Layout layout);

class RandomTensors;
class TensorSource;

// Views of one layer; dtypes, shapes and alignment checked. H hidden, I intermediate, E experts,
// D head_dim. Biases of attention are empty where config.attention_bias is false. In the original
// layout q, k and v are rows of one tensor, so their bytes are slices of it.
struct LayerTensors {
  TensorView input_norm;                  // [H]
  TensorView q_weight, q_bias;            // [heads*D, H], [heads*D]
  TensorView k_weight, k_bias;            // [kv_heads*D, H], [kv_heads*D]
  TensorView v_weight, v_bias;            // [kv_heads*D, H], [kv_heads*D]
  TensorView o_weight, o_bias;            // [H, heads*D], [H]
  TensorView sinks;                       // [heads]
  TensorView post_norm;                   // [H]
  TensorView router_weight, router_bias;  // [E, H], [E]
  // Layouts mxfp4 and original: rows interleaved gate (even), up (odd).
  TensorView gate_up_blocks, gate_up_scales;  // U8 [E, 2I, H/32, 16], [E, 2I, H/32]
  TensorView down_blocks, down_scales;        // U8 [E, H, I/32, 16], [E, H, I/32]
  // Layout bf16: y = x W; columns interleaved as above.
  TensorView gate_up_dense;            // [E, H, 2I]
  TensorView down_dense;               // [E, I, H]
  TensorView gate_up_bias, down_bias;  // [E, 2I], [E, H]
};

struct ModelTensors {
  TensorView embedding;   // [V, H]
  TensorView final_norm;  // [H]
  TensorView lm_head;     // [V, H], the embedding where tied; empty for a classification checkpoint
  std::vector<LayerTensors> layers;
};

// Weights of one classification head, as stored.
struct HeadTensors {
  TensorView weight;  // [labels, H]
  TensorView bias;    // [labels], empty for sequence heads
};

// Keeps the maps alive; thread-safe after opening, and immutable but for Generate.
class Checkpoint {
 public:
  // Opens every shard that `dir`/model.safetensors.index.json names (or the single file, or
  // original/), and binds and checks every tensor `config` calls for. Errors name the file, the
  // tensor, the shape found and the shape wanted.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& dir,
                                                                const Config& config);

  // Weights made up from `seed` in the shapes of `config` (random_tensors.h): mxfp4 where the
  // config says so, else bf16. Nothing is in memory until it is generated.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Random(const Config& config,
                                                                  uint64_t seed);

  Layout layout() const { return layout_; }
  const ModelTensors& tensors() const { return tensors_; }
  // The head that a classification checkpoint carries.
  const HeadTensors* head() const { return head_ ? head_.get() : nullptr; }
  // Hash of the shapes of the backbone (all but lm_head and head), of its small tensors and of
  // samples of the large ones. The same weights agree in all three layouts; a fine-tune differs.
  // Touches a few thousand pages of a full-size model, not more.
  uint64_t BackboneFingerprint() const;

  // Weights that are made up have to be written by Generate before they are read. `part` lies
  // within one tensor; calls for parts that do not overlap may run at the same time.
  bool is_random() const { return random_ != nullptr; }
  void Generate(std::span<const std::byte> part) const;

 private:
  absl::Status Bind(TensorSource& source, const Config& config);

  Layout layout_ = Layout::kMxfp4;
  ModelTensors tensors_;
  std::unique_ptr<HeadTensors> head_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::shared_ptr<const RandomTensors> random_;  // null: from files_
};

// A head attached from its own folder (config.json with labels; safetensors files of any name with
// `score.weight` and, for tokens, `score.bias`).
struct AttachedHead {
  std::string name;
  HeadConfig config;
  HeadTensors tensors;
  // The folder carried a backbone, or a fingerprint of one in its config.json, and it is the
  // running one. A folder whose backbone differs is refused; one without either is accepted as
  // unverified.
  bool backbone_verified = false;
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
};
absl::StatusOr<AttachedHead> OpenHead(const std::string& name, const std::string& dir,
                                      const Config& config, const Checkpoint& backbone);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_H_
