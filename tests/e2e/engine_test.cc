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

v1::GenerateBatchResponse GenerateMany(const Server& server,
                                       const v1::GenerateBatchRequest& batch) {
  v1::GenerateBatchResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      v1::GenerationService::NewStub(server.channel())->GenerateBatch(&context, batch, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

Tokens TokensOf(const v1::GenerateBatchResult& result) {
  return {result.tokens().begin(), result.tokens().end()};
}

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

TEST_F(EngineTest, SeveralCompletionsShareThePromptAndAreWhatTheSameRequestsGiveAlone) {
  v1::GenerateRequest request = GreedyRequest(Tokens(100, 11), 40);
  request.mutable_prompt()->mutable_tokens()->set_ids(0, 12);
  request.mutable_sampling()->set_temperature(0.9F);
  request.mutable_sampling()->set_seed(500);
  request.set_n(4);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = request;
  const v1::Counters before = Settled();
  const v1::GenerateBatchResponse together = GenerateMany(*server_, batch);
  const v1::Counters after = Settled();
  ASSERT_EQ(together.results_size(), 4);
  // 96 tokens of the prompt are whole blocks: the others computed the last 4.
  EXPECT_EQ(after.tokens_computed() - before.tokens_computed(), 100u + 3 * 4 + 4 * 39);
  request.set_n(1);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(together.results(i).index(), static_cast<uint32_t>(i));
    EXPECT_EQ(together.results(i).finish().seed(), 500u + i);
    EXPECT_EQ(together.results(i).finish().usage().cached_tokens(), i == 0 ? 0u : 96u);
    request.mutable_sampling()->set_seed(500 + i);
    const auto alone = GenerateOne(server_->channel(), request);
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(TokensOf(together.results(i)), *alone);
  }
  EXPECT_NE(TokensOf(together.results(0)), TokensOf(together.results(1)));
}

TEST_F(EngineTest, AConversationsNextTurnComputesOnlyWhatIsNew) {
  const Tokens prompt = RandomPrompts(9, 60)[8];
  const auto first = GenerateOne(server_->channel(), GreedyRequest(prompt, 80));
  ASSERT_TRUE(first.ok());
  Tokens next = prompt;
  next.insert(next.end(), first->begin(), first->end());
  next.insert(next.end(), {5, 6, 7});
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = GreedyRequest(next, 20);
  const v1::GenerateBatchResponse hit = GenerateMany(*server_, batch);
  const uint32_t cached = hit.results(0).finish().usage().cached_tokens();
  EXPECT_EQ(cached, (prompt.size() + 79) / 16 * 16);
  Server plain({.workers = 1, .args = {"--no-prefix-cache", "--prefill-chunk", "33"}});
  ASSERT_TRUE(plain.WaitServing()) << plain.log();
  const v1::GenerateBatchResponse computed = GenerateMany(plain, batch);
  EXPECT_EQ(computed.results(0).finish().usage().cached_tokens(), 0u);
  EXPECT_EQ(TokensOf(hit.results(0)), TokensOf(computed.results(0)));
}

// Twelve completions of up to 13 blocks, eight at once, in a cache of 32 blocks of each kind: some
// pause for want of blocks. Prompts begin alike, are computed in chunks and forked.
TEST(SharingTest, PausesPrefixHitsChunksAndForksGiveTheTokensOfTheSameRequestsAlone) {
  constexpr int kTokens = 140;
  const Tokens common(48, 9);
  v1::GenerateBatchRequest batch;
  for (const Tokens& own : RandomPrompts(6, 20)) {
    Tokens prompt = common;
    prompt.insert(prompt.end(), own.begin(), own.end());
    v1::GenerateRequest request = GreedyRequest(prompt, kTokens);
    request.mutable_sampling()->set_temperature(batch.requests_size() % 2 == 0 ? 0 : 0.9F);
    request.mutable_sampling()->set_seed(100 * batch.requests_size());
    request.set_n(1 + batch.requests_size() % 3);
    *batch.add_requests() = std::move(request);
  }
  std::vector<Tokens> alone;
  {
    Server plain({.workers = 1, .args = {"--no-prefix-cache"}});
    ASSERT_TRUE(plain.WaitServing()) << plain.log();
    for (v1::GenerateRequest request : batch.requests()) {
      const uint64_t seed = request.sampling().seed();
      const uint32_t completions = request.n();
      request.set_n(1);
      for (uint32_t i = 0; i < completions; ++i) {
        request.mutable_sampling()->set_seed(seed + i);
        const auto tokens = GenerateOne(plain.channel(), request);
        ASSERT_TRUE(tokens.ok()) << tokens.status();
        alone.push_back(*tokens);
      }
    }
  }
  Server server(
      {.workers = 1,
       .args = {"--kv-cache-bytes", "2097152", "--max-running", "8", "--prefill-chunk", "16"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const v1::GenerateBatchResponse together = GenerateMany(server, batch);
  const v1::Counters counters = server.Cluster().counters();
  EXPECT_GT(counters.preemptions(), 0u) << counters.ShortDebugString();
  EXPECT_GT(counters.prefix_cache().hit_tokens(), 0u) << counters.ShortDebugString();
  ASSERT_EQ(together.results_size(), static_cast<int>(alone.size()));
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(TokensOf(together.results(static_cast<int>(i))), alone[i]) << "completion " << i;
  }
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
