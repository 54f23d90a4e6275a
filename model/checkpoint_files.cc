#include "model/checkpoint_files.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/config_reader.h"

namespace conclave::model {
namespace {

using nlohmann::json;

constexpr char kIndexName[] = "/model.safetensors.index.json";

// A file's name and nothing more: an index may not lead out of its folder.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// Regular *.safetensors files of `dir` whose name begins with `prefix`, sorted.
std::vector<std::string> List(const std::string& dir, std::string_view prefix) {
  std::vector<std::string> paths;
  std::error_code error;
  std::filesystem::directory_iterator it(dir, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(".safetensors")) {
      paths.push_back(it->path().string());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// weight_map with every entry checked: tensor name -> file name.
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& path) {
  ASSIGN_OR_RETURN(const json index, ReadJsonObject(path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: weight_map is missing, empty or not an object", path));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainName(file.get<std::string>())) {
      return absl::InvalidArgumentError(
          fmt::format("{}: weight_map names {} as the file of {}; the name of a file in the same "
                      "folder is wanted",
                      path, file.dump(-1, ' ', true, json::error_handler_t::replace), tensor));
    }
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

}  // namespace

absl::StatusOr<CheckpointFiles> CheckpointFiles::OpenModel(const std::string& dir) {
  for (const std::string& base : {dir, dir + "/original"}) {
    if (const std::string index = base + kIndexName; Exists(index)) return OpenIndex(base, index);
    const std::string single = base + "/model.safetensors";
    if (Exists(single)) return OpenAll(single, {single});
    const std::vector<std::string> shards = List(base, "model");
    if (!shards.empty()) return OpenAll(base, shards);
  }
  return absl::NotFoundError(fmt::format(
      "{}: neither model.safetensors.index.json nor a model*.safetensors file is there, nor in "
      "original/",
      dir));
}

absl::StatusOr<CheckpointFiles> CheckpointFiles::OpenHead(const std::string& dir) {
  if (const std::string index = dir + kIndexName; Exists(index)) return OpenIndex(dir, index);
  const std::vector<std::string> paths = List(dir, "");
  if (paths.empty()) {
    return absl::NotFoundError(fmt::format("{}: no .safetensors file is there", dir));
  }
  return OpenAll(dir, paths);
}

absl::StatusOr<CheckpointFiles> CheckpointFiles::OpenIndex(const std::string& dir,
                                                           const std::string& path) {
  ASSIGN_OR_RETURN(const auto weight_map, ReadWeightMap(path));
  CheckpointFiles result;
  result.source_ = path;
  // file name -> its tensors by name
  std::map<std::string, std::map<std::string_view, const TensorView*>> shards;
  for (const auto& [tensor, file] : weight_map) {
    auto [shard, is_new] = shards.try_emplace(file);
    if (is_new) {
      auto opened = SafetensorsFile::Open(fmt::format("{}/{}", dir, file));
      if (!opened.ok()) {
        return absl::InvalidArgumentError(fmt::format("{}: a file it names cannot be used: {}",
                                                      path,
                                                      std::string(opened.status().message())));
      }
      for (const TensorView& view : (*opened)->tensors()) shard->second[view.name] = &view;
      result.files_.push_back(*std::move(opened));
    }
    const auto found = shard->second.find(tensor);
    if (found == shard->second.end()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: weight_map says that {} has {}, but it has not", path, file, tensor));
    }
    result.tensors_.emplace(tensor, found->second);
  }
  return result;
}

absl::StatusOr<CheckpointFiles> CheckpointFiles::OpenAll(const std::string& source,
                                                         const std::vector<std::string>& paths) {
  CheckpointFiles result;
  result.source_ = source;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
    for (const TensorView& view : file->tensors()) {
      const auto [first, is_new] = result.tensors_.emplace(view.name, &view);
      if (!is_new) {
        return absl::InvalidArgumentError(
            fmt::format("tensor {} is in both {} and {}", view.name, first->second->file, path));
      }
    }
    result.files_.push_back(std::move(file));
  }
  return result;
}

const TensorView* CheckpointFiles::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

const std::string* CheckpointFiles::FindPrefix(std::string_view prefix) const {
  const auto found = tensors_.lower_bound(prefix);
  return found != tensors_.end() && found->first.starts_with(prefix) ? &found->first : nullptr;
}

}  // namespace conclave::model
