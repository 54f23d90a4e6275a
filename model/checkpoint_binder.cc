#include "model/checkpoint_binder.h"

#include <cstdint>
#include <string>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/mxfp4.h"

namespace conclave::model {
namespace {

using Shape = std::vector<int64_t>;

// Gives out checked views. The first error sticks; views after it are empty.
class Binder {
 public:
  explicit Binder(TensorSource& source) : source_(source) {}

  TensorView Bf16(const std::string& name, const Shape& shape) {
    TensorView view = Get(name, TensorType::kBf16, shape);
    if (reinterpret_cast<uintptr_t>(view.bytes.data()) % alignof(uint16_t) != 0) {
      Fail(fmt::format("{}: tensor {} begins at an odd byte", view.file, name));
    }
    return view;
  }

  TensorView U8(const std::string& name, const Shape& shape) {
    return Get(name, TensorType::kU8, shape);
  }

  void RefuseIfPresent(const std::string& name, std::string_view why) {
    const std::string* found = source_.FindPrefix(name);
    if (found == nullptr || *found != name) return;
    const TensorView* view = source_.Want(name, TensorType::kOther, {});
    Fail(fmt::format("{}: tensor {} is there, but {}", view->file, name, why));
  }

  void Fail(const std::string& message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(message);
  }
  const absl::Status& status() const { return status_; }

 private:
  TensorView Get(const std::string& name, TensorType type, const Shape& shape) {
    if (!status_.ok()) return {};
    const TensorView* view = source_.Want(name, type, shape);
    if (view == nullptr) {
      Fail(fmt::format("{}: tensor {} is missing", source_.source(), name));
    } else if (view->type != type) {
      Fail(fmt::format("{}: tensor {} is {}; {} is wanted", view->file, name,
                       TensorTypeName(view->type), TensorTypeName(type)));
    } else if (view->shape != shape) {
      Fail(fmt::format("{}: tensor {} has shape [{}]; [{}] is wanted", view->file, name,
                       fmt::join(view->shape, ", "), fmt::join(shape, ", ")));
    } else {
      return *view;
    }
    return {};
  }

  TensorSource& source_;
  absl::Status status_;
};

// Rows [begin, begin + rows) of a matrix, or values of a vector.
TensorView RowSlice(const TensorView& whole, int64_t begin, int64_t rows) {
  TensorView slice = whole;
  if (whole.shape.empty() || whole.shape[0] == 0) return slice;
  const size_t row_bytes = whole.bytes.size() / static_cast<size_t>(whole.shape[0]);
  slice.name = fmt::format("{}[{}:{}]", whole.name, begin, begin + rows);
  slice.shape[0] = rows;
  slice.bytes = whole.bytes.subspan(static_cast<size_t>(begin) * row_bytes,
                                    static_cast<size_t>(rows) * row_bytes);
  return slice;
}

struct Sizes {
  explicit Sizes(const Config& config)
      : hidden(config.hidden_size),
        intermediate(config.intermediate_size),
        experts(config.num_experts),
        heads(config.num_heads),
        q(int64_t{config.num_heads} * config.head_dim),
        kv(int64_t{config.num_kv_heads} * config.head_dim) {}
  int64_t hidden, intermediate, experts, heads;
  int64_t q, kv;  // rows of a projection
};

// Blocks and scales of both expert matrices; `up` and `down` are the names before the suffix.
void BindMxfp4(Binder& binder, const Sizes& n, const std::string& up, const std::string& down,
               char separator, LayerTensors& layer) {
  const int64_t up_blocks = n.hidden / kMxfp4BlockValues;
  const int64_t down_blocks = n.intermediate / kMxfp4BlockValues;
  layer.gate_up_blocks = binder.U8(fmt::format("{}{}blocks", up, separator),
                                   {n.experts, 2 * n.intermediate, up_blocks, kMxfp4BlockBytes});
  layer.gate_up_scales = binder.U8(fmt::format("{}{}scales", up, separator),
                                   {n.experts, 2 * n.intermediate, up_blocks});
  layer.down_blocks = binder.U8(fmt::format("{}{}blocks", down, separator),
                                {n.experts, n.hidden, down_blocks, kMxfp4BlockBytes});
  layer.down_scales =
      binder.U8(fmt::format("{}{}scales", down, separator), {n.experts, n.hidden, down_blocks});
}

// model.layers.N, experts in either packing.
LayerTensors BindTransformersLayer(Binder& binder, const Sizes& n, const Config& config,
                                   Layout layout, int index) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  LayerTensors layer;
  layer.input_norm = binder.Bf16(prefix + "input_layernorm.weight", {n.hidden});
  const auto project = [&](const char* name, int64_t rows, int64_t cols, TensorView& weight,
                           TensorView& bias) {
    weight = binder.Bf16(fmt::format("{}{}.weight", attention, name), {rows, cols});
    const std::string bias_name = fmt::format("{}{}.bias", attention, name);
    if (config.attention_bias) {
      bias = binder.Bf16(bias_name, {rows});
    } else {
      binder.RefuseIfPresent(bias_name, "config.json says attention_bias false");
    }
  };
  project("q_proj", n.q, n.hidden, layer.q_weight, layer.q_bias);
  project("k_proj", n.kv, n.hidden, layer.k_weight, layer.k_bias);
  project("v_proj", n.kv, n.hidden, layer.v_weight, layer.v_bias);
  project("o_proj", n.hidden, n.q, layer.o_weight, layer.o_bias);
  layer.sinks = binder.Bf16(attention + "sinks", {n.heads});
  layer.post_norm = binder.Bf16(prefix + "post_attention_layernorm.weight", {n.hidden});
  layer.router_weight = binder.Bf16(mlp + "router.weight", {n.experts, n.hidden});
  layer.router_bias = binder.Bf16(mlp + "router.bias", {n.experts});
  const std::string up = mlp + "experts.gate_up_proj";
  const std::string down = mlp + "experts.down_proj";
  layer.gate_up_bias = binder.Bf16(up + "_bias", {n.experts, 2 * n.intermediate});
  layer.down_bias = binder.Bf16(down + "_bias", {n.experts, n.hidden});
  if (layout == Layout::kMxfp4) {
    BindMxfp4(binder, n, up, down, '_', layer);
  } else {
    layer.gate_up_dense = binder.Bf16(up, {n.experts, n.hidden, 2 * n.intermediate});
    layer.down_dense = binder.Bf16(down, {n.experts, n.intermediate, n.hidden});
  }
  return layer;
}

// block.N; q, k and v are rows of one matrix.
LayerTensors BindOriginalLayer(Binder& binder, const Sizes& n, int index) {
  const std::string prefix = fmt::format("block.{}.", index);
  LayerTensors layer;
  layer.input_norm = binder.Bf16(prefix + "attn.norm.scale", {n.hidden});
  const TensorView weight = binder.Bf16(prefix + "attn.qkv.weight", {n.q + 2 * n.kv, n.hidden});
  const TensorView bias = binder.Bf16(prefix + "attn.qkv.bias", {n.q + 2 * n.kv});
  layer.q_weight = RowSlice(weight, 0, n.q);
  layer.q_bias = RowSlice(bias, 0, n.q);
  layer.k_weight = RowSlice(weight, n.q, n.kv);
  layer.k_bias = RowSlice(bias, n.q, n.kv);
  layer.v_weight = RowSlice(weight, n.q + n.kv, n.kv);
  layer.v_bias = RowSlice(bias, n.q + n.kv, n.kv);
  layer.o_weight = binder.Bf16(prefix + "attn.out.weight", {n.hidden, n.q});
  layer.o_bias = binder.Bf16(prefix + "attn.out.bias", {n.hidden});
  layer.sinks = binder.Bf16(prefix + "attn.sinks", {n.heads});
  layer.post_norm = binder.Bf16(prefix + "mlp.norm.scale", {n.hidden});
  layer.router_weight = binder.Bf16(prefix + "mlp.gate.weight", {n.experts, n.hidden});
  layer.router_bias = binder.Bf16(prefix + "mlp.gate.bias", {n.experts});
  layer.gate_up_bias = binder.Bf16(prefix + "mlp.mlp1_bias", {n.experts, 2 * n.intermediate});
  layer.down_bias = binder.Bf16(prefix + "mlp.mlp2_bias", {n.experts, n.hidden});
  BindMxfp4(binder, n, prefix + "mlp.mlp1_weight", prefix + "mlp.mlp2_weight", '.', layer);
  return layer;
}

struct TopNames {
  const char* embedding;
  const char* final_norm;
  const char* lm_head;
  const char* layers;
};
TopNames NamesOf(Layout layout) {
  if (layout == Layout::kOriginal) {
    return {"embedding.weight", "norm.scale", "unembedding.weight", "block."};
  }
  return {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers."};
}

absl::Status CheckBlocks(const Config& config) {
  if (config.hidden_size % kMxfp4BlockValues == 0 &&
      config.intermediate_size % kMxfp4BlockValues == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(fmt::format(
      "the experts are mxfp4, but hidden_size {} or intermediate_size {} is not a multiple of {}",
      config.hidden_size, config.intermediate_size, kMxfp4BlockValues));
}

}  // namespace

absl::StatusOr<Layout> DetectLayout(const CheckpointFiles& files) {
  if (files.FindPrefix("block.") != nullptr) return Layout::kOriginal;
  if (files.FindPrefix("model.layers.") == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("{}: no tensor is named model.layers.N or block.N", files.source()));
  }
  for (const auto& [name, view] : files.tensors()) {
    if (name.ends_with(".mlp.experts.gate_up_proj_blocks")) return Layout::kMxfp4;
    if (name.ends_with(".mlp.experts.gate_up_proj")) return Layout::kBf16;
  }
  return absl::InvalidArgumentError(
      fmt::format("{}: tensor model.layers.0.mlp.experts.gate_up_proj_blocks is missing, and so is "
                  "its bf16 form, gate_up_proj",
                  files.source()));
}

absl::StatusOr<ModelTensors> BindBackbone(TensorSource& source, const Config& config,
                                          Layout layout) {
  if (layout != Layout::kBf16) RETURN_IF_ERROR(CheckBlocks(config));
  const TopNames names = NamesOf(layout);
  const Sizes n(config);
  Binder binder(source);
  ModelTensors tensors;
  tensors.embedding = binder.Bf16(names.embedding, {config.vocab_size, n.hidden});
  for (int index = 0; index < config.num_layers && binder.status().ok(); ++index) {
    tensors.layers.push_back(layout == Layout::kOriginal
                                 ? BindOriginalLayer(binder, n, index)
                                 : BindTransformersLayer(binder, n, config, layout, index));
  }
  tensors.final_norm = binder.Bf16(names.final_norm, {n.hidden});
  const std::string beyond = fmt::format("{}{}.", names.layers, config.num_layers);
  if (const std::string* name = source.FindPrefix(beyond); name != nullptr) {
    binder.RefuseIfPresent(*name, fmt::format("num_hidden_layers is {}", config.num_layers));
  }
  RETURN_IF_ERROR(binder.status());
  return tensors;
}

absl::StatusOr<TensorView> BindLmHead(TensorSource& source, const Config& config, Layout layout) {
  const TopNames names = NamesOf(layout);
  Binder binder(source);
  TensorView view = binder.Bf16(config.tie_word_embeddings ? names.embedding : names.lm_head,
                                {config.vocab_size, config.hidden_size});
  RETURN_IF_ERROR(binder.status());
  return view;
}

absl::StatusOr<HeadTensors> BindHead(TensorSource& source, const HeadConfig& head,
                                     int hidden_size) {
  const auto labels = static_cast<int64_t>(head.labels.size());
  Binder binder(source);
  HeadTensors tensors;
  tensors.weight = binder.Bf16("score.weight", {labels, hidden_size});
  if (head.kind == Architecture::kTokenClassification) {
    tensors.bias = binder.Bf16("score.bias", {labels});
  } else {
    binder.RefuseIfPresent("score.bias", "a sequence classification head has no bias");
  }
  RETURN_IF_ERROR(binder.status());
  return tensors;
}

}  // namespace conclave::model
