// Dense products against float64, at the models' shapes and at awkward ones. Both sides get the
// same bf16 input; the norm's output is rounded to bf16 on both.

#include <array>
#include <optional>

#include "gtest/gtest.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/device_test.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels::cuda {
namespace {

// Of the model's specification for a linear layer with one rounding; float32 outputs are not
// rounded, and differ where a norm falls on the other side of a rounding.
constexpr double kBf16Limit = 0.0025;
constexpr double kFloatLimit = 1e-5;
constexpr double kFloatNormLimit = 2e-4;
constexpr float kEpsilon = 1e-5f;
constexpr int kRows[] = {1, 2, 3, 7, 8, 9, 16, 17, 64, 129, 1024, 2048};
constexpr int kGuard = 3;  // rows after the output that must stay as they are

struct Product {
  std::vector<int64_t> segments;  // rows of each
  int64_t k = 0;
  DType out = DType::kF32;
  bool norm = false;
  bool bias = false;
  bool contiguous = true;
  bool gather = false;

  int64_t columns() const {
    int64_t sum = 0;
    for (const int64_t rows : segments) sum += rows;
    return sum;
  }
};

std::vector<float> Widen(const std::vector<__nv_bfloat16>& values) {
  std::vector<float> out;
  for (const __nv_bfloat16 value : values) out.push_back(static_cast<float>(AsDouble(value)));
  return out;
}

class DenseTest : public DeviceTest {
 protected:
  // Weights of one product, segments one after the other or 256 values apart.
  struct Weights {
    Weights(const Product& product, uint32_t seed)
        : gap(product.contiguous ? 0 : 256),
          weight(RandomBf16((product.columns() * product.k) + 3 * gap, seed, 0.02f)),
          bias(RandomBf16(product.columns() + 3 * gap, seed + 1, 0.5f)),
          bias_f32(Widen(bias.Download())),
          norm(RandomBf16(product.k, seed + 2, 1)) {
      int64_t row = 0;
      for (size_t s = 0; s < product.segments.size(); ++s) {
        const int64_t offset = static_cast<int64_t>(s) * gap;
        const int64_t b = row + offset;
        segments.push_back({.weight = weight.data() + row * product.k + offset,
                            .bias = product.bias ? bias.data() + b : nullptr,
                            .bias_f32 = product.bias ? bias_f32.data() + b : nullptr,
                            .rows = product.segments[s],
                            .row_stride = product.k});
        row += product.segments[s];
      }
    }
    int64_t gap;
    Bf16Array weight;
    Bf16Array bias;
    DeviceArray<float> bias_f32;
    Bf16Array norm;
    std::vector<DenseSegment> segments;
  };

  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    EXPECT_CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  DenseProduct& ProductFor(int64_t hidden) {
    if (product_ == nullptr || hidden_ != hidden) {
      absl::StatusOr<std::unique_ptr<DenseProduct>> made = DenseProduct::Create(2048, hidden);
      EXPECT_TRUE(made.ok()) << made.status();
      product_ = *std::move(made);
      hidden_ = hidden;
    }
    return *product_;
  }

  template <typename Out>
  std::vector<Out> Run(const Product& p, const Weights& weights, const __nv_bfloat16* x,
                       const int32_t* gather, int rows) {
    DeviceArray<Out> out((rows + kGuard) * p.columns());
    const DenseInput input = {.x = x,
                              .rows = rows,
                              .cols = p.k,
                              .gather = gather,
                              .norm = p.norm ? weights.norm.data() : nullptr,
                              .epsilon = kEpsilon};
    EXPECT_CUDA_OK(cudaDeviceSynchronize());
    const absl::Status status =
        ProductFor(p.k).Run(weights.segments, input, {out.data(), p.out, p.columns()}, stream_);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_CUDA_OK(cudaGetLastError());
    std::vector<Out> all = out.Download();
    const auto end = all.begin() + rows * p.columns();
    for (auto it = end; it != all.end(); ++it) {
      EXPECT_TRUE(std::isnan(AsDouble(*it))) << "written past the last row";
      if (!std::isnan(AsDouble(*it))) break;
    }
    all.erase(end, all.end());
    return all;
  }

  std::vector<double> Reference(const Product& p, const Weights& weights, const __nv_bfloat16* x,
                                const int32_t* gather, int rows) {
    Bf16Array normed(p.norm ? rows * p.k : 1);
    if (p.norm) {
      ReferenceNorm(x, gather, weights.norm.data(), kEpsilon, rows, p.k, normed.data());
      x = normed.data();
    }
    std::vector<double> out(rows * p.columns());
    int64_t column = 0;
    for (const DenseSegment& segment : weights.segments) {
      DeviceArray<double> part(rows * segment.rows);
      ReferenceProduct(x, segment.weight, segment.bias, rows, segment.rows, p.k, part.data());
      const std::vector<double> values = part.Download();
      for (int64_t t = 0; t < rows; ++t) {
        std::copy_n(values.begin() + t * segment.rows, segment.rows,
                    out.begin() + t * p.columns() + column);
      }
      column += segment.rows;
    }
    return out;
  }

  template <typename Out>
  void ExpectRight(const Product& p, std::span<const int> all_rows) {
    static uint32_t seed = 1;
    worst_ = 0;
    const Weights weights(p, seed += 10);
    for (const int rows : all_rows) {
      SCOPED_TRACE(fmt::format("{} rows, {} columns, k {}", rows, p.columns(), p.k));
      const int64_t stored = p.gather ? rows + 5 : rows;
      const Bf16Array x = RandomBf16(stored * p.k, seed += 10, 1.5f);
      std::vector<int32_t> order;
      for (int i = 0; i < rows; ++i) order.push_back(static_cast<int32_t>(stored - 1 - i));
      const DeviceArray<int32_t> gather(order);
      const int32_t* rows_of = p.gather ? gather.data() : nullptr;
      const std::vector<Out> first = Run<Out>(p, weights, x.data(), rows_of, rows);
      const double error = RelativeRms(first, Reference(p, weights, x.data(), rows_of, rows));
      const double limit = p.out == DType::kBf16 ? kBf16Limit
                           : p.norm              ? kFloatNormLimit
                                                 : kFloatLimit;
      EXPECT_LE(error, limit);
      worst_ = std::max(worst_, error);
      EXPECT_TRUE(SameBits(first, Run<Out>(p, weights, x.data(), rows_of, rows)));
    }
    RecordProperty("worst_relative_rms", fmt::format("{:.3g}", worst_));
    fmt::print("    k {} columns {}: relative rms at most {:.3g}\n", p.k, p.columns(), worst_);
  }

  cudaStream_t stream_ = nullptr;
  std::unique_ptr<DenseProduct> product_;
  int64_t hidden_ = 0;
  double worst_ = 0;
};

TEST_F(DenseTest, TheReferenceOnTheDeviceIsTheReference) {
  reference::RandomData random(5);
  const int64_t rows = 3, n = 21, k = 50;
  const Bf16Array x = RandomBf16(rows * k, 3, 1);
  const Bf16Array weight = RandomBf16(n * k, 4, 1);
  const Bf16Array bias = RandomBf16(n, 5, 1);
  DeviceArray<double> out(rows * n);
  ReferenceProduct(x.data(), weight.data(), bias.data(), rows, n, k, out.data());
  Bf16Array normed(rows * k);
  ReferenceNorm(x.data(), nullptr, weight.data(), 1e-5, rows, k, normed.data());
  const auto wide = [](const std::vector<__nv_bfloat16>& values, int64_t begin, int64_t size) {
    reference::Vector result;
    for (int64_t i = 0; i < size; ++i) result.push_back(AsDouble(values[begin + i]));
    return result;
  };
  const std::vector<__nv_bfloat16> w = weight.Download();
  for (int64_t t = 0; t < rows; ++t) {
    const reference::Vector row = wide(x.Download(), t * k, k);
    const reference::Vector expected = reference::Linear(
        n, [&](int64_t r, int64_t c) { return AsDouble(w[r * k + c]); },
        wide(bias.Download(), 0, n), row);
    const std::vector<double> actual = out.Download();
    for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(actual[t * n + i], expected[i], 1e-9);
    const reference::Vector norm = reference::RmsNorm(row, wide(w, 0, k), 1e-5);
    const std::vector<__nv_bfloat16> rounded = normed.Download();
    for (int64_t i = 0; i < k; ++i) {
      EXPECT_EQ(AsDouble(rounded[t * k + i]), reference::FromBf16(reference::ToBf16(norm[i])));
    }
  }
}

TEST_F(DenseTest, QkvOfTheModels) {
  ExpectRight<__nv_bfloat16>(
      {.segments = {4096, 512, 512}, .k = 2880, .out = DType::kBf16, .norm = true, .bias = true},
      kRows);
}

TEST_F(DenseTest, QkvWhoseWeightsLieApart) {
  ExpectRight<__nv_bfloat16>({.segments = {512, 64, 64},
                              .k = 2880,
                              .out = DType::kBf16,
                              .norm = true,
                              .bias = true,
                              .contiguous = false},
                             std::array{1, 7, 16, 17, 129});
}

TEST_F(DenseTest, OutputProjectionOfTheModels) {
  ExpectRight<float>({.segments = {2880}, .k = 4096, .bias = true}, kRows);
}

TEST_F(DenseTest, OutputProjectionOfARankWithoutBias) {
  ExpectRight<float>({.segments = {2880}, .k = 512}, std::array{1, 3, 16, 17, 64, 129});
}

TEST_F(DenseTest, TheTinyCheckpoint) {
  ExpectRight<__nv_bfloat16>(
      {.segments = {512, 128, 128}, .k = 128, .out = DType::kBf16, .norm = true, .bias = true},
      kRows);
  ExpectRight<float>({.segments = {128}, .k = 512, .bias = true}, kRows);
}

// cuBLASLt takes no part in these.
TEST_F(DenseTest, FewRowsOfASmallProduct) {
  ExpectRight<__nv_bfloat16>(
      {.segments = {128, 32, 32}, .k = 128, .out = DType::kBf16, .norm = true, .bias = true},
      std::array{1, 3, 8});
  ExpectRight<float>({.segments = {64}, .k = 128, .norm = true, .bias = true, .gather = true},
                     std::array{1, 5});
}

TEST_F(DenseTest, ColumnsThatAreNoMultipleOfAnything) {
  for (const int64_t n : {1, 2, 7, 9, 13, 131}) {
    ExpectRight<float>({.segments = {n}, .k = 96, .norm = true, .bias = true, .gather = true},
                       std::array{1, 2, 9, 16, 17, 64, 256});
  }
}

TEST_F(DenseTest, InputsOfAnySize) {
  for (const int64_t k : {1, 30, 72, 1000}) {
    ExpectRight<float>({.segments = {37}, .k = k, .bias = true}, std::array{1, 5, 16, 17, 129});
  }
}

TEST_F(DenseTest, LogitsOfTheModels) {
  ExpectRight<float>({.segments = {201088}, .k = 2880, .norm = true, .gather = true},
                     std::array{1, 3, 16, 17, 64});
}

}  // namespace
}  // namespace conclave::kernels::cuda
