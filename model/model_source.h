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

// A classification head to attach: "sentiment=heads/a" is {"sentiment", "heads/a"}.
struct HeadFlag {
  std::string name;
  std::string dir;
};
// INVALID_ARGUMENT when `flag` is not of the form NAME=DIR.
absl::StatusOr<HeadFlag> ParseHeadFlag(const std::string& flag);

// Name, size and time of change of every file in a folder: equal as long as nobody wrote into it.
// Empty when the folder cannot be read.
std::string FolderStamp(const std::string& dir);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_MODEL_SOURCE_H_
