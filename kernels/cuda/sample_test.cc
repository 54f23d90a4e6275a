#include "kernels/cuda/sample.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/cpu/sample.h"
#include "kernels/cuda/device_test.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int kVocabulary = 201088;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Normal(int64_t size, uint32_t seed, double deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  std::vector<float> out(size);
  for (float& value : out) value = normal(random);
  return out;
}

class SampleTest : public DeviceTest {
 protected:
  // Every row as the CPU samples it: tokens equal, log-probabilities to float32.
  void Check(const std::vector<float>& logits, const std::vector<SampleParams>& params);
};

void SampleTest::Check(const std::vector<float>& logits, const std::vector<SampleParams>& params) {
  const auto n = static_cast<int>(params.size());
  const int vocabulary = static_cast<int>(logits.size() / n);
  std::vector<SampleRow> rows;
  for (const SampleParams& p : params) {
    rows.push_back({p.temperature, p.top_k, p.top_p, p.min_p, p.seed, p.position, p.logprobs});
  }
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<SampleRow> device_rows(rows);
  const DeviceArray<int32_t> tokens(n);
  const DeviceArray<float> logprobs(n);
  const DeviceArray<int32_t> top_tokens(n * kTopLogprobs);
  const DeviceArray<float> top_logprobs(n * kTopLogprobs);
  SampleRows(device_logits.data(), n, vocabulary, device_rows.data(),
             {tokens.data(), logprobs.data(), top_tokens.data(), top_logprobs.data()}, nullptr);
  EXPECT_CUDA_OK(cudaGetLastError());
  const std::vector<int32_t> actual_tokens = tokens.Download();
  const std::vector<float> actual_logprobs = logprobs.Download();
  const std::vector<int32_t> actual_top_tokens = top_tokens.Download();
  const std::vector<float> actual_top_logprobs = top_logprobs.Download();
  for (int row = 0; row < n; ++row) {
    SCOPED_TRACE(testing::Message()
                 << "row " << row << " vocabulary " << vocabulary << " temperature "
                 << params[row].temperature << " top_k " << params[row].top_k << " top_p "
                 << params[row].top_p << " min_p " << params[row].min_p);
    const std::span<const float> mine(logits.data() + int64_t{row} * vocabulary, vocabulary);
    const int32_t token = SampleToken(mine, params[row]);
    EXPECT_EQ(actual_tokens[row], token);
    std::vector<std::pair<int32_t, float>> top;
    double logprob = 0;
    if (params[row].logprobs >= 0) {
      std::vector<float> numbers(mine.begin(), mine.end());
      for (float& logit : numbers) logit = std::isnan(logit) ? -kInfinity : logit;
      const LogProbs expected(numbers);
      logprob = expected.of(token);
      top = expected.Top(std::min(params[row].logprobs, kTopLogprobs));
    }
    top.resize(kTopLogprobs, {-1, 0.0f});
    if (std::isnan(logprob)) {
      EXPECT_TRUE(std::isnan(actual_logprobs[row]));
      continue;
    }
    EXPECT_NEAR(actual_logprobs[row], logprob, 2e-6 * (1 + std::abs(logprob)));
    for (int i = 0; i < kTopLogprobs; ++i) {
      EXPECT_EQ(actual_top_tokens[row * kTopLogprobs + i], top[i].first) << i;
      const float value = actual_top_logprobs[row * kTopLogprobs + i];
      if (value == top[i].second) continue;  // infinities too
      EXPECT_NEAR(value, top[i].second, 2e-6 * (1 + std::abs(top[i].second))) << i;
    }
  }
}

SampleParams RandomParams(std::mt19937& random) {
  const auto pick = [&](std::initializer_list<double> values) {
    return *(values.begin() + random() % values.size());
  };
  return {.temperature = static_cast<float>(pick({0, 0.3, 0.7, 1, 1, 1.5})),
          .top_k = static_cast<int>(pick({0, 0, 1, 2, 50, 1000, 5000, 150000})),
          .top_p = static_cast<float>(pick({1, 1, 0.999, 0.95, 0.9, 0.5, 0.01, 0})),
          .min_p = static_cast<float>(pick({0, 0, 0, 0.05, 0.5, 1})),
          .seed = random(),
          .position = static_cast<int>(random() % 100000),
          .logprobs = static_cast<int>(pick({-1, -1, 0, 1, 5, 20, 30}))};
}

TEST_F(SampleTest, FullVocabulary) {
  std::mt19937 random(1);
  std::vector<float> logits;
  std::vector<SampleParams> params;
  for (int row = 0; row < 48; ++row) {
    const std::vector<float> more = Normal(kVocabulary, row, row % 3 == 0 ? 0.5 : 2.5);
    logits.insert(logits.end(), more.begin(), more.end());
    params.push_back(RandomParams(random));
  }
  Check(logits, params);
}

// Logits that were bf16 once tie by the thousand.
TEST_F(SampleTest, ManyTies) {
  std::mt19937 random(2);
  std::vector<float> logits;
  std::vector<SampleParams> params;
  for (int row = 0; row < 24; ++row) {
    for (const float value : Normal(kVocabulary, 100 + row, 2)) {
      logits.push_back(row % 4 == 0 ? std::round(value)
                                    : static_cast<float>(AsDouble(Bf16Of(value))));
    }
    params.push_back(RandomParams(random));
  }
  Check(logits, params);
}

TEST_F(SampleTest, EveryLogitTheSame) {
  const std::vector<float> logits(int64_t{6} * kVocabulary, -3.25f);
  Check(logits, {{.temperature = 0, .logprobs = 20},
                 {.top_k = 7, .seed = 1, .logprobs = 3},
                 {.top_k = 100000, .seed = 2},
                 {.top_p = 0.5f, .seed = 3},
                 {.top_k = 100001, .top_p = 0.3f, .seed = 4},
                 {.min_p = 1, .seed = 5}});
}

TEST_F(SampleTest, SmallVocabularies) {
  std::mt19937 random(3);
  for (const int vocabulary : {1, 2, 5, 31, 32, 33, 512, 1000, 4097}) {
    std::vector<SampleParams> params;
    for (int row = 0; row < 40; ++row) params.push_back(RandomParams(random));
    Check(Normal(int64_t{40} * vocabulary, vocabulary, 2), params);
  }
}

// Too large for shared memory.
TEST_F(SampleTest, HugeVocabulary) {
  std::mt19937 random(4);
  std::vector<SampleParams> params;
  for (int row = 0; row < 8; ++row) params.push_back(RandomParams(random));
  Check(Normal(int64_t{8} * 600001, 9, 2), params);
}

TEST_F(SampleTest, LogitsThatAreNotNumbers) {
  std::mt19937 random(5);
  std::vector<float> logits = Normal(int64_t{12} * 5000, 10, 2);
  std::vector<SampleParams> params;
  for (int row = 0; row < 12; ++row) {
    float* mine = logits.data() + row * 5000;
    for (int i = 0; i < 5000; ++i) {
      if (row % 6 == 0 && i % 2 == 0) mine[i] = kNan;
      if (row % 6 == 1 && i % 3 == 0) mine[i] = -kInfinity;
      if (row % 6 == 2) mine[i] = i == 77 ? 3.0f : -kInfinity;
      if (row % 6 == 3) mine[i] = i % 2 == 0 ? kNan : -kInfinity;
      if (row % 6 == 4 && i == 99) mine[i] = kInfinity;
      if (row % 6 == 5) mine[i] = i == 4 ? -1e30f : i % 2 == 0 ? -0.0f : 0.0f;
    }
    params.push_back(RandomParams(random));
    if (row % 6 == 3 || row % 6 == 4) params.back().logprobs = -1;
  }
  Check(logits, params);
}

TEST_F(SampleTest, MinPAboveOneTakesTheLargest) {
  Check(Normal(3000, 11, 2), {{.min_p = 1.5f, .seed = 5}});
}

}  // namespace
}  // namespace conclave::kernels::cuda
