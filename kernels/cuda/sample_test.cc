#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/cpu/sample.h"
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/sample_slots.h"

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

// What a slot is told.
struct Slot {
  std::vector<int32_t> bias_tokens;
  std::vector<float> biases;
  std::vector<int32_t> ends;
  std::vector<int32_t> history;
  int prompt_tokens = 0;

  SlotSampling sampling() const {
    return {bias_tokens, biases, ends, true, history, prompt_tokens};
  }
};

class SampleTest : public DeviceTest {
 protected:
  // Every row as the CPU samples it: tokens equal, log-probabilities to float32. With `slots`, one
  // for each row, logits are changed as the parameters say, and the tokens drawn are counted.
  void Check(const std::vector<float>& logits, const std::vector<SampleParams>& params,
             std::vector<Slot> slots = {}, int steps = 1);
  void CheckStep(const std::vector<float>& logits, const std::vector<SampleParams>& params,
                 std::vector<SlotTokens>& slot_tokens, const SampleSlots* slots);
};

void SampleTest::Check(const std::vector<float>& logits, const std::vector<SampleParams>& params,
                       std::vector<Slot> slots, int steps) {
  const auto n = static_cast<int>(params.size());
  if (slots.empty()) {
    std::vector<SlotTokens> none;
    CheckStep(logits, params, none, nullptr);
    return;
  }
  auto made = SampleSlots::Create(n, static_cast<int>(logits.size() / n));
  ASSERT_TRUE(made.ok()) << made.status();
  std::vector<SlotTokens> slot_tokens;
  for (int row = 0; row < n; ++row) {
    slot_tokens.emplace_back(slots[row].sampling());
    // Rows do not stand in the order of their slots.
    const absl::Status set = (*made)->Set(n - 1 - row, slots[row].sampling(), nullptr);
    ASSERT_TRUE(set.ok()) << set;
  }
  for (int step = 0; step < steps; ++step) CheckStep(logits, params, slot_tokens, made->get());
}

void SampleTest::CheckStep(const std::vector<float>& logits,
                           const std::vector<SampleParams>& params,
                           std::vector<SlotTokens>& slot_tokens, const SampleSlots* slots) {
  const auto n = static_cast<int>(params.size());
  const int vocabulary = static_cast<int>(logits.size() / n);
  std::vector<SampleRow> rows;
  for (const SampleParams& p : params) {
    rows.push_back({p.temperature, p.top_k, p.top_p, p.min_p, p.seed, p.position, p.logprobs,
                    p.biased, p.counted, p.mask_ends,
                    Penalties{p.repetition_penalty, p.presence_penalty, p.frequency_penalty}});
  }
  std::vector<int32_t> slot_of_row(n);
  for (int row = 0; row < n; ++row) slot_of_row[row] = n - 1 - row;
  const DeviceArray<int32_t> device_slots(slot_of_row);
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<SampleRow> device_rows(rows);
  const DeviceArray<int32_t> tokens(n);
  const DeviceArray<float> logprobs(n);
  const DeviceArray<int32_t> top_tokens(n * kTopLogprobs);
  const DeviceArray<float> top_logprobs(n * kTopLogprobs);
  const SampledRows output = {tokens.data(), logprobs.data(), top_tokens.data(),
                              top_logprobs.data()};
  if (slots == nullptr) {
    SampleRows(device_logits.data(), n, vocabulary, device_rows.data(), output, nullptr);
  } else {
    SampleAdjustedRows(device_logits.data(), n, vocabulary, device_rows.data(), device_slots.data(),
                       slots->table(), output, nullptr);
    CountSampled(tokens.data(), n, device_rows.data(), device_slots.data(), slots->table(),
                 nullptr);
  }
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
    std::vector<float> adjusted(mine.begin(), mine.end());
    if (slots != nullptr) slot_tokens[row].Adjust(params[row], adjusted);
    const int32_t token = SampleToken(adjusted, params[row]);
    EXPECT_EQ(actual_tokens[row], token);
    if (slots != nullptr && params[row].counted) slot_tokens[row].CountGenerated(token);
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

// Half of the options on, of a slot that has seen much.
Slot RandomSlot(std::mt19937& random, int vocabulary, SampleParams& params) {
  Slot slot;
  for (int i = 0; i < std::min(300, vocabulary); ++i) {
    slot.bias_tokens.push_back(static_cast<int>((int64_t{i} * 7919) % vocabulary));
  }
  std::sort(slot.bias_tokens.begin(), slot.bias_tokens.end());
  slot.bias_tokens.erase(std::unique(slot.bias_tokens.begin(), slot.bias_tokens.end()),
                         slot.bias_tokens.end());
  for (size_t i = 0; i < slot.bias_tokens.size(); ++i) {
    slot.biases.push_back(static_cast<float>(random() % 200) * 0.1f - 10);
  }
  for (int i = 0; i < 50; ++i) slot.ends.push_back(static_cast<int>(random() % vocabulary));
  for (int i = 0; i < 2000; ++i) slot.history.push_back(static_cast<int>(random() % vocabulary));
  slot.history.insert(slot.history.end(), 500, slot.history[3]);
  slot.prompt_tokens = static_cast<int>(random() % slot.history.size());
  params.biased = random() % 2 == 0;
  params.counted = random() % 2 == 0;
  params.mask_ends = random() % 2 == 0;
  params.repetition_penalty = 0.8f + static_cast<float>(random() % 100) * 0.01f;
  params.presence_penalty = static_cast<float>(random() % 40) * 0.1f - 2;
  params.frequency_penalty = static_cast<float>(random() % 40) * 0.1f - 2;
  return slot;
}

TEST_F(SampleTest, RowsWhoseSlotsChangeTheirLogits) {
  std::mt19937 random(21);
  for (const auto& [vocabulary, n] :
       {std::pair{kVocabulary, 24}, {kVocabulary, 8}, {1000, 40}, {5, 40}, {600001, 6}}) {
    std::vector<SampleParams> params;
    std::vector<Slot> slots;
    for (int row = 0; row < n; ++row) {
      params.push_back(RandomParams(random));
      slots.push_back(RandomSlot(random, vocabulary, params.back()));
    }
    Check(Normal(int64_t{n} * vocabulary, vocabulary + n, 2), params, slots, 3);
  }
}

TEST_F(SampleTest, ATokenDrawnAgainAndAgainIsCountedEachTime) {
  Slot slot;
  slot.history = {1, 2};
  slot.prompt_tokens = 2;
  std::vector<float> logits = Normal(3000, 5, 0.5);
  logits[7] = 20;
  Check(logits, {{.temperature = 0, .logprobs = 2, .counted = true, .frequency_penalty = 0.5f}},
        {slot}, 80);
}

TEST_F(SampleTest, AnotherSequenceInASlotStartsAnew) {
  auto slots = SampleSlots::Create(1, 1000);
  ASSERT_TRUE(slots.ok()) << slots.status();
  Slot before;
  before.history.assign(900, 7);
  ASSERT_TRUE((*slots)->Set(0, before.sampling(), nullptr).ok());
  Slot after;
  after.history = {9, 9, 9};
  after.prompt_tokens = 1;
  ASSERT_TRUE((*slots)->Set(0, after.sampling(), nullptr).ok());
  SampleSlot entry;
  EXPECT_CUDA_OK(cudaMemcpy(&entry, (*slots)->table(), sizeof(entry), cudaMemcpyDefault));
  std::vector<TokenCount> counts(1000);
  EXPECT_CUDA_OK(cudaMemcpy(counts.data(), entry.counts, 2000, cudaMemcpyDefault));
  for (int id = 0; id < 1000; ++id) EXPECT_EQ(counts[id], id == 9 ? kInPrompt + 2 : 0) << id;
}

TEST_F(SampleTest, LogprobsOfTargets) {
  constexpr int kRows = 9;
  for (const int vocabulary : {kVocabulary, 50, 600001}) {
    const std::vector<float> logits = Normal(int64_t{kRows} * vocabulary, vocabulary, 2);
    std::vector<int32_t> wanted;
    for (int row = 0; row < kRows; ++row) wanted.push_back(row * 5 % vocabulary);
    const DeviceArray<float> device_logits(logits);
    const DeviceArray<int32_t> targets(wanted);
    const DeviceArray<float> logprobs(kRows);
    const DeviceArray<int32_t> top_tokens(kRows * kTopLogprobs);
    const DeviceArray<float> top_logprobs(kRows * kTopLogprobs);
    for (const int top : {0, 4, 20}) {
      TargetLogprobs(device_logits.data(), kRows, vocabulary, targets.data(), top,
                     {nullptr, logprobs.data(), top_tokens.data(), top_logprobs.data()}, nullptr);
      EXPECT_CUDA_OK(cudaGetLastError());
      const std::vector<float> actual = logprobs.Download();
      const std::vector<int32_t> actual_top = top_tokens.Download();
      const std::vector<float> actual_values = top_logprobs.Download();
      for (int row = 0; row < kRows; ++row) {
        const LogProbs expected(
            std::span<const float>(logits.data() + int64_t{row} * vocabulary, vocabulary));
        const float value = expected.of(wanted[row]);
        EXPECT_NEAR(actual[row], value, 2e-6 * (1 + std::abs(value)));
        auto list = expected.Top(top);
        list.resize(kTopLogprobs, {-1, 0.0f});
        for (int i = 0; i < kTopLogprobs; ++i) {
          EXPECT_EQ(actual_top[row * kTopLogprobs + i], list[i].first);
          EXPECT_NEAR(actual_values[row * kTopLogprobs + i], list[i].second,
                      2e-6 * (1 + std::abs(list[i].second)));
        }
      }
    }
  }
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
