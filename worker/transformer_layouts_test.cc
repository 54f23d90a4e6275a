// The same model, saved in the other layouts in circulation, meets the same goldens.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/goldens/goldens.h"
#include "tools/checkpoint/rewrite.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"

namespace conclave::worker {
namespace {

class TransformerLayoutsTest : public testing::TestWithParam<model::Layout> {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/" + std::string(model::LayoutName(GetParam()));
    const absl::Status status = tools::RewriteCheckpoint(
        {.in = goldens::TinyModelDir(), .out = dir_, .layout = GetParam()});
    ASSERT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<TransformerHarness> MakeWorld(const model::ParallelShape& shape) {
    const std::string heads = goldens::TinyModelDir();
    auto world = TransformerHarness::Create(
        {.model_dir = dir_,
         .heads = {{"sequence", heads + "/head_sequence"}, {"token", heads + "/head_token"}},
         .shape = shape});
    EXPECT_TRUE(world.ok()) << world.status();
    return world.ok() ? *std::move(world) : nullptr;
  }

  std::string dir_;
};

TEST_P(TransformerLayoutsTest, LogitsAreThoseOfTheReference) {
  const auto world = MakeWorld({1, 1});
  ASSERT_NE(world, nullptr);
  EXPECT_EQ(world->weights(0).layers[0].experts->format(),
            GetParam() == model::Layout::kBf16 ? "bf16" : "mxfp4");
  for (const goldens::Generation& golden : goldens::LoadGenerations()) {
    const auto logits = TraceLogits(*world, {golden.prompt}, 64);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const std::span<const float> rows((*logits)[0]);
    const size_t vocab = golden.last_logits.size();
    EXPECT_LE(goldens::RelativeL2(rows.last(vocab), golden.last_logits), 1e-4);
    for (size_t at = 0; at < golden.prompt.size(); ++at) {
      EXPECT_NEAR(goldens::LogSumExp(rows.subspan(at * vocab, vocab)), golden.logsumexp[at], 1e-4);
    }
  }
}

TEST_P(TransformerLayoutsTest, TokensAndHeadLogitsAreThoseOfTheReferenceInEveryShape) {
  const auto sequences = goldens::LoadSequenceClassifications();
  const auto tokens = goldens::LoadTokenClassifications();
  const auto generations = goldens::LoadGenerations();
  std::vector<TestRequest> requests;
  for (const auto& golden : generations) {
    requests.push_back({.prompt = golden.prompt, .max_tokens = 24});
  }
  requests.push_back({.prompt = sequences[0].ids, .head = 0});
  requests.push_back({.prompt = tokens[0].ids, .head = 1});
  for (const model::ParallelShape shape : {model::ParallelShape{1, 1}, {3, 1}, {2, 2}}) {
    const auto world = MakeWorld(shape);
    ASSERT_NE(world, nullptr);
    const auto results = RunRequests(*world, requests, 64, internal::v1::EXCHANGE_MODE_EXACT);
    ASSERT_TRUE(results.ok()) << results.status();
    for (size_t i = 0; i < generations.size(); ++i) {
      const size_t steps = generations[i].arg_max_steps;
      ASSERT_EQ((*results)[i].tokens.size(), 24u);
      EXPECT_TRUE(std::equal(generations[i].greedy.begin(), generations[i].greedy.begin() + steps,
                             (*results)[i].tokens.begin()))
          << shape.dp << " x " << shape.tp << " case " << i;
    }
    const auto& sequence = (*results)[generations.size()].head_logits;
    const auto& want = sequences[0].logits[0];
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(sequence[sequence.size() - want.size() + i], want[i], 1e-4);
    }
    const auto& token = (*results)[generations.size() + 1].head_logits;
    for (size_t i = 0; i < token.size(); ++i) {
      EXPECT_NEAR(token[i], tokens[0].logits[i / 5][i % 5], 1e-4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, TransformerLayoutsTest,
                         testing::Values(model::Layout::kBf16, model::Layout::kOriginal),
                         [](const auto& parameter) {
                           return std::string(model::LayoutName(parameter.param));
                         });

}  // namespace
}  // namespace conclave::worker
