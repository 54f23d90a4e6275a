#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
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

// --- Every option against its definition, drawn often: chi-square, level 1e-5 each. ---

// What the options are given; see SamplingParams in the public API.
struct Options {
  SampleParams params;
  std::map<int, float> bias = {};
  std::vector<int> prompt = {};
  std::vector<int> generated = {};
  std::vector<int> ends = {};
};

// The definition, word by word and without regard to cost: probabilities of all ids, in float64.
std::vector<double> Defined(std::vector<float> raw, const Options& options) {
  const SampleParams& p = options.params;
  std::vector<double> z(raw.begin(), raw.end());
  for (const auto& [id, bias] : options.bias) z[id] += bias;
  const std::set<int> generated(options.generated.begin(), options.generated.end());
  std::set<int> seen(options.prompt.begin(), options.prompt.end());
  seen.insert(generated.begin(), generated.end());
  for (const int id : seen) {
    z[id] = z[id] > 0 ? z[id] / p.repetition_penalty : z[id] * p.repetition_penalty;
  }
  for (const int id : options.generated) z[id] -= p.frequency_penalty;
  for (const int id : generated) z[id] -= p.presence_penalty;
  for (const int id : options.ends) z[id] = -HUGE_VAL;
  std::vector<int> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return z[a] > z[b]; });
  std::vector<double> weights;
  for (const int id : order) weights.push_back(std::exp((z[id] - z[order[0]]) / p.temperature));
  if (p.top_k > 0) weights.resize(std::min<size_t>(p.top_k, weights.size()));
  const double wanted = p.top_p * std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  size_t kept = 0;
  while (kept < weights.size() && sum < wanted) sum += weights[kept++];
  weights.resize(std::max<size_t>(kept, 1));
  std::erase_if(weights, [&](double weight) { return weight < p.min_p; });
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> out(z.size(), 0.0);
  for (size_t i = 0; i < weights.size(); ++i) out[order[i]] = weights[i] / total;
  return out;
}

// As the backend does it.
std::vector<float> Adjusted(std::vector<float> logits, Options& options) {
  std::vector<int32_t> bias_tokens;
  std::vector<float> biases;
  for (const auto& [id, bias] : options.bias) {
    bias_tokens.push_back(id);
    biases.push_back(bias);
  }
  const std::vector<int32_t> ends(options.ends.begin(), options.ends.end());
  const std::vector<int32_t> prompt(options.prompt.begin(), options.prompt.end());
  SlotTokens slot({.bias_tokens = bias_tokens,
                   .biases = biases,
                   .end_tokens = ends,
                   .counted = true,
                   .history = prompt,
                   .prompt_tokens = static_cast<int>(prompt.size())});
  for (const int id : options.generated) slot.CountGenerated(id);
  options.params.biased = !biases.empty();
  options.params.mask_ends = !ends.empty();
  options.params.counted = true;
  slot.Adjust(options.params, logits);
  return logits;
}

constexpr int kDraws = 40000;

// How far draws are from the probabilities: the chi-square statistic as a standard normal (Wilson
// and Hilferty). Ids of less than five draws expected count together.
double ChiSquareDeviation(const std::vector<int>& counts, const std::vector<double>& p) {
  double statistic = 0;
  double rest_p = 0;
  int rest = 0;
  int cells = 0;
  const auto add = [&](double expected, int count) {
    statistic += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t id = 0; id < p.size(); ++id) {
    if (p[id] * kDraws >= 5) {
      add(p[id] * kDraws, counts[id]);
    } else {
      rest_p += p[id];
      rest += counts[id];
    }
  }
  if (rest_p * kDraws >= 1) add(rest_p * kDraws, rest);
  const double freedom = cells - 1;
  if (freedom < 1) return 0;
  const double spread = 2 / (9 * freedom);
  return (std::cbrt(statistic / freedom) - (1 - spread)) / std::sqrt(spread);
}

constexpr double kDeviationAtLevel = 4.27;  // a standard normal is above it once in 1e5 times

std::vector<int> DrawOften(const std::vector<float>& logits, SampleParams params) {
  std::vector<int> counts(logits.size());
  for (params.position = 0; params.position < kDraws; ++params.position) {
    ++counts[SampleToken(logits, params)];
  }
  return counts;
}

std::vector<Options> EveryOption() {
  std::vector<Options> out;
  const auto add = [&](Options options) {
    options.params.seed = 1000 + out.size();
    out.push_back(options);
  };
  add({});
  for (const float t : {0.3f, 0.8f, 1.7f, 20.0f}) add({.params = {.temperature = t}});
  for (const int k : {1, 3, 17, 1000}) add({.params = {.top_k = k}});
  for (const float p : {0.2f, 0.75f, 0.99f}) add({.params = {.top_p = p}});
  for (const float p : {0.01f, 0.2f, 0.9f}) add({.params = {.min_p = p}});
  const std::vector<int> prompt = {1, 2, 2, 5, 8, 13, 30};
  const std::vector<int> generated = {2, 3, 3, 3, 21, 40, 40};
  for (const float r : {0.5f, 1.3f, 4.0f}) {
    add({.params = {.repetition_penalty = r}, .prompt = prompt, .generated = generated});
  }
  for (const float p : {-1.5f, 0.7f, 2.0f}) {
    add({.params = {.presence_penalty = p}, .prompt = prompt, .generated = generated});
    add({.params = {.frequency_penalty = p}, .prompt = prompt, .generated = generated});
  }
  add({.params = {}, .bias = {{3, 4.0f}, {20, -100.0f}, {31, 0.5f}}});
  add({.params = {}, .ends = {0, 7, 9}});
  add({.params = {.temperature = 0.9f,
                  .top_k = 30,
                  .top_p = 0.95f,
                  .min_p = 0.02f,
                  .repetition_penalty = 1.2f,
                  .presence_penalty = 0.4f,
                  .frequency_penalty = 0.3f},
       .bias = {{2, 1.0f}, {7, 9.0f}, {11, -2.0f}},
       .prompt = prompt,
       .generated = generated,
       .ends = {7, 9}});
  return out;
}

TEST(SampleStatisticsTest, EveryOptionDrawsAsItIsDefined) {
  RandomData random(17);
  for (Options& options : EveryOption()) {
    const std::vector<float> raw = random.Floats(50, 2);
    SCOPED_TRACE(testing::Message() << "seed " << options.params.seed);
    const std::vector<double> expected = Defined(raw, options);
    const std::vector<int> counts = DrawOften(Adjusted(raw, options), options.params);
    for (size_t id = 0; id < raw.size(); ++id) {
      EXPECT_TRUE(expected[id] > 0 || counts[id] == 0) << id;
    }
    EXPECT_LT(ChiSquareDeviation(counts, expected), kDeviationAtLevel);
  }
}

// The statistic does find what is wrong: each option left out, or 5 % off.
TEST(SampleStatisticsTest, AnotherDistributionIsFound) {
  RandomData random(18);
  const std::vector<float> raw = random.Floats(50, 2);
  const std::vector<int> plain = DrawOften(raw, {.seed = 5});
  EXPECT_LT(ChiSquareDeviation(plain, Defined(raw, {})), kDeviationAtLevel);
  EXPECT_GT(ChiSquareDeviation(plain, Defined(raw, {.params = {.temperature = 1.05f}})),
            kDeviationAtLevel);
  const std::vector<int> generated = {0, 1, 2, 3, 3, 4, 5};
  for (const SampleParams& other :
       {SampleParams{.repetition_penalty = 1.1f}, SampleParams{.presence_penalty = 0.1f},
        SampleParams{.frequency_penalty = 0.1f}}) {
    const Options options = {.params = other, .generated = generated};
    EXPECT_GT(ChiSquareDeviation(plain, Defined(raw, options)), kDeviationAtLevel);
  }
}

// --- The order: examples that every exchange of two neighbours would decide otherwise. ---

int Best(const std::vector<float>& logits, Options options) {
  options.params.temperature = 0;
  const std::vector<float> adjusted = Adjusted(logits, options);
  return SampleToken(adjusted, options.params);
}

TEST(SampleOrderTest, BiasComesBeforeTheRepetitionPenalty) {
  // (-1 + 2) / 2 = 0.5, not -1 * 2 + 2 = 0.
  EXPECT_EQ(
      Best({-1, 0.25f}, {.params = {.repetition_penalty = 2}, .bias = {{0, 2}}, .prompt = {0}}), 0);
}

TEST(SampleOrderTest, RepetitionComesBeforeFrequencyAndPresence) {
  // 2 / 2 - 1 = 0, not (2 - 1) / 2 = 0.5.
  EXPECT_EQ(Best({2, 0.25f},
                 {.params = {.repetition_penalty = 2, .frequency_penalty = 1}, .generated = {0}}),
            1);
  EXPECT_EQ(Best({2, 0.25f},
                 {.params = {.repetition_penalty = 2, .presence_penalty = 1}, .generated = {0}}),
            1);
}

TEST(SampleOrderTest, NothingBringsAMaskedEndTokenBack) {
  EXPECT_EQ(Best({1, 0.25f}, {.params = {.repetition_penalty = 0.01f, .frequency_penalty = -2},
                              .bias = {{0, 100}},
                              .generated = {0, 0},
                              .ends = {0}}),
            1);
}

TEST(SampleOrderTest, EndTokensAreMaskedBeforeTopK) {
  Options options = {.params = {.top_k = 1}, .ends = {0}};
  EXPECT_EQ(Drawn(Adjusted({5, 4, 1}, options), options.params), (std::set<int>{1}));
}

TEST(SampleOrderTest, PenaltiesComeBeforeTemperature) {
  // (1 - 0.5) / 0.5 = 1 has 0.73 of the probability, short of top_p; 1 / 0.5 - 0.5 = 1.5 would have
  // 0.82, and be kept alone.
  Options options = {.params = {.temperature = 0.5f, .top_p = 0.75f, .presence_penalty = 0.5f},
                     .generated = {0}};
  EXPECT_EQ(Drawn(Adjusted({1, 0}, options), options.params), (std::set<int>{0, 1}));
}

TEST(SampleOrderTest, TopPIsOfAllThatMinPWouldDropToo) {
  // 0.5 + 0.26 reach 0.6 of all. Of what min_p leaves, 0.76, id 0 alone would reach it.
  EXPECT_EQ(Drawn(LogOf({0.5, 0.26, 0.24}), {.top_p = 0.6f, .min_p = 0.5f}), (std::set<int>{0, 1}));
}

TEST(SampleOrderTest, CountsAreOfTheSequenceHoweverItCameToBe) {
  // One that lost its slot comes back with its history in place of counted draws.
  const std::vector<int32_t> history = {4, 4, 1, 2, 2};  // two of the prompt
  const SlotTokens back({.counted = true, .history = history, .prompt_tokens = 2});
  SlotTokens first({.counted = true, .history = std::span(history).first(2), .prompt_tokens = 2});
  for (const int32_t token : {1, 2, 2}) first.CountGenerated(token);
  const SampleParams params = {.counted = true,
                               .repetition_penalty = 1.5f,
                               .presence_penalty = 0.25f,
                               .frequency_penalty = 0.125f};
  std::vector<float> a = {3, 3, 3, 3, 3};
  std::vector<float> b = a;
  first.Adjust(params, a);
  back.Adjust(params, b);
  EXPECT_EQ(a, b);
  EXPECT_THAT(a, ElementsAre(3, 2 - 0.375f, 2 - 0.5f, 3, 2));
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
