// Worlds of several ranks: the same tokens as one rank, in every shape and exchange mode.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

#include "model/memory_plan.h"
#include "tests/goldens/goldens.h"
#include "worker/transformer.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"

namespace conclave::worker {
namespace {

using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;
using internal::v1::EXCHANGE_MODE_UNSPECIFIED;
using internal::v1::ExchangeMode;

std::unique_ptr<TransformerHarness> MakeWorld(const model::ParallelShape& shape,
                                              model::Placement placement = {}) {
  const std::string dir = goldens::TinyModelDir();
  auto harness = TransformerHarness::Create({.model_dir = dir,
                                             .heads = {{"token", dir + "/head_token"}},
                                             .shape = shape,
                                             .placement = std::move(placement),
                                             .max_sequences = 16});
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
}

std::vector<int> RandomPrompt(std::mt19937& random, int most) {
  std::vector<int> prompt(std::uniform_int_distribution<int>(1, most)(random));
  for (int& id : prompt) id = std::uniform_int_distribution<int>(0, 511)(random);
  return prompt;
}

// The goldens, prompts that are sampled with everything on, and one that reads a head.
std::vector<TestRequest> MixedRequests() {
  std::vector<TestRequest> requests;
  for (const goldens::Generation& golden : goldens::LoadGenerations()) {
    requests.push_back({.prompt = golden.prompt, .max_tokens = 24});
  }
  std::mt19937 random(2);
  for (int i = 0; i < 3; ++i) {
    TestRequest& request =
        requests.emplace_back(TestRequest{.prompt = RandomPrompt(random, 40), .max_tokens = 12});
    request.sampling.set_temperature(1.1f);
    request.sampling.set_top_p(0.95f);
    request.sampling.set_top_k(100);
    request.sampling.set_seed(random());
    request.sampling.set_logprobs(i * 3);
  }
  requests.push_back({.prompt = RandomPrompt(random, 40), .head = 0});
  TestRequest& options =
      requests.emplace_back(TestRequest{.prompt = RandomPrompt(random, 40), .max_tokens = 16});
  options.prompt_logprobs = 3;
  internal::v1::Sampling& sampling = options.sampling;
  sampling.set_temperature(0.9f);
  sampling.set_seed(5);
  sampling.set_logprobs(2);
  sampling.set_repetition_penalty(1.2f);
  sampling.set_presence_penalty(0.5f);
  sampling.set_frequency_penalty(0.25f);
  sampling.add_bias_tokens(300);
  sampling.add_biases(4);
  for (int id = 0; id < 100; ++id) sampling.add_end_tokens(id);
  sampling.set_prompt_tokens(static_cast<uint32_t>(options.prompt.size()));
  sampling.set_first_end_position(sampling.prompt_tokens() + 8);
  return requests;
}

// What one rank answers, computed once.
const std::vector<TestResult>& Expected() {
  static const std::vector<TestResult>* const expected = [] {
    auto world = MakeWorld({});
    return new std::vector<TestResult>(
        *RunRequests(*world, MixedRequests(), 64, EXCHANGE_MODE_UNSPECIFIED));
  }();
  return *expected;
}

void ExpectSame(const std::vector<TestResult>& got, const std::vector<TestResult>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
    EXPECT_EQ(got[i].logprobs, want[i].logprobs) << "request " << i;
    EXPECT_EQ(got[i].top, want[i].top) << "request " << i;
    EXPECT_EQ(got[i].head_logits, want[i].head_logits) << "request " << i;
    EXPECT_EQ(got[i].prompt_logprobs, want[i].prompt_logprobs) << "request " << i;
    EXPECT_EQ(got[i].prompt_top, want[i].prompt_top) << "request " << i;
  }
}

struct Case {
  model::ParallelShape shape;
  ExchangeMode mode;
};

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const std::string mode = info.param.mode == EXCHANGE_MODE_FIXED   ? "Fixed"
                           : info.param.mode == EXCHANGE_MODE_EXACT ? "Exact"
                                                                    : "Replicated";
  return fmt::format("Dp{}Tp{}{}", info.param.shape.dp, info.param.shape.tp, mode);
}

class TransformerParallelTest : public testing::TestWithParam<Case> {};

TEST_P(TransformerParallelTest, AnswersAreThoseOfOneRankInAnyChunking) {
  const auto world = MakeWorld(GetParam().shape);
  ASSERT_NE(world, nullptr);
  for (int chunk : {7, 64}) {
    const auto results = RunRequests(*world, MixedRequests(), chunk, GetParam().mode);
    ASSERT_TRUE(results.ok()) << results.status();
    ExpectSame(*results, Expected());
  }
}

// Most groups have no rows at all, and a tp rank none of the only row.
TEST_P(TransformerParallelTest, IdleRanksTakePartInEveryExchange) {
  const auto world = MakeWorld(GetParam().shape);
  ASSERT_NE(world, nullptr);
  const goldens::Generation golden = goldens::LoadGenerations()[1];
  const auto results =
      RunRequests(*world, {{.prompt = golden.prompt, .max_tokens = 24}}, 7, GetParam().mode);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ((*results)[0].tokens, golden.greedy);
}

TEST_P(TransformerParallelTest, ActivationsTakeTheBytesThatWerePlanned) {
  const auto world = MakeWorld(GetParam().shape);
  ASSERT_NE(world, nullptr);
  const HarnessOptions& options = world->options();
  const int64_t planned = model::PlanActivations(
      world->config(), options.shape,
      {.max_step_tokens = options.max_step_tokens, .max_sequences = options.max_sequences});
  const int64_t allocated = world->transformer(0).activation_bytes();
  EXPECT_LE(allocated, planned * 1.02);
  EXPECT_GE(allocated, planned * 0.98);
}

// Load of each expert of a layer, summed over the ranks.
std::map<std::pair<int, int>, uint64_t> TotalLoad(TransformerHarness& world) {
  std::map<std::pair<int, int>, uint64_t> total;
  for (int rank = 0; rank < world.options().shape.world(); ++rank) {
    const std::vector<uint64_t> load = world.transformer(rank).ExpertLoad();
    size_t at = 0;
    for (int layer = 0; layer < world.config().num_layers; ++layer) {
      for (int expert : world.weights(rank).layers[layer].local_experts) {
        total[{layer, expert}] += load[at++];
      }
    }
    EXPECT_EQ(at, load.size());
  }
  return total;
}

TEST_P(TransformerParallelTest, EveryChosenExpertIsComputedOnce) {
  const std::vector<TestRequest> requests = MixedRequests();
  const auto one = MakeWorld({});
  const auto many = MakeWorld(GetParam().shape);
  ASSERT_TRUE(one != nullptr && many != nullptr);
  ASSERT_TRUE(RunRequests(*one, requests, 64, EXCHANGE_MODE_UNSPECIFIED).ok());
  ASSERT_TRUE(RunRequests(*many, requests, 64, GetParam().mode).ok());
  const auto load = TotalLoad(*many);
  EXPECT_EQ(load, TotalLoad(*one));
  uint64_t computed = 0;
  for (const auto& [expert, count] : load) computed += count;
  uint64_t rows = 0;
  for (const TestRequest& request : requests) {
    rows += request.prompt.size() + std::max(0, request.max_tokens - 1);
  }
  EXPECT_EQ(computed, rows * 4 * 4) << "4 layers, 4 experts a token";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, TransformerParallelTest,
    testing::Values(Case{{2, 1}, EXCHANGE_MODE_FIXED}, Case{{2, 1}, EXCHANGE_MODE_EXACT},
                    Case{{3, 1}, EXCHANGE_MODE_FIXED}, Case{{3, 1}, EXCHANGE_MODE_EXACT},
                    Case{{4, 1}, EXCHANGE_MODE_FIXED}, Case{{4, 1}, EXCHANGE_MODE_EXACT},
                    Case{{1, 2}, EXCHANGE_MODE_FIXED}, Case{{1, 2}, EXCHANGE_MODE_EXACT},
                    Case{{1, 2}, EXCHANGE_MODE_REPLICATED}, Case{{2, 2}, EXCHANGE_MODE_FIXED},
                    Case{{2, 2}, EXCHANGE_MODE_EXACT}),
    CaseName);

TEST(TransformerParallelModesTest, TheModeMayChangeFromStepToStep) {
  const auto world = MakeWorld({1, 2});
  ASSERT_NE(world, nullptr);
  const goldens::Generation golden = goldens::LoadGenerations()[2];
  GroupDriver driver(world->config(), world->options(), 7);
  driver.Add({.prompt = golden.prompt, .max_tokens = 24});
  const ExchangeMode modes[] = {EXCHANGE_MODE_EXACT, EXCHANGE_MODE_REPLICATED, EXCHANGE_MODE_FIXED};
  for (int step = 0; !driver.Done(); ++step) {
    const auto outputs = world->Step({driver.Next()}, modes[step % 3], 4);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    driver.Absorb((*outputs)[0]);
  }
  EXPECT_EQ(driver.results()[0].tokens, golden.greedy);
}

TEST(TransformerParallelModesTest, ReplicasOfAnExpertChangeNothing) {
  const auto one = MakeWorld({});
  ASSERT_NE(one, nullptr);
  const std::vector<uint64_t> load(int64_t{one->config().num_layers} * one->config().num_experts,
                                   1);
  const model::Placement placement = model::PlacementFromLoad(one->config(), 4, load, 4);
  for (const auto& [shape, mode] :
       {Case{{4, 1}, EXCHANGE_MODE_EXACT}, Case{{4, 1}, EXCHANGE_MODE_FIXED},
        Case{{2, 2}, EXCHANGE_MODE_EXACT}}) {
    const auto world = MakeWorld(shape, placement);
    ASSERT_NE(world, nullptr);
    const auto results = RunRequests(*world, MixedRequests(), 64, mode);
    ASSERT_TRUE(results.ok()) << results.status();
    ExpectSame(*results, Expected());
  }
  const model::Placement two = model::PlacementFromLoad(one->config(), 2, load, 4);
  const auto world = MakeWorld({1, 2}, two);
  ASSERT_NE(world, nullptr);
  const auto results = RunRequests(*world, MixedRequests(), 64, EXCHANGE_MODE_REPLICATED);
  ASSERT_TRUE(results.ok()) << results.status();
  ExpectSame(*results, Expected());
}

TEST(TransformerParallelModesTest, PlansThatCannotBeExecutedAreInternal) {
  const auto world = MakeWorld({2, 1});
  ASSERT_NE(world, nullptr);
  const auto step = [&](ExchangeMode mode, int bucket, int tokens) {
    GroupDriver driver(world->config(), world->options(), 64);
    GroupDriver idle(world->config(), world->options(), 64);
    const std::vector<int> prompt(tokens, 5);
    driver.Add({.prompt = prompt});
    idle.Add({.prompt = prompt});
    const auto status = world->Step({driver.Next(), idle.Next()}, mode, bucket).status();
    const auto freed = world->Step({driver.Next(), idle.Next()}, EXCHANGE_MODE_EXACT, 0);
    EXPECT_TRUE(freed.ok()) << freed.status();
    return status;
  };
  const absl::Status replicated = step(EXCHANGE_MODE_REPLICATED, 0, 3);
  EXPECT_EQ(replicated.code(), absl::StatusCode::kInternal) << replicated;
  EXPECT_THAT(std::string(replicated.message()), testing::HasSubstr("dp = 2"));
  const absl::Status unspecified = step(EXCHANGE_MODE_UNSPECIFIED, 0, 3);
  EXPECT_EQ(unspecified.code(), absl::StatusCode::kInternal) << unspecified;
  const absl::Status bucket = step(EXCHANGE_MODE_FIXED, 2, 3);
  EXPECT_EQ(bucket.code(), absl::StatusCode::kInternal) << bucket;
  EXPECT_THAT(std::string(bucket.message()), testing::HasSubstr("2 slots for 3 rows"));
  EXPECT_TRUE(step(EXCHANGE_MODE_FIXED, 3, 3).ok());
}

TEST(TransformerParallelModesTest, ATraceNeedsOneRank) {
  const auto world = MakeWorld({2, 1});
  ASSERT_NE(world, nullptr);
  EXPECT_EQ(world->transformer(0).TraceStep(ResolvedStep()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace conclave::worker
