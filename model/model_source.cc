#include "model/model_source.h"

#include <fmt/format.h>

#include "base/status_macros.h"

namespace conclave::model {

absl::StatusOr<Config> LoadConfig(const ModelSource& source) {
  ASSIGN_OR_RETURN(Config config, LoadConfig(source.dir));
  const int layers = source.random.has_value() ? source.random->layers : 0;
  if (layers == 0) return config;
  if (layers < 0 || layers > config.num_layers) {
    return absl::InvalidArgumentError(fmt::format("{} layers are wanted; {}/config.json has {}",
                                                  layers, source.dir, config.num_layers));
  }
  config.num_layers = layers;
  config.layer_types.resize(static_cast<size_t>(layers));
  return config;
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenCheckpoint(const ModelSource& source,
                                                                 const Config& config) {
  if (source.random.has_value()) return Checkpoint::Random(config, source.random->seed);
  return Checkpoint::Open(source.dir, config);
}

}  // namespace conclave::model
