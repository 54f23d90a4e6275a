#ifndef CONCLAVE_MODEL_RANDOM_TENSORS_H_
#define CONCLAVE_MODEL_RANDOM_TENSORS_H_

// Made-up weights of any shape, for measurements without a checkpoint. A value is a function of
// (seed, name of the tensor, index) alone, so that every process that generates a part of a tensor
// generates the same values, whatever the other parts are.
//
//   weights and biases   normal, mean 0, standard deviation 0.02, in 256 levels
//   norms                the same around 1
//   MXFP4 blocks         uniform nibbles
//   MXFP4 scales         2^-7 (11 of 16) and 2^-8, which makes the deviation 0.02 here too

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "model/tensor_source.h"

namespace conclave::model {

// Gives out every tensor that is asked for. Its bytes are address space without memory until
// Generate writes them.
class RandomTensors final : public TensorSource {
 public:
  explicit RandomTensors(uint64_t seed) : seed_(seed) {}
  ~RandomTensors() override;
  RandomTensors(const RandomTensors&) = delete;
  RandomTensors& operator=(const RandomTensors&) = delete;

  // Null when there is not enough address space; status() then says so.
  const TensorView* Want(const std::string& name, TensorType type,
                         const std::vector<int64_t>& shape) override;
  const std::string* FindPrefix(std::string_view) const override { return nullptr; }
  const std::string& source() const override { return source_; }

  const absl::Status& status() const { return status_; }

  // Writes the values of `part`, which lies within one tensor that was given out. Calls for parts
  // that do not overlap may run at the same time.
  void Generate(std::span<const std::byte> part) const;

  // Of the seed and the tensors given out so far.
  uint64_t Fingerprint() const;

 private:
  enum class Kind { kNormal, kAroundOne, kBlocks, kScales };
  struct Tensor {
    Kind kind = Kind::kNormal;
    uint64_t key = 0;  // of (seed, name)
    std::byte* memory = nullptr;
    TensorView view;
  };
  static Kind KindOf(const std::string& name, TensorType type);

  const uint64_t seed_;
  const std::string source_ = "random weights";
  absl::Status status_;
  std::map<std::string, Tensor> tensors_;
  std::map<const std::byte*, const Tensor*> by_address_;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_RANDOM_TENSORS_H_
