#ifndef CONCLAVE_KERNELS_TENSOR_H_
#define CONCLAVE_KERNELS_TENSOR_H_

// Plain descriptions of device memory shared by all backends.

#include <cstddef>
#include <cstdint>
#include <memory>

namespace conclave::kernels {

enum class DType : uint8_t { kF32, kF64, kBf16, kI32, kU8 };

constexpr int64_t SizeOf(DType type) {
  switch (type) {
    case DType::kF64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBf16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}

// A row-major matrix in device memory. Does not own it.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  int64_t bytes() const { return rows * cols * SizeOf(dtype); }
  // Rows [begin, begin + count) of this one.
  Tensor Rows(int64_t begin, int64_t count) const {
    return {static_cast<std::byte*>(data) + begin * cols * SizeOf(dtype), dtype, count, cols};
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Owns device memory; freed with the last copy.
struct Buffer {
  std::shared_ptr<void> memory;
  int64_t bytes = 0;

  Tensor AsTensor(DType dtype, int64_t rows, int64_t cols) const {
    return {memory.get(), dtype, rows, cols};
  }
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_TENSOR_H_
