#ifndef CONCLAVE_TOOLS_CHECKPOINT_FOLDER_H_
#define CONCLAVE_TOOLS_CHECKPOINT_FOLDER_H_

// The small files of a checkpoint's folder.

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::tools {

absl::StatusOr<nlohmann::json> ReadJson(const std::string& path);
absl::Status WriteJson(const std::string& path, const nlohmann::json& value);

// Makes the folder and its parents where they are missing.
absl::Status MakeFolder(const std::string& dir);

// Replaces an older copy. Nothing happens when `from` does not exist.
absl::Status CopyIfThere(const std::string& from, const std::string& to);

}  // namespace conclave::tools

#endif  // CONCLAVE_TOOLS_CHECKPOINT_FOLDER_H_
