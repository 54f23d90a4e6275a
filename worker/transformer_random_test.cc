// A model whose weights are made up by each rank for itself is one model.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "model/model_source.h"
#include "tests/goldens/goldens.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"

namespace conclave::worker {
namespace {

using internal::v1::ExchangeMode;

std::vector<std::vector<int>> Greedy(const model::ParallelShape& shape,
                                     const model::RandomWeights& random, ExchangeMode mode) {
  const auto world = TransformerHarness::Create(
      {.model_dir = goldens::TinyModelDir(), .random = random, .shape = shape});
  EXPECT_TRUE(world.ok()) << world.status();
  std::vector<TestRequest> requests = {{.prompt = {1, 2, 3, 4, 5}, .max_tokens = 16},
                                       {.prompt = {511, 0, 17}, .max_tokens = 16}};
  const auto results = RunRequests(**world, requests, 64, mode);
  EXPECT_TRUE(results.ok()) << results.status();
  std::vector<std::vector<int>> tokens;
  for (const TestResult& result : *results) tokens.push_back(result.tokens);
  return tokens;
}

TEST(TransformerRandomTest, EveryShapeSeesTheSameModel) {
  const auto one = Greedy({}, {.seed = 3}, internal::v1::EXCHANGE_MODE_UNSPECIFIED);
  ASSERT_EQ(one.size(), 2u);
  EXPECT_EQ(one[0].size(), 16u);
  EXPECT_EQ(Greedy({.dp = 2, .tp = 1}, {.seed = 3}, internal::v1::EXCHANGE_MODE_FIXED), one);
  EXPECT_EQ(Greedy({.dp = 1, .tp = 2}, {.seed = 3}, internal::v1::EXCHANGE_MODE_REPLICATED), one);
}

TEST(TransformerRandomTest, AnotherSeedIsAnotherModelAndSoAreFewerLayers) {
  const auto mode = internal::v1::EXCHANGE_MODE_UNSPECIFIED;
  const auto one = Greedy({}, {.seed = 3}, mode);
  EXPECT_NE(Greedy({}, {.seed = 4}, mode), one);
  EXPECT_NE(Greedy({}, {.seed = 3, .layers = 2}, mode), one);
}

}  // namespace
}  // namespace conclave::worker
