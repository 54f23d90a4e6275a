#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels {
namespace {

using reference::RandomData;
using ::testing::ElementsAre;

// How often each id is drawn over 4,000 positions.
std::vector<int> Histogram(const std::vector<float>& logits, SampleParams params) {
  std::vector<int> counts(logits.size());
  for (params.position = 0; params.position < 4000; ++params.position) {
    ++counts[SampleToken(logits, params)];
  }
  return counts;
}

std::set<int> Drawn(const std::vector<float>& logits, const SampleParams& params) {
  std::set<int> out;
  const std::vector<int> counts = Histogram(logits, params);
  for (size_t id = 0; id < counts.size(); ++id) {
    if (counts[id] > 0) out.insert(static_cast<int>(id));
  }
  return out;
}

std::vector<float> LogOf(const std::vector<double>& probabilities) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p)) + 3.0f);
  return out;
}

TEST(SampleTest, TemperatureZeroTakesTheLargestAndTheLowestIdOfATie) {
  EXPECT_EQ(SampleToken(std::vector<float>{1, 5, 2, 5, 5}, {.temperature = 0}), 1);
}

TEST(SampleTest, DrawsFollowTheProbabilities) {
  const std::vector<double> p = {0.1, 0.4, 0.2, 0.3};
  for (const float temperature : {1.0f, 0.5f, 2.0f}) {
    std::vector<double> expected;
    double sum = 0;
    for (const double value : p) sum += std::pow(value, 1 / temperature);
    for (const double value : p) expected.push_back(std::pow(value, 1 / temperature) / sum);
    const std::vector<int> counts = Histogram(LogOf(p), {.temperature = temperature, .seed = 7});
    for (size_t id = 0; id < p.size(); ++id) {
      // Five standard errors of 4,000 draws.
      EXPECT_NEAR(counts[id] / 4000.0, expected[id], 5 * 0.5 / std::sqrt(4000)) << id;
    }
  }
}

TEST(SampleTest, ADrawDependsOnSeedAndPositionAlone) {
  RandomData random(1);
  const std::vector<float> logits = random.Floats(1000, 2);
  const SampleParams params = {.seed = 99, .position = 5};
  const int token = SampleToken(logits, params);
  EXPECT_EQ(SampleToken(logits, params), token);
  std::set<int> others;
  for (int position = 0; position < 20; ++position) {
    others.insert(SampleToken(logits, {.seed = 99, .position = position}));
    others.insert(SampleToken(logits, {.seed = 100 + uint64_t(position), .position = 5}));
  }
  EXPECT_GT(others.size(), 10u);
}

TEST(SampleTest, TopKKeepsTheLargestAndTheLowerIdsOfATie) {
  EXPECT_EQ(Drawn({1, 2, 1.5, 2, 1.5, 1.5}, {.top_k = 3}), (std::set<int>{1, 2, 3}));
}

TEST(SampleTest, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = LogOf({0.1, 0.5, 0.15, 0.25});
  EXPECT_EQ(Drawn(logits, {.top_p = 0.45f}), (std::set<int>{1}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.7f}), (std::set<int>{1, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.8f}), (std::set<int>{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0}), (std::set<int>{1}));
}

TEST(SampleTest, TopPIsOfWhatTopKLeaves) {
  // Of 0.4 and 0.3 the first has 4/7: more than 0.55, less than 0.6.
  const std::vector<float> logits = LogOf({0.4, 0.3, 0.3});
  EXPECT_EQ(Drawn(logits, {.top_k = 2, .top_p = 0.55f}), (std::set<int>{0}));
  EXPECT_EQ(Drawn(logits, {.top_k = 2, .top_p = 0.6f}), (std::set<int>{0, 1}));
}

TEST(SampleTest, TemperatureComesBeforeTopP) {
  // At temperature 0.5 the squares count: 0.36 of 0.52 in all.
  EXPECT_EQ(Drawn(LogOf({0.6, 0.4}), {.temperature = 0.5f, .top_p = 0.65f}), (std::set<int>{0}));
  EXPECT_EQ(Drawn(LogOf({0.6, 0.4}), {.temperature = 1, .top_p = 0.65f}), (std::set<int>{0, 1}));
}

TEST(SampleTest, MinPIsAFractionOfTheLargestProbability) {
  const std::vector<float> logits = LogOf({0.5, 0.26, 0.24});
  EXPECT_EQ(Drawn(logits, {.min_p = 0.5f}), (std::set<int>{0, 1}));
  EXPECT_EQ(Drawn(logits, {.min_p = 0.1f}), (std::set<int>{0, 1, 2}));
}

TEST(SampleTest, WideTopPOverAFullVocabularyMatchesAPlainSort) {
  RandomData random(2);
  constexpr int kVocabulary = 201088;
  const std::vector<float> logits = random.Floats(kVocabulary, 1);
  std::vector<std::pair<float, int>> sorted;
  double total = 0;
  for (int id = 0; id < kVocabulary; ++id) {
    sorted.emplace_back(-logits[id], id);
    total += std::exp(double{logits[id]});
  }
  std::sort(sorted.begin(), sorted.end());
  std::set<int> kept;
  double sum = 0;
  for (size_t i = 0; i < sorted.size() && sum < 0.3 * total; ++i) {
    sum += std::exp(-double{sorted[i].first});
    kept.insert(sorted[i].second);
  }
  ASSERT_GT(kept.size(), 1000u);  // several stretches of the partial sort
  for (int position = 0; position < 25; ++position) {
    EXPECT_TRUE(kept.contains(SampleToken(logits, {.top_p = 0.3f, .position = position})));
  }
}

TEST(SampleTest, LogitsThatAreNotNumbersAreNeverDrawn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Drawn({nan, 1, -infinity, 1, nan}, {}), (std::set<int>{1, 3}));
  EXPECT_EQ(Drawn({nan, 1, -infinity, 1, nan}, {.top_k = 4, .top_p = 0.9f}), (std::set<int>{1, 3}));
  EXPECT_EQ(SampleToken(std::vector<float>{nan, nan}, {}), 0);
  EXPECT_EQ(SampleToken(std::vector<float>{0, infinity}, {}), 1);
}

TEST(LogProbsTest, AreTheLogSoftmaxOfRawLogits) {
  RandomData random(3);
  const std::vector<float> logits = random.Floats(5000, 3);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  const LogProbs logprobs(logits);
  for (const int token : {0, 17, 4999}) {
    EXPECT_NEAR(logprobs.of(token), logits[token] - std::log(sum), 1e-6);
  }
}

TEST(LogProbsTest, TopFallsAndTiesRiseById) {
  const std::vector<float> logits = {1, 3, 2, 3, 2, 2};
  std::vector<int> ids;
  for (const auto& [id, value] : LogProbs(logits).Top(4)) {
    ids.push_back(id);
    EXPECT_EQ(value, LogProbs(logits).of(id));
  }
  EXPECT_THAT(ids, ElementsAre(1, 3, 2, 4));
  EXPECT_EQ(LogProbs(logits).Top(20).size(), logits.size());
  EXPECT_TRUE(LogProbs(logits).Top(0).empty());
}

}  // namespace
}  // namespace conclave::kernels
