// A vocabulary that the tp ranks cannot share out evenly.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/goldens/goldens.h"
#include "tools/checkpoint/folder.h"
#include "tools/checkpoint/random.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"

namespace conclave::worker {
namespace {

constexpr int kVocabulary = 301;
constexpr int kSequences = 7;

class TransformerVocabularyTest : public testing::Test {
 protected:
  // The demo's model with an odd vocabulary and four KV heads, random weights.
  void SetUp() override {
    dir_ = testing::TempDir() + "/odd_vocabulary";
    auto config = tools::ReadJson(goldens::TinyModelDir() + "/config.json");
    ASSERT_TRUE(config.ok()) << config.status();
    (*config)["vocab_size"] = kVocabulary;
    (*config)["num_key_value_heads"] = 4;
    (*config)["eos_token_id"] = {7};
    (*config)["pad_token_id"] = 7;
    const std::string path = testing::TempDir() + "/odd_vocabulary.json";
    ASSERT_TRUE(tools::WriteJson(path, *config).ok());
    tools::RandomCheckpointOptions options;
    options.config = path;
    options.out = dir_;
    const absl::Status status = tools::WriteRandomCheckpoint(options);
    ASSERT_TRUE(status.ok()) << status;
  }

  std::vector<TestResult> Run(const model::ParallelShape& shape, internal::v1::ExchangeMode mode) {
    auto world = TransformerHarness::Create({.model_dir = dir_, .shape = shape});
    EXPECT_TRUE(world.ok()) << world.status();
    if (!world.ok()) return {};
    std::vector<TestRequest> requests;
    for (int i = 0; i < kSequences; ++i) {
      TestRequest& request = requests.emplace_back(
          TestRequest{.prompt = {i, kVocabulary - 1 - i, 40 * i + 3}, .max_tokens = 10});
      request.sampling.set_temperature(i % 3);
      request.sampling.set_seed(100 + i);
      request.sampling.set_logprobs(i);
    }
    auto results = RunRequests(**world, requests, 2, mode);
    EXPECT_TRUE(results.ok()) << results.status();
    return results.ok() ? *std::move(results) : std::vector<TestResult>();
  }

  std::string dir_;
};

TEST_F(TransformerVocabularyTest, EveryTpRankSamplesOverTheWholeVocabulary) {
  using internal::v1::EXCHANGE_MODE_EXACT;
  const std::vector<TestResult> one = Run({1, 1}, EXCHANGE_MODE_EXACT);
  ASSERT_EQ(one.size(), static_cast<size_t>(kSequences));
  int upper = 0;  // tokens of the last rank's part of the vocabulary
  for (const TestResult& result : one) {
    ASSERT_EQ(result.tokens.size(), 10u);
    for (int token : result.tokens) upper += token >= kVocabulary * 3 / 4;
  }
  EXPECT_GT(upper, 0);
  for (const auto& [shape, mode] :
       {std::pair{model::ParallelShape{1, 2}, EXCHANGE_MODE_EXACT},
        {model::ParallelShape{1, 4}, internal::v1::EXCHANGE_MODE_REPLICATED},
        {model::ParallelShape{1, 4}, internal::v1::EXCHANGE_MODE_FIXED},
        {model::ParallelShape{2, 2}, EXCHANGE_MODE_EXACT}}) {
    const std::vector<TestResult> many = Run(shape, mode);
    ASSERT_EQ(many.size(), one.size());
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(many[i].tokens, one[i].tokens) << shape.dp << " x " << shape.tp << " case " << i;
      EXPECT_EQ(many[i].logprobs, one[i].logprobs) << i;
      EXPECT_EQ(many[i].top, one[i].top) << i;
    }
  }
}

}  // namespace
}  // namespace conclave::worker
