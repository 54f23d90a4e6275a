#ifndef CONCLAVE_MODEL_CHECKPOINT_FINGERPRINT_H_
#define CONCLAVE_MODEL_CHECKPOINT_FINGERPRINT_H_

#include <cstdint>

#include "model/checkpoint.h"

namespace conclave::model {

// See Checkpoint::BackboneFingerprint.
uint64_t Fingerprint(const ModelTensors& tensors, Layout layout);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_FINGERPRINT_H_
