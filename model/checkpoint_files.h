#ifndef CONCLAVE_MODEL_CHECKPOINT_FILES_H_
#define CONCLAVE_MODEL_CHECKPOINT_FILES_H_

// The safetensors files of a folder, and the tensors in them by name.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/safetensors.h"
#include "model/tensor_source.h"

namespace conclave::model {

// Immutable and thread-safe after opening.
class CheckpointFiles final : public TensorSource {
 public:
  // A model's folder: what `dir`/model.safetensors.index.json names, or model.safetensors, or every
  // model*.safetensors; in that order, and then the same in `dir`/original. NOT_FOUND without any.
  static absl::StatusOr<CheckpointFiles> OpenModel(const std::string& dir);

  // A head's folder: what its index names, or every *.safetensors.
  static absl::StatusOr<CheckpointFiles> OpenHead(const std::string& dir);

  // Null when there is no such tensor.
  const TensorView* Find(std::string_view name) const;
  const TensorView* Want(const std::string& name, TensorType,
                         const std::vector<int64_t>&) override {
    return Find(name);
  }
  const std::string* FindPrefix(std::string_view prefix) const override;
  const std::map<std::string, const TensorView*, std::less<>>& tensors() const { return tensors_; }

  // The index or folder.
  const std::string& source() const override { return source_; }
  const std::vector<std::shared_ptr<const SafetensorsFile>>& files() const { return files_; }

 private:
  static absl::StatusOr<CheckpointFiles> OpenIndex(const std::string& dir, const std::string& path);
  static absl::StatusOr<CheckpointFiles> OpenAll(const std::string& source,
                                                 const std::vector<std::string>& paths);

  std::string source_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string, const TensorView*, std::less<>> tensors_;  // into files_
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_FILES_H_
