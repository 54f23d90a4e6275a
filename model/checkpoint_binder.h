#ifndef CONCLAVE_MODEL_CHECKPOINT_BINDER_H_
#define CONCLAVE_MODEL_CHECKPOINT_BINDER_H_

// Finds the tensors of a model in a source by the names of their layout, and checks each.

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/checkpoint_files.h"
#include "model/config.h"
#include "model/tensor_source.h"

namespace conclave::model {

// From the names alone. INVALID_ARGUMENT when there are no names of any layout.
absl::StatusOr<Layout> DetectLayout(const CheckpointFiles& files);

// Embedding, layers and final norm; no lm_head.
absl::StatusOr<ModelTensors> BindBackbone(TensorSource& source, const Config& config,
                                          Layout layout);

// [V, H]; the embedding where the two are tied.
absl::StatusOr<TensorView> BindLmHead(TensorSource& source, const Config& config, Layout layout);

// score.weight and, for tokens, score.bias.
absl::StatusOr<HeadTensors> BindHead(TensorSource& source, const HeadConfig& head, int hidden_size);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_BINDER_H_
