#ifndef CONCLAVE_TOOLS_CHECKPOINT_SAFETENSORS_WRITER_H_
#define CONCLAVE_TOOLS_CHECKPOINT_SAFETENSORS_WRITER_H_

// Writes safetensors files, one or several with their index, without ever holding a tensor in
// memory. For test data: the product itself only reads.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/safetensors.h"

namespace conclave::tools {

struct NewTensor {
  std::string name;
  model::TensorType type = model::TensorType::kBf16;
  std::vector<int64_t> shape;
  // Writes bytes [offset, offset + out.size()) of the tensor. Called once for each part, in
  // ascending order; parts begin and end at multiples of 1 MiB or at the tensor's end.
  std::function<void(int64_t offset, std::span<std::byte> out)> fill;

  int64_t bytes() const;
};

// A tensor whose contents are `parts`, one after the other; they must outlive it.
NewTensor CopyOf(std::string name, model::TensorType type, std::vector<int64_t> shape,
                 std::vector<std::span<const std::byte>> parts);

// One file. BF16 first, then the rest, each sorted by name.
absl::Status WriteSafetensors(const std::string& path, std::vector<NewTensor> tensors);

// The two ways of numbering in circulation.
enum class ShardNumbers {
  kReleased,        // model-00000-of-00002: the first is 0, "of" the last
  kSavePretrained,  // model-00001-of-00003: the first is 1, "of" the count
};

// `shards` files of about the same size, filled in the given order, and
// model.safetensors.index.json in the existing folder `dir`. INVALID_ARGUMENT when there are fewer
// tensors than shards.
absl::Status WriteShards(const std::string& dir, std::vector<NewTensor> tensors, int shards,
                         ShardNumbers numbers);

}  // namespace conclave::tools

#endif  // CONCLAVE_TOOLS_CHECKPOINT_SAFETENSORS_WRITER_H_
