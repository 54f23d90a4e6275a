#ifndef CONCLAVE_MODEL_SAFETENSORS_H_
#define CONCLAVE_MODEL_SAFETENSORS_H_

// A safetensors file, mapped into memory. Every entry of the header is checked against the file's
// size, its dtype and its shape before a view of it is given out; nothing in the file is trusted.
// Pages are read from disk when they are touched, never before.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::model {

enum class TensorType : uint8_t { kBf16, kF16, kF32, kU8, kI64, kOther };
int64_t BytesPerElement(TensorType type);  // 0 for kOther
std::string_view TensorTypeName(TensorType type);

// Row-major, contiguous. Does not own the bytes: they live as long as the file's map.
struct TensorView {
  std::string name;
  TensorType type = TensorType::kOther;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  std::string file;  // for error messages

  int64_t num_elements() const;
};

// Thread-safe after Open.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT with file, tensor and number when the header is malformed, larger than the
  // file or 100 MB, names a tensor twice, overlaps or leaves the file; NOT_FOUND when it is absent.
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path);
  virtual ~SafetensorsFile() = default;

  virtual const std::string& path() const = 0;
  virtual const std::vector<TensorView>& tensors() const = 0;  // in the file's order
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_SAFETENSORS_H_
