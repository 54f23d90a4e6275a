#ifndef CONCLAVE_MODEL_MODEL_SOURCE_H_
#define CONCLAVE_MODEL_MODEL_SOURCE_H_

// A model's configuration and weights, the latter from files or made up. Every process of a group
// must be told the same.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace conclave::model {

// Weights of the right shapes drawn from `seed`; config.json is all the folder needs.
struct RandomWeights {
  uint64_t seed = 0;
  int layers = 0;  // the first so many of config.json's; 0: all
};

struct ModelSource {
  std::string dir;
  std::optional<RandomWeights> random;
};

// As LoadConfig(dir), with the layers that are asked for. INVALID_ARGUMENT when there are fewer.
absl::StatusOr<Config> LoadConfig(const ModelSource& source);

// Checkpoint::Open or Checkpoint::Random.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenCheckpoint(const ModelSource& source,
                                                                 const Config& config);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_MODEL_SOURCE_H_
