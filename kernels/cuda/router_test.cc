// Residual, norm and routing against float64, fused and in three launches. x and the normed rows
// are compared with the definition, the choice with float64 logits of the normed rows themselves.

#include "kernels/cuda/router.h"

#include <algorithm>
#include <array>

#include "gtest/gtest.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/residual.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels::cuda {
namespace {

constexpr float kEpsilon = 1e-5f;
constexpr double kNormLimit = 0.0025;
constexpr double kLogitError = 1e-4;  // logits have deviation near 1
constexpr double kWeightError = 1e-4;

struct Shape {
  int64_t hidden;
  int experts;
  int k = 4;
};

struct Outputs {
  std::vector<__nv_bfloat16> x;
  std::vector<__nv_bfloat16> normed;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class RouterTest : public DeviceTest {
 protected:
  struct Problem {
    Problem(const Shape& s, int num_rows, uint32_t seed)
        : shape(s),
          rows(num_rows),
          partial(num_rows * s.hidden),
          x(RandomBf16(num_rows * s.hidden, seed + 1, 2)),
          norm(RandomBf16(s.hidden, seed + 2, 1)),
          weight(RandomBf16(s.experts * s.hidden, seed + 3,
                            1 / std::sqrt(static_cast<float>(s.hidden)))),
          bias(RandomBf16(s.experts, seed + 4, 0.1f)),
          bias_f32(s.experts) {
      FillRandom(partial.data(), partial.size(), seed, 1);
      std::vector<float> wide;
      for (const __nv_bfloat16 value : bias.Download()) {
        wide.push_back(static_cast<float>(AsDouble(value)));
      }
      bias_f32.Upload(wide);
    }
    Shape shape;
    int rows;
    DeviceArray<float> partial;
    Bf16Array x, norm, weight, bias;
    DeviceArray<float> bias_f32;
  };

  static RouteArguments ArgumentsOf(const Problem& p) {
    RouteArguments a;
    a.partial = p.partial.data();
    a.norm = p.norm.data();
    a.epsilon = kEpsilon;
    a.weight = p.weight.data();
    a.bias = p.bias.data();
    a.rows = p.rows;
    a.hidden = p.shape.hidden;
    a.experts = p.shape.experts;
    a.k = p.shape.k;
    return a;
  }

  // On a copy of p.x. Runs on the default stream.
  Outputs Run(const Problem& p, bool fused, const int32_t* forced = nullptr) {
    Bf16Array x(p.x.Download());
    Bf16Array normed(p.x.size());
    DeviceArray<int32_t> ids(int64_t{p.rows} * p.shape.k);
    DeviceArray<float> weights(int64_t{p.rows} * p.shape.k);
    RouteArguments a = ArgumentsOf(p);
    a.x = x.data();
    a.normed = normed.data();
    a.expert_ids = ids.data();
    a.weights = weights.data();
    a.forced = forced;
    if (fused) {
      EXPECT_TRUE(CanFuseRoute(a));
      FusedRoute(a, nullptr);
    } else {
      absl::StatusOr<std::unique_ptr<DenseProduct>> product =
          DenseProduct::Create(1, p.shape.hidden);
      EXPECT_TRUE(product.ok()) << product.status();
      DeviceArray<float> logits(int64_t{p.rows} * p.shape.experts);
      ResidualNormRows(a.partial, a.norm, a.epsilon, a.rows, a.hidden, a.x, a.normed, nullptr);
      const DenseSegment segment = {.weight = a.weight,
                                    .bias = a.bias,
                                    .bias_f32 = p.bias_f32.data(),
                                    .rows = a.experts,
                                    .row_stride = a.hidden};
      const DenseInput input = {.x = a.normed, .rows = a.rows, .cols = a.hidden};
      const absl::Status status =
          (*product)->Run({&segment, 1}, input, {logits.data(), DType::kF32, a.experts}, nullptr);
      EXPECT_TRUE(status.ok()) << status;
      ChooseExperts(logits.data(), a.forced, a.run_of_row, a.rows, a.experts, a.k, a.expert_ids,
                    a.weights, nullptr);
      EXPECT_CUDA_OK(cudaDeviceSynchronize());
    }
    EXPECT_CUDA_OK(cudaGetLastError());
    return {x.Download(), normed.Download(), ids.Download(), weights.Download()};
  }

  // x and normed, and float64 logits of `out.normed`.
  static std::vector<double> ExpectStream(const Problem& p, const Outputs& out) {
    const std::vector<__nv_bfloat16> before = p.x.Download();
    const std::vector<float> partial = p.partial.Download();
    int wrong = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      const float sum = static_cast<float>(AsDouble(before[i])) + partial[i];
      wrong += AsDouble(out.x[i]) == reference::FromBf16(reference::ToBf16(sum)) ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0) << "x + partial is not rounded once";
    const Bf16Array x(out.x);
    Bf16Array normed(p.x.size());
    ReferenceNorm(x.data(), nullptr, p.norm.data(), kEpsilon, p.rows, p.shape.hidden,
                  normed.data());
    EXPECT_LE(RelativeRms(out.normed, normed.Download()), kNormLimit);
    normed.Upload(out.normed);
    DeviceArray<double> logits(int64_t{p.rows} * p.shape.experts);
    ReferenceProduct(normed.data(), p.weight.data(), p.bias.data(), p.rows, p.shape.experts,
                     p.shape.hidden, logits.data());
    return logits.Download();
  }

  // Every choice is the best left within the error of a logit; weights are the chosen's softmax.
  static void ExpectChoice(const Problem& p, const Outputs& out,
                           const std::vector<double>& logits) {
    const int k = p.shape.k;
    for (int row = 0; row < p.rows; ++row) {
      const reference::Vector g(logits.begin() + int64_t{row} * p.shape.experts,
                                logits.begin() + int64_t{row + 1} * p.shape.experts);
      const std::vector<reference::Choice> expected = reference::Route(g, k);
      double sum = 0;
      for (int j = 0; j < k; ++j) {
        const int id = out.ids[row * k + j];
        ASSERT_GE(id, 0);
        ASSERT_LT(id, p.shape.experts);
        for (int i = 0; i < j; ++i) ASSERT_NE(id, out.ids[row * k + i]);
        ASSERT_NEAR(g[id], g[expected[j].expert], kLogitError) << "row " << row << " choice " << j;
        sum += std::exp(g[id] - g[expected[0].expert]);
      }
      for (int j = 0; j < k; ++j) {
        const double weight = std::exp(g[out.ids[row * k + j]] - g[expected[0].expert]) / sum;
        ASSERT_NEAR(out.weights[row * k + j], weight, kWeightError) << "row " << row;
      }
    }
  }

  void ExpectRight(const Shape& shape, std::span<const int> all_rows) {
    static uint32_t seed = 1000;
    for (const int rows : all_rows) {
      SCOPED_TRACE(
          fmt::format("{} rows, hidden {}, {} experts", rows, shape.hidden, shape.experts));
      const Problem p(shape, rows, seed += 10);
      for (const bool fused : {true, false}) {
        RouteArguments a = ArgumentsOf(p);
        if (fused && !CanFuseRoute(a)) continue;
        const Outputs out = Run(p, fused);
        ExpectChoice(p, out, ExpectStream(p, out));
        const Outputs again = Run(p, fused);
        EXPECT_TRUE(SameBits(out.x, again.x) && SameBits(out.normed, again.normed) &&
                    SameBits(out.ids, again.ids) && SameBits(out.weights, again.weights));
      }
    }
  }
};

TEST_F(RouterTest, TheModels) {
  constexpr int kRows[] = {1, 2, 3, 7, 16, 17, 33, 64, 127, 128, 129, 1024, 2048};
  ExpectRight({.hidden = 2880, .experts = 128}, kRows);
  ExpectRight({.hidden = 2880, .experts = 32}, std::array{1, 3, 17, 64, 128, 129});
}

TEST_F(RouterTest, OtherShapes) {
  constexpr std::array kRows = {1, 2, 7, 17, 40, 65, 129};
  ExpectRight({.hidden = 128, .experts = 16}, kRows);        // the tiny checkpoint
  ExpectRight({.hidden = 96, .experts = 5, .k = 2}, kRows);  // fewer experts than blocks
  ExpectRight({.hidden = 64, .experts = 4}, kRows);          // all are chosen
  ExpectRight({.hidden = 160, .experts = 300, .k = 7}, kRows);
}

TEST_F(RouterTest, TiesGoToTheLowerId) {
  const Shape shape = {.hidden = 128, .experts = 16};
  for (const int rows : {1, 5, 130}) {
    const Problem p(shape, rows, 77);
    // Every row of the router's weight is the same: all logits tie.
    std::vector<__nv_bfloat16> weight = p.weight.Download();
    for (int64_t i = shape.hidden; i < p.weight.size(); ++i) weight[i] = weight[i % shape.hidden];
    EXPECT_CUDA_OK(
        cudaMemcpy(p.weight.data(), weight.data(), weight.size() * 2, cudaMemcpyDefault));
    EXPECT_CUDA_OK(cudaMemset(p.bias.data(), 0, shape.experts * 2));
    EXPECT_CUDA_OK(cudaMemset(p.bias_f32.data(), 0, shape.experts * 4));
    for (const bool fused : {true, false}) {
      if (fused && rows > kFusedRouteRows) continue;
      const Outputs out = Run(p, fused);
      for (int i = 0; i < rows * shape.k; ++i) {
        ASSERT_EQ(out.ids[i], i % shape.k);
        ASSERT_EQ(out.weights[i], 0.25f);
      }
    }
  }
}

TEST_F(RouterTest, ALogitThatIsNotANumberComesLast) {
  const Shape shape = {.hidden = 128, .experts = 6};
  const Problem p(shape, 9, 78);
  std::vector<__nv_bfloat16> bias = p.bias.Download();
  std::vector<float> wide = p.bias_f32.Download();
  for (const int expert : {0, 3}) {
    bias[expert] = Bf16Of(NAN);
    wide[expert] = NAN;
  }
  EXPECT_CUDA_OK(cudaMemcpy(p.bias.data(), bias.data(), bias.size() * 2, cudaMemcpyDefault));
  EXPECT_CUDA_OK(cudaMemcpy(p.bias_f32.data(), wide.data(), wide.size() * 4, cudaMemcpyDefault));
  for (const bool fused : {true, false}) {
    const Outputs out = Run(p, fused);
    for (const int32_t id : out.ids) EXPECT_TRUE(id != 0 && id != 3) << id;
    for (const float weight : out.weights) EXPECT_FALSE(std::isnan(weight));
  }
}

TEST_F(RouterTest, ForcedIdsReplaceTheChoice) {
  const Shape shape = {.hidden = 128, .experts = 16};
  for (const int rows : {3, 20, 140}) {
    const Problem p(shape, rows, 79);
    std::vector<int32_t> ids;
    for (int row = 0; row < rows; ++row) {
      for (int j = 0; j < shape.k; ++j) ids.push_back(row % 3 == 0 ? -1 : (row + 3 * j) % 16);
    }
    const DeviceArray<int32_t> forced(ids);
    for (const bool fused : {true, false}) {
      if (fused && rows > kFusedRouteRows) continue;
      const Outputs own = Run(p, fused);
      const Outputs out = Run(p, fused, forced.data());
      const std::vector<double> logits = ExpectStream(p, out);
      for (int i = 0; i < rows * shape.k; ++i) {
        ASSERT_EQ(out.ids[i], ids[i] >= 0 ? ids[i] : own.ids[i]);
      }
      for (int row = 0; row < rows; ++row) {
        double sum = 0;
        for (int j = 0; j < shape.k; ++j) {
          sum += std::exp(logits[row * shape.experts + out.ids[row * shape.k + j]]);
        }
        for (int j = 0; j < shape.k; ++j) {
          const double g = logits[row * shape.experts + out.ids[row * shape.k + j]];
          ASSERT_NEAR(out.weights[row * shape.k + j], std::exp(g) / sum, kWeightError);
        }
      }
    }
  }
}

TEST_F(RouterTest, AddResidualRoundsOnce) {
  for (const int64_t size : {8, 2880, 3 * 2880, 17 * 128, 2048 * 2880}) {
    const Bf16Array x = RandomBf16(size, 80, 2);
    DeviceArray<float> partial(size);
    FillRandom(partial.data(), size, 81, 1);
    const std::vector<__nv_bfloat16> before = x.Download();
    AddResidual(partial.data(), size, x.data(), nullptr);
    EXPECT_CUDA_OK(cudaGetLastError());
    const std::vector<__nv_bfloat16> after = x.Download();
    const std::vector<float> add = partial.Download();
    int wrong = 0;
    for (int64_t i = 0; i < size; ++i) {
      const float sum = static_cast<float>(AsDouble(before[i])) + add[i];
      wrong += AsDouble(after[i]) == reference::FromBf16(reference::ToBf16(sum)) ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0) << size;
  }
}

}  // namespace
}  // namespace conclave::kernels::cuda
