#include "model/memory_plan.h"

#include <algorithm>

namespace conclave::model {
namespace {

int64_t Bytes(const TensorView& view) { return static_cast<int64_t>(view.bytes.size()); }

int64_t BytesPerRow(const TensorView& view) {
  return view.shape.empty() || view.shape[0] == 0 ? 0 : Bytes(view) / view.shape[0];
}

int64_t BytesPerExpert(const LayerTensors& layer) {
  int64_t bytes = 0;
  for (const TensorView* view :
       {&layer.gate_up_blocks, &layer.gate_up_scales, &layer.gate_up_dense, &layer.gate_up_bias,
        &layer.down_blocks, &layer.down_scales, &layer.down_dense, &layer.down_bias}) {
    bytes += BytesPerRow(*view);
  }
  return bytes;
}

int64_t AttentionBytes(const LayerTensors& layer, int tp, int tp_rank) {
  int64_t bytes = 0;
  // Split by heads: rows of q, k, v; columns of o.
  for (const TensorView* view : {&layer.q_weight, &layer.q_bias, &layer.k_weight, &layer.k_bias,
                                 &layer.v_weight, &layer.v_bias, &layer.o_weight, &layer.sinks}) {
    bytes += Bytes(*view) / tp;
  }
  // Whole on every rank.
  for (const TensorView* view :
       {&layer.input_norm, &layer.post_norm, &layer.router_weight, &layer.router_bias}) {
    bytes += Bytes(*view);
  }
  // Added once to the sum over the ranks.
  return tp_rank == 0 ? bytes + Bytes(layer.o_bias) : bytes;
}

int64_t EmbeddingBytes(const Checkpoint& checkpoint, const Range& rows) {
  const ModelTensors& tensors = checkpoint.tensors();
  int64_t bytes = rows.size() * BytesPerRow(tensors.embedding);
  const bool tied = tensors.lm_head.bytes.data() == tensors.embedding.bytes.data();
  if (!tied) bytes += rows.size() * BytesPerRow(tensors.lm_head);
  if (const HeadTensors* head = checkpoint.head(); head != nullptr) {
    bytes += Bytes(head->weight) + Bytes(head->bias);
  }
  return bytes;
}

}  // namespace

int64_t ExpertBytes(const Checkpoint& checkpoint) {
  return BytesPerExpert(checkpoint.tensors().layers.front());
}

std::vector<RankBytes> PlanWeights(const Config& config, const Checkpoint& checkpoint,
                                   const ParallelShape& shape, const Placement& placement) {
  const ModelTensors& tensors = checkpoint.tensors();
  std::vector<RankBytes> ranks(static_cast<size_t>(shape.world()));
  for (int rank = 0; rank < shape.world(); ++rank) {
    RankBytes& bytes = ranks[static_cast<size_t>(rank)];
    const int tp_rank = shape.tp_rank(rank);
    bytes.attention = Bytes(tensors.final_norm);
    bytes.embedding = EmbeddingBytes(checkpoint, VocabRange(config, shape.tp, tp_rank));
    for (size_t layer = 0; layer < tensors.layers.size(); ++layer) {
      const auto held = static_cast<int64_t>(placement.layers[layer].ExpertsOf(rank).size());
      bytes.experts += held * BytesPerExpert(tensors.layers[layer]);
      bytes.attention += AttentionBytes(tensors.layers[layer], shape.tp, tp_rank);
    }
  }
  return ranks;
}

int64_t PlanActivations(const Config& config, const ParallelShape& shape,
                        const ActivationSizes& sizes) {
  const int64_t rows = sizes.max_step_tokens;
  const int64_t share = (rows + shape.tp - 1) / shape.tp;
  const int64_t hidden = config.hidden_size;
  const int64_t k = config.experts_per_token;
  const int64_t activation = sizes.activation_bytes;
  const int64_t partial = sizes.partial_bytes;
  const int64_t world = shape.world();

  const int64_t heads_dim =
      int64_t{config.head_dim} * (2 * config.num_heads + 2 * config.num_kv_heads) / shape.tp;
  // Residual stream, normed input, q k v and the attention's output, routing, row counts.
  int64_t bytes = rows * ((2 * hidden + heads_dim) * activation + k * 8 + 4);
  bytes += (rows + share) * hidden * partial;  // of the output projection

  // Every rank may send all its rows here; counted with what world = 1 needs.
  const int64_t copies = std::max(rows, world == 1 ? 0 : world * share);
  bytes += copies * (k * config.intermediate_size * activation + hidden * partial);
  if (world > 1) {
    const int64_t slot = (hidden * activation + k * 8 + 15) / 16 * 16;
    bytes += 2 * world * (1 + share) * slot + world * share * hidden * partial;
    bytes += share * world * 4 + int64_t{3} * config.num_layers * config.num_experts * 4;
  }

  // Totals of what the experts compute and of the copies sent.
  bytes += (int64_t{config.num_layers} * config.num_experts / world + world) * 8;

  const int64_t logit_rows = std::min(sizes.max_sequences, kLogitTileRows);
  bytes += logit_rows * (config.vocab_size / shape.tp + 1) * 4;
  bytes += int64_t{kLogitTileRows} * sizes.labels * 4;
  // Logits of a split vocabulary are transposed, and then laid side by side.
  if (shape.tp > 1) {
    bytes += 2 * ((logit_rows + shape.tp - 1) / shape.tp) * config.vocab_size * 4;
  }
  return bytes;
}

int64_t KvBytesPerTokenLayer(const Config& config, int tp, int bytes_per_value) {
  return int64_t{2} * (config.num_kv_heads / tp) * config.head_dim * bytes_per_value;
}

}  // namespace conclave::model
