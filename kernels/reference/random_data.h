#ifndef CONCLAVE_KERNELS_REFERENCE_RANDOM_DATA_H_
#define CONCLAVE_KERNELS_REFERENCE_RANDOM_DATA_H_

// Seeded weights and activations for tests of the backends, and how to compare.

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels::reference {

class RandomData {
 public:
  explicit RandomData(uint32_t seed) : random_(seed) {}

  double Normal(double deviation) {
    return std::normal_distribution<double>(0, deviation)(random_);
  }
  int Below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  std::vector<uint16_t> Bf16(int64_t size, double deviation) {
    std::vector<uint16_t> out(size);
    for (uint16_t& value : out) value = ToBf16(Normal(deviation));
    return out;
  }
  std::vector<float> Floats(int64_t size, double deviation) {
    std::vector<float> out(size);
    for (float& value : out) value = static_cast<float>(Normal(deviation));
    return out;
  }
  // Bytes in [first, first + count).
  std::vector<uint8_t> Bytes(int64_t size, int first, int count) {
    std::vector<uint8_t> out(size);
    for (uint8_t& value : out) value = static_cast<uint8_t>(first + Below(count));
    return out;
  }

 private:
  std::mt19937 random_;
};

template <typename T>
Vector ToVector(const T* values, int64_t size) {
  return Vector(values, values + size);
}
inline Vector Bf16ToVector(std::span<const uint16_t> values) {
  Vector out;
  for (const uint16_t value : values) out.push_back(FromBf16(value));
  return out;
}

// Root mean square of the difference over that of the reference.
template <typename T>
double RelativeError(const T* actual, const Vector& expected) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

// Sums of a few thousand float32 products stay well within this.
inline constexpr double kFloat32Error = 2e-6;

}  // namespace conclave::kernels::reference

#endif  // CONCLAVE_KERNELS_REFERENCE_RANDOM_DATA_H_
