#ifndef CONCLAVE_MODEL_CONFIG_ROPE_H_
#define CONCLAVE_MODEL_CONFIG_ROPE_H_

// The rotary part of a config.json, in every spelling in circulation.

#include "model/config.h"
#include "model/config_reader.h"

namespace conclave::model {

// Transformers' spellings: rope_theta + rope_scaling, or rope_parameters (flat, or one per layer
// type, then equal). Without any of them: gpt-oss' own YaRN. Errors stay in `fields`.
Rope ReadRope(FieldReader& fields, int max_positions);

// original/config.json: rope_theta, rope_scaling_factor, rope_ntk_alpha, rope_ntk_beta.
Rope ReadOriginalRope(FieldReader& fields, int initial_context_length);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CONFIG_ROPE_H_
