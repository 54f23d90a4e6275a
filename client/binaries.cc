#include "client/binaries.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace conclave::client {
namespace {

namespace fs = std::filesystem;

// The folder of its Bazel package, which is also its name without "conclave-".
std::string RoomOf(const std::string& name) { return name.substr(name.find('-') + 1); }

std::vector<fs::path> Candidates(const std::string& name) {
  if (const char* dir = std::getenv("CONCLAVE_BIN_DIR"); dir != nullptr && *dir != '\0') {
    return {fs::absolute(dir) / name};
  }
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  return {here / name, here.parent_path() / RoomOf(name) / name};
}

}  // namespace

absl::StatusOr<std::string> FindBinary(const std::string& name) {
  std::string looked;
  for (const fs::path& path : Candidates(name)) {
    if (access(path.c_str(), X_OK) == 0) return path.string();
    looked += fmt::format("{}{}", looked.empty() ? "" : " and ", path.string());
  }
  return absl::NotFoundError(fmt::format(
      "{} is not at {}: build it with 'bazel build //{}:{}', or set CONCLAVE_BIN_DIR to "
      "its folder",
      name, looked, RoomOf(name), name));
}

}  // namespace conclave::client
