#ifndef CONCLAVE_WORKER_HARNESS_OPTIONS_H_
#define CONCLAVE_WORKER_HARNESS_OPTIONS_H_

// What a world of test ranks is made with.

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/model_source.h"
#include "model/placement.h"

namespace conclave::worker {

struct HarnessOptions {
  std::string model_dir;
  std::optional<model::RandomWeights> random = {};
  std::vector<std::pair<std::string, std::string>> heads = {};  // name, folder
  model::ParallelShape shape = {};
  model::Placement placement = {};  // empty: balanced
  int max_step_tokens = 256;
  int max_sequences = 8;
  int full_blocks = 128;
  int sliding_blocks = 128;
  std::function<bool()> aborted = {};  // as in TransformerOptions
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_HARNESS_OPTIONS_H_
