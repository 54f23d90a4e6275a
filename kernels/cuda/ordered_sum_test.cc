// Sums of the ranks' parts: bit for bit the sum of float32 in ascending order, close to float64's.

#include "kernels/cuda/ordered_sum.h"

#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/cuda/device_test.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels::cuda {
namespace {

using reference::RandomData;

constexpr int64_t kSizes[] = {1, 3, 4, 8, 9, 127, 2880, 20'003};

class OrderedSumTest : public DeviceTest {};

float AsFloat(float value) { return value; }
float AsFloat(__nv_bfloat16 value) { return static_cast<float>(AsDouble(value)); }
void Round(double value, float* to) { *to = static_cast<float>(value); }
void Round(double value, __nv_bfloat16* to) { *to = Bf16Of(value); }

// Magnitudes that make the sum depend on its order.
template <typename T>
std::vector<T> Addends(RandomData& random, int64_t values) {
  std::vector<T> out(values);
  for (T& value : out) Round(std::ldexp(random.Normal(1), random.Below(20)), &value);
  return out;
}

// Parts side by side with a gap between them, `shift` values off the alignment of the memory. The
// own part's place among them stays poisoned: its values lie elsewhere.
template <typename T>
void Check(DType dtype, int count, int own, int64_t values, int shift) {
  RandomData random(static_cast<uint32_t>(count * 1000 + own * 100 + values + shift));
  constexpr int64_t kAlign = 16 / sizeof(T);
  const int64_t stride = (values + kAlign - 1) / kAlign * kAlign + kAlign + (shift > 0 ? 1 : 0);
  DeviceArray<T> parts(shift + stride * count);
  DeviceArray<T> own_part(shift + values + 1);
  std::vector<T> want(values);
  std::vector<double> exact(values, 0);
  std::vector<double> size(values, 0);
  std::vector<float> sum(values);
  std::vector<T> all(parts.size());
  std::memset(static_cast<void*>(all.data()), 0xFF, all.size() * sizeof(T));  // poison
  for (int part = 0; part < count; ++part) {
    const std::vector<T> addend = Addends<T>(random, values);
    for (int64_t i = 0; i < values; ++i) {
      sum[i] = part == 0 ? AsFloat(addend[i]) : sum[i] + AsFloat(addend[i]);
      exact[i] += AsDouble(addend[i]);
      size[i] += std::fabs(AsDouble(addend[i]));
    }
    if (part != own) {
      std::copy(addend.begin(), addend.end(), all.begin() + shift + part * stride);
      continue;
    }
    EXPECT_CUDA_OK(
        cudaMemcpy(own_part.data() + shift, addend.data(), values * sizeof(T), cudaMemcpyDefault));
  }
  parts.Upload(all);
  for (int64_t i = 0; i < values; ++i) Round(sum[i], &want[i]);

  const PartsToSum arguments = {.parts = parts.data() + shift,
                                .stride = stride * static_cast<int64_t>(sizeof(T)),
                                .count = count,
                                .own = own,
                                .own_part = own_part.data() + shift};
  DeviceArray<T> out(shift + values + 1);
  OrderedSum(dtype, arguments, values, out.data() + shift, nullptr);
  EXPECT_CUDA_OK(cudaGetLastError());
  std::vector<T> got = out.Download();
  got.erase(got.begin(), got.begin() + shift);
  const T past = got.back();
  got.pop_back();
  EXPECT_TRUE(std::isnan(AsDouble(past))) << "wrote behind the end";
  ASSERT_TRUE(SameBits(got, want))
      << count << " parts, own " << own << ", " << values << " values, shifted by " << shift;
  const double unit = dtype == DType::kF32 ? 0x1p-23 : 0x1p-8;
  for (int64_t i = 0; i < values; ++i) {
    ASSERT_LE(std::fabs(AsDouble(got[i]) - exact[i]), unit * count * size[i]) << i;
  }
  // In place.
  OrderedSum(dtype, arguments, values, own_part.data() + shift, nullptr);
  std::vector<T> in_place = own_part.Download();
  in_place.erase(in_place.begin(), in_place.begin() + shift);
  in_place.pop_back();
  ASSERT_TRUE(SameBits(in_place, want)) << "in place";
}

TEST_F(OrderedSumTest, PartsAreAddedInAscendingOrderWhereverOnesOwnIs) {
  for (int count : {1, 2, 3, 4, 5, 8, 9, 17}) {
    for (int own : {0, count / 2, count - 1}) {
      for (int64_t values : kSizes) {
        Check<float>(DType::kF32, count, own, values, 0);
        Check<__nv_bfloat16>(DType::kBf16, count, own, values, 0);
      }
    }
  }
}

TEST_F(OrderedSumTest, PartsMayLieAnywhere) {
  for (int shift : {1, 3}) {
    for (int64_t values : kSizes) {
      Check<float>(DType::kF32, 4, 1, values, shift);
      Check<__nv_bfloat16>(DType::kBf16, 4, 1, values, shift);
    }
  }
}

// What an embedding split over the ranks needs: one has the row, the others have zeros.
TEST_F(OrderedSumTest, ZerosChangeNoBit) {
  RandomData random(7);
  const int64_t values = 2880;
  std::vector<__nv_bfloat16> row = Addends<__nv_bfloat16>(random, values);
  for (int holder : {0, 2}) {
    std::vector<__nv_bfloat16> all(3 * values, Bf16Of(0));
    std::copy(row.begin(), row.end(), all.begin() + holder * values);
    const Bf16Array parts(all);
    const Bf16Array own(std::vector<__nv_bfloat16>(values, Bf16Of(0)));
    Bf16Array out(values);
    OrderedSum(
        DType::kBf16,
        {.parts = parts.data(), .stride = values * 2, .count = 3, .own = 1, .own_part = own.data()},
        values, out.data(), nullptr);
    EXPECT_TRUE(SameBits(out.Download(), row)) << "held by " << holder;
  }
}

}  // namespace
}  // namespace conclave::kernels::cuda
