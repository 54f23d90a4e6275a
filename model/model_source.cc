#include "model/model_source.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

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

absl::StatusOr<HeadFlag> ParseHeadFlag(const std::string& flag) {
  const size_t equals = flag.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == flag.size()) {
    return absl::InvalidArgumentError(fmt::format("--head '{}' is not of the form NAME=DIR", flag));
  }
  return HeadFlag{flag.substr(0, equals), flag.substr(equals + 1)};
}

std::string FolderStamp(const std::string& dir) {
  namespace fs = std::filesystem;
  std::vector<std::string> lines;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    // Of the file behind a link: a snapshot folder is links into a store of blobs.
    struct stat file = {};
    if (stat(entry.path().c_str(), &file) != 0 || !S_ISREG(file.st_mode)) continue;
    lines.push_back(fmt::format("{}:{}:{}:{}.{}\n", entry.path().filename().string(), file.st_ino,
                                file.st_size, file.st_mtim.tv_sec, file.st_mtim.tv_nsec));
  }
  std::sort(lines.begin(), lines.end());
  return fmt::format("{}", fmt::join(lines, ""));
}

}  // namespace conclave::model
