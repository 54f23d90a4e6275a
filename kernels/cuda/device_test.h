#ifndef CONCLAVE_KERNELS_CUDA_DEVICE_TEST_H_
#define CONCLAVE_KERNELS_CUDA_DEVICE_TEST_H_

// What tests on a GPU share: skipping without one, device arrays, and a float64 reference on the
// device for products that are too large for the host's.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels::cuda {

// Skips, with the reason, where the kernels cannot run.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const CudaProbe probe = ProbeCuda(0);
    if (!probe.reason.empty()) GTEST_SKIP() << probe.reason << ": " << probe.message;
  }
};

#define EXPECT_CUDA_OK(expression) EXPECT_EQ((expression), cudaSuccess) << #expression

// `size` values in device memory. Fresh memory is poisoned: bytes 0xFF are NaN in every float type
// and -1 as an integer.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) {
    absl::StatusOr<Buffer> buffer = AllocateDevice(size * static_cast<int64_t>(sizeof(T)));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    if (buffer.ok()) buffer_ = *buffer;
    Poison();
  }
  explicit DeviceArray(const std::vector<T>& host)
      : DeviceArray(static_cast<int64_t>(host.size())) {
    Upload(host);
  }

  T* data() const { return static_cast<T*>(buffer_.memory.get()); }
  int64_t size() const { return size_; }
  // Both are done when they return, for streams that do not wait for the default one.
  void Poison() {
    EXPECT_CUDA_OK(cudaMemset(data(), 0xFF, size_ * sizeof(T)));
    EXPECT_CUDA_OK(cudaStreamSynchronize(nullptr));
  }
  void Upload(const std::vector<T>& host) {
    EXPECT_CUDA_OK(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyDefault));
    EXPECT_CUDA_OK(cudaStreamSynchronize(nullptr));
  }
  // Waits for all streams.
  std::vector<T> Download() const {
    std::vector<T> out(size_);
    EXPECT_CUDA_OK(cudaDeviceSynchronize());
    EXPECT_CUDA_OK(cudaMemcpy(out.data(), data(), size_ * sizeof(T), cudaMemcpyDefault));
    return out;
  }

 private:
  int64_t size_;
  Buffer buffer_;
};

using Bf16Array = DeviceArray<__nv_bfloat16>;

// Nearly normal numbers, a function of the seed and the index.
void FillRandom(__nv_bfloat16* data, int64_t size, uint32_t seed, float deviation);
void FillRandom(float* data, int64_t size, uint32_t seed, float deviation);
inline Bf16Array RandomBf16(int64_t size, uint32_t seed, float deviation) {
  Bf16Array out(size);
  FillRandom(out.data(), size, seed, deviation);
  return out;
}

// out[t, n] = bias[n] + sum_k x[t, k] * weight[n, k] in float64; bias may be null. All in device
// memory.
void ReferenceProduct(const __nv_bfloat16* x, const __nv_bfloat16* weight,
                      const __nv_bfloat16* bias, int64_t rows, int64_t n, int64_t k, double* out);

// RMSNorm of rows x[gather[i]] in float64, rounded to bf16 once; gather may be null.
void ReferenceNorm(const __nv_bfloat16* x, const int32_t* gather, const __nv_bfloat16* weight,
                   double epsilon, int64_t rows, int64_t hidden, __nv_bfloat16* out);

inline double AsDouble(float value) { return value; }
inline double AsDouble(double value) { return value; }
inline double AsDouble(__nv_bfloat16 value) {
  return reference::FromBf16(static_cast<__nv_bfloat16_raw>(value).x);
}
inline __nv_bfloat16 Bf16Of(double value) {
  __nv_bfloat16_raw raw;
  raw.x = reference::ToBf16(value);
  return raw;
}

// Root mean square of the difference over that of the reference; a value that is not a number makes
// the result one that passes no limit.
template <typename T, typename U>
double RelativeRms(const std::vector<T>& actual, const std::vector<U>& expected) {
  if (actual.size() != expected.size()) return INFINITY;
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = AsDouble(expected[i]);
    const double d = AsDouble(actual[i]) - e;
    difference += d * d;
    size += e * e;
  }
  return std::sqrt(difference / size);
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DEVICE_TEST_H_
