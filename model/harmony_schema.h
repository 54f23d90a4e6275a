#ifndef CONCLAVE_MODEL_HARMONY_SCHEMA_H_
#define CONCLAVE_MODEL_HARMONY_SCHEMA_H_

// JSON schemas as Harmony shows them to the model: in the manner of TypeScript types.

#include <string>

#include "absl/status/statusor.h"

namespace conclave::model {

// `{"type": "object", "properties": {"city": {"type": "string"}}}` -> "{\ncity?: string,\n}". Keys
// keep their order; what the form cannot say is "any". INVALID_ARGUMENT for text that is not JSON
// or has more than kMaxSchemaDepth brackets open at once.
absl::StatusOr<std::string> HarmonySchemaType(const std::string& schema_json);

inline constexpr int kMaxSchemaDepth = 128;

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_HARMONY_SCHEMA_H_
