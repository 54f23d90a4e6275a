#ifndef CONCLAVE_MODEL_TENSOR_SOURCE_H_
#define CONCLAVE_MODEL_TENSOR_SOURCE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/safetensors.h"

namespace conclave::model {

// Where the tensors of a model are looked up by name: files, or made-up ones.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // The tensor of that name; null when there is none. `type` and `shape` are what the model calls
  // for; what is found may differ, and its user checks. Valid as long as the source.
  virtual const TensorView* Want(const std::string& name, TensorType type,
                                 const std::vector<int64_t>& shape) = 0;

  // The first name that begins with `prefix`; null when none does.
  virtual const std::string* FindPrefix(std::string_view prefix) const = 0;

  // For errors.
  virtual const std::string& source() const = 0;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TENSOR_SOURCE_H_
