#include "tools/checkpoint/safetensors_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"

namespace conclave::tools {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kPartBytes = int64_t{1} << 20;

absl::Status WriteError(const std::string& path) {
  return absl::UnavailableError(fmt::format("{}: {}", path, std::strerror(errno)));
}

std::string Header(const std::vector<NewTensor>& tensors) {
  ordered_json header = ordered_json::object();
  int64_t at = 0;
  for (const NewTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", model::TensorTypeName(tensor.type)},
                           {"shape", tensor.shape},
                           {"data_offsets", {at, at + tensor.bytes()}}};
    at += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

std::string ShardName(int index, int shards, ShardNumbers numbers) {
  return numbers == ShardNumbers::kReleased
             ? fmt::format("model-{:05}-of-{:05}.safetensors", index, shards - 1)
             : fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, shards);
}

int64_t TotalBytes(const std::vector<NewTensor>& tensors) {
  int64_t total = 0;
  for (const NewTensor& tensor : tensors) total += tensor.bytes();
  return total;
}

// A shard ends where its share of the bytes is reached, or where the rest is needed to give every
// later shard one tensor.
std::vector<std::vector<NewTensor>> Split(std::vector<NewTensor> tensors, int shards) {
  const int64_t share = TotalBytes(tensors) / shards;
  std::vector<std::vector<NewTensor>> files(1);
  int64_t done = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t later = static_cast<size_t>(shards) - files.size();
    const bool full = done >= share * static_cast<int64_t>(files.size());
    if (!files.back().empty() && later > 0 && (full || tensors.size() - i == later)) {
      files.emplace_back();
    }
    done += tensors[i].bytes();
    files.back().push_back(std::move(tensors[i]));
  }
  return files;
}

}  // namespace

int64_t NewTensor::bytes() const {
  int64_t bytes = model::BytesPerElement(type);
  for (const int64_t dimension : shape) bytes *= dimension;
  return bytes;
}

NewTensor CopyOf(std::string name, model::TensorType type, std::vector<int64_t> shape,
                 std::vector<std::span<const std::byte>> parts) {
  const auto fill = [parts = std::move(parts)](int64_t offset, std::span<std::byte> out) {
    auto skip = static_cast<size_t>(offset);
    for (std::span<const std::byte> part : parts) {
      const size_t skipped = std::min(skip, part.size());
      skip -= skipped;
      part = part.subspan(skipped);
      const size_t copied = std::min(part.size(), out.size());
      if (copied > 0) std::memcpy(out.data(), part.data(), copied);
      out = out.subspan(copied);
    }
  };
  return {std::move(name), type, std::move(shape), fill};
}

absl::Status WriteSafetensors(const std::string& path, std::vector<NewTensor> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const NewTensor& a, const NewTensor& b) {
    const bool a_first = a.type == model::TensorType::kBf16;
    const bool b_first = b.type == model::TensorType::kBf16;
    return a_first != b_first ? a_first : a.name < b.name;
  });
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  const std::string header = Header(tensors);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out.write(header.data(), static_cast<std::streamsize>(header.size()));
  std::vector<std::byte> part(static_cast<size_t>(kPartBytes));
  for (const NewTensor& tensor : tensors) {
    for (int64_t offset = 0; offset < tensor.bytes(); offset += kPartBytes) {
      const auto size = static_cast<size_t>(std::min(kPartBytes, tensor.bytes() - offset));
      tensor.fill(offset, std::span(part).first(size));
      out.write(reinterpret_cast<const char*>(part.data()), static_cast<std::streamsize>(size));
    }
  }
  out.close();
  return out ? absl::OkStatus() : WriteError(path);
}

absl::Status WriteShards(const std::string& dir, std::vector<NewTensor> tensors, int shards,
                         ShardNumbers numbers) {
  if (shards < 1 || tensors.size() < static_cast<size_t>(shards)) {
    return absl::InvalidArgumentError(
        fmt::format("{} tensors cannot fill {} shards", tensors.size(), shards));
  }
  nlohmann::json index = {{"metadata", {{"total_size", TotalBytes(tensors)}}}};
  std::vector<std::vector<NewTensor>> files = Split(std::move(tensors), shards);
  for (int i = 0; i < shards; ++i) {
    std::vector<NewTensor>& file = files[static_cast<size_t>(i)];
    const std::string name = ShardName(i, shards, numbers);
    for (const NewTensor& tensor : file) index["weight_map"][tensor.name] = name;
    RETURN_IF_ERROR(WriteSafetensors(fmt::format("{}/{}", dir, name), std::move(file)));
  }
  const std::string path = dir + "/model.safetensors.index.json";
  std::ofstream out(path, std::ios::trunc);
  out << index.dump(2);
  out.close();
  return out ? absl::OkStatus() : WriteError(path);
}

}  // namespace conclave::tools
