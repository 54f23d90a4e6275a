#ifndef CONCLAVE_TOOLS_CHECKPOINT_RANDOM_H_
#define CONCLAVE_TOOLS_CHECKPOINT_RANDOM_H_

// Checkpoints of any size with random weights, in the released layout (MXFP4 experts).
//
//   RandomCheckpointOptions options;
//   options.config = "tools/checkpoint/wide_config.json";
//   options.out = dir;
//   options.bytes = int64_t{2} << 30;  // as many layers as that takes
//   options.shards = 4;
//   RETURN_IF_ERROR(WriteRandomCheckpoint(options));

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace conclave::tools {

struct RandomCheckpointOptions {
  std::string config;     // a config.json in Transformers' spelling
  std::string out;        // folder, made where missing
  std::string tokenizer;  // a tokenizer.json to put beside it; empty: none
  // Tensor bytes to reach at least, by the number of layers alone; 0: the layers of the config.
  int64_t bytes = 0;
  int shards = 1;
  uint64_t seed = 1;  // the same seed and config give the same weights, whatever the shards
};

// Matrices, biases and experts have a standard deviation of about 0.02, norms lie around 1 and
// sinks have a standard deviation of 1: with larger weights the router saturates and comparisons
// mean nothing. INVALID_ARGUMENT when the config is refused or `bytes` cannot be reached.
absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options);

}  // namespace conclave::tools

#endif  // CONCLAVE_TOOLS_CHECKPOINT_RANDOM_H_
