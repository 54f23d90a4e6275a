// It is the engine it claims to be: what the counters of a running service show.

#include <gtest/gtest.h>

#include "proto/conclave/v1/generation.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

class EngineTest : public ::testing::Test {
 protected:
  // One server for all: counters are compared before and after.
  static void SetUpTestSuite() {
    server_ = new Server({.workers = 2, .args = {"--prefill-chunk", "16"}});
    ASSERT_TRUE(server_->WaitServing()) << server_->log();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  v1::Counters Counters() { return server_->Cluster().counters(); }
  // Waits until nothing is running and every plan has been answered, so that counters stand still.
  v1::Counters Settled() {
    EXPECT_TRUE(server_->WaitForCluster(
        [](const v1::GetClusterResponse& cluster) {
          return cluster.counters().running() == 0 && cluster.counters().full_blocks().used() == 0;
        },
        Scaled(absl::Seconds(10))));
    return Counters();
  }

  static Server* server_;
};

Server* EngineTest::server_ = nullptr;

TEST_F(EngineTest, EachTokenIsComputedOnce) {
  const Tokens prompt = RandomPrompts(1, 232)[0];
  const v1::Counters before = Settled();
  const auto tokens = GenerateOne(server_->channel(), GreedyRequest(prompt, 20));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  const v1::Counters after = Settled();
  // Ended by length: no plan goes past max_tokens, so there is no overrun either.
  EXPECT_EQ(after.tokens_computed() - before.tokens_computed(), prompt.size() + 20 - 1);
  EXPECT_EQ(after.overrun_tokens(), before.overrun_tokens());
}

TEST_F(EngineTest, AStoppedSequenceOverrunsByOneTokenAtMost) {
  const GoldenCase golden = LoadGoldens()[2];
  v1::GenerateRequest request = GreedyRequest(golden.prompt, 24);
  request.mutable_stop()->add_stop_token_ids(golden.greedy[9]);
  const v1::Counters before = Settled();
  const auto tokens = GenerateOne(server_->channel(), request);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_FALSE(tokens->empty());
  EXPECT_EQ(tokens->back(), golden.greedy[9]);
  const v1::Counters after = Settled();
  const uint64_t computed = after.tokens_computed() - before.tokens_computed();
  const uint64_t needed = golden.prompt.size() + tokens->size() - 1;
  EXPECT_GE(computed, needed);
  EXPECT_LE(computed, needed + 1);
}

TEST_F(EngineTest, SlidingBlocksStayConstantPastTheWindow) {
  ASSERT_TRUE(GenerateOne(server_->channel(), GreedyRequest({1, 2, 3}, 240)).ok());
  const v1::Counters counters = Settled();
  // 243 tokens are 16 blocks of 16 in the full layers. A window of 16 and chunks of 16 need the
  // blocks of 15 + 16 tokens at most, wherever they start: 3.
  EXPECT_GE(counters.full_blocks().max_per_sequence(), 15);
  EXPECT_LE(counters.sliding_blocks().max_per_sequence(), 3);
}

TEST_F(EngineTest, TheFirstChunkArrivesBeforeTheLastStepIsPlanned) {
  grpc::ClientContext context;
  auto reader = v1::GenerationService::NewStub(server_->channel())
                    ->Generate(&context, GreedyRequest({1, 2, 3}, 250));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const uint64_t steps_at_first_chunk = Counters().steps();
  while (reader->Read(&response)) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_LT(steps_at_first_chunk, Settled().steps());
}

TEST_F(EngineTest, TwoPlansAreSeenInFlight) {
  ASSERT_TRUE(GenerateOne(server_->channel(), GreedyRequest({1, 2, 3}, 100)).ok());
  EXPECT_GE(Settled().max_plans_in_flight(), 2);
}

TEST_F(EngineTest, TheSameSeedGivesTheSameDrawsWhateverElseRuns) {
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, 60);
  request.mutable_sampling()->set_temperature(0.9F);
  request.mutable_sampling()->set_seed(42);
  const auto alone = GenerateOne(server_->channel(), request);
  ASSERT_TRUE(alone.ok());
  v1::GenerateBatchRequest batch;
  for (const Tokens& prompt : RandomPrompts(6, 60)) {
    *batch.add_requests() = GreedyRequest(prompt, 60);
  }
  *batch.add_requests() = request;
  request.mutable_sampling()->set_seed(43);
  *batch.add_requests() = request;
  v1::GenerateBatchResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(v1::GenerationService::NewStub(server_->channel())
                  ->GenerateBatch(&context, batch, &response)
                  .ok());
  const auto& same = response.results(6).tokens();
  const auto& other = response.results(7).tokens();
  EXPECT_EQ(Tokens(same.begin(), same.end()), *alone);
  EXPECT_NE(Tokens(other.begin(), other.end()), *alone);
}

TEST_F(EngineTest, PromptAndCompletionEndAtTheContextWithLength) {
  const Tokens prompt(250, 7);
  const auto tokens = GenerateOne(server_->channel(), GreedyRequest(prompt, 100));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->size(), 6);
  const auto full = GenerateOne(server_->channel(), GreedyRequest(Tokens(256, 7), 1));
  EXPECT_EQ(full.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace conclave::tests
