#ifndef CONCLAVE_MODEL_SAFETENSORS_HEADER_H_
#define CONCLAVE_MODEL_SAFETENSORS_HEADER_H_

// The JSON header of a safetensors file, as written and not yet believed.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::model {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  // Bytes [begin, end) of the data that follows the header.
  uint64_t begin = 0;
  uint64_t end = 0;
};

// In the order of the header; `__metadata__` is checked and left out. INVALID_ARGUMENT when the
// JSON is malformed, a tensor or a field of one is given twice, missing, unknown or of the wrong
// kind.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_SAFETENSORS_HEADER_H_
