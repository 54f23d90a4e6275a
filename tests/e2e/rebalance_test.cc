// ClusterService.Rebalance on real processes: the load of hot experts is spread, streams go on, the
// output is the same before, during and after, and a rank loads what moved to it and nothing else.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "proto/conclave/v1/cluster.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

constexpr uint32_t kLayers = 4;
constexpr uint32_t kChoices = 4;
constexpr int kTokens = 60;
constexpr int kLong = 200;

struct Shape {
  int dp, tp;
};

// Every position asks for the same four of sixteen experts, which one rank of three or four holds.
v1::GenerateRequest Skewed(const Tokens& prompt) {
  v1::GenerateRequest request = GreedyRequest(prompt, 1);
  for (size_t position = 0; position < prompt.size(); ++position) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t choice = 0; choice < kChoices; ++choice) {
        request.mutable_forced_routing()->add_expert_ids(choice);
      }
    }
  }
  return request;
}

class RebalanceTest : public ::testing::TestWithParam<Shape> {
 protected:
  RebalanceTest()
      : server_({.workers = GetParam().dp * GetParam().tp,
                 .dp = GetParam().dp,
                 .tp = GetParam().tp,
                 .args = {"--allow-forced-routing"}}) {}

  void SetUp() override { ASSERT_TRUE(server_.WaitServing()) << server_.log(); }

  grpc::Status Rebalance(uint32_t replicas, bool dry_run, v1::RebalanceResponse& response) {
    v1::RebalanceRequest request;
    request.set_replicas(replicas);
    request.set_dry_run(dry_run);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(60))));
    return v1::ClusterService::NewStub(server_.channel())->Rebalance(&context, request, &response);
  }

  // All at once, so that every group of ranks has some. Pairs that all ranks then have computed.
  uint64_t AskForHotExperts() {
    const std::vector<Tokens> prompts = RandomPrompts(12, 200);
    std::vector<std::thread> threads;
    uint64_t positions = 0;
    for (const Tokens& prompt : prompts) {
      positions += prompt.size();
      threads.emplace_back(
          [this, &prompt] { EXPECT_TRUE(GenerateOne(server_.channel(), Skewed(prompt)).ok()); });
    }
    for (std::thread& thread : threads) thread.join();
    return positions * kLayers * kChoices;
  }

  static uint64_t Load(const v1::Rank& rank) {
    uint64_t sum = 0;
    for (const auto& layer : rank.layers()) {
      for (const uint64_t pairs : layer.load()) sum += pairs;
    }
    return sum;
  }
  static uint64_t TotalLoad(const v1::GetClusterResponse& cluster) {
    uint64_t sum = 0;
    for (const auto& rank : cluster.ranks()) sum += Load(rank);
    return sum;
  }
  // Ranks tell of their load now and then.
  v1::GetClusterResponse WaitForLoad(uint64_t pairs) {
    v1::GetClusterResponse last;
    EXPECT_TRUE(server_.WaitForCluster(
        [&](const v1::GetClusterResponse& cluster) {
          last = cluster;
          return TotalLoad(cluster) >= pairs;
        },
        Scaled(absl::Seconds(20))));
    return last;
  }
  static double Imbalance(const v1::GetClusterResponse& cluster) {
    double most = 0;
    double sum = 0;
    for (const auto& rank : cluster.ranks()) {
      most = std::max(most, static_cast<double>(Load(rank)));
      sum += static_cast<double>(Load(rank));
    }
    return most * cluster.ranks_size() / sum;
  }

  Server server_;
};

TEST_P(RebalanceTest, LoadIsSpreadStreamsGoOnAndOnlyWhatMovedIsLoaded) {
  v1::RebalanceResponse response;
  EXPECT_EQ(Rebalance(0, false, response).error_code(), grpc::StatusCode::FAILED_PRECONDITION)
      << "nothing was observed";
  EXPECT_EQ(Rebalance(10'000, true, response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  const uint64_t hot = AskForHotExperts();
  const v1::GetClusterResponse before = WaitForLoad(hot);
  EXPECT_GT(Imbalance(before), 2.5) << "one rank has the hot experts";
  for (const auto& rank : before.ranks()) {
    EXPECT_EQ(rank.loaded_bytes(), rank.memory().weight_bytes());
  }

  const std::vector<Tokens> prompts = RandomPrompts(6, 40);
  std::vector<Tokens> truth;
  for (const Tokens& prompt : prompts) {
    const auto tokens = GenerateOne(server_.channel(), GreedyRequest(prompt, kLong));
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    truth.push_back(*tokens);
  }

  // Streams one after the other, so that some are under way whenever experts move.
  std::atomic<bool> moved = false;
  std::atomic<int> streams = 0;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < prompts.size(); ++i) {
    threads.emplace_back([&, i] {
      do {
        const auto tokens = GenerateOne(server_.channel(), GreedyRequest(prompts[i], kLong));
        EXPECT_TRUE(tokens.ok()) << tokens.status();
        if (!tokens.ok()) return;
        EXPECT_EQ(*tokens, truth[i]);
        ++streams;
      } while (!moved);
    });
  }
  EXPECT_TRUE(server_.WaitForCluster(
      [&](const auto& cluster) { return cluster.counters().running() == prompts.size(); },
      Scaled(absl::Seconds(20))));
  const grpc::Status status = Rebalance(4, false, response);
  moved = true;
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(status.ok()) << status.error_message() << "\n" << server_.log();
  EXPECT_GE(streams, static_cast<int>(prompts.size()));
  EXPECT_EQ(response.epoch(), before.epoch() + 1);
  EXPECT_GT(response.seconds(), 0);
  ASSERT_EQ(response.layers_size(), static_cast<int>(kLayers));
  for (const auto& layer : response.layers()) {
    EXPECT_LT(layer.imbalance_after(), layer.imbalance_before());
  }

  const v1::GetClusterResponse after = server_.Cluster();
  EXPECT_EQ(after.state(), v1::READY);
  EXPECT_EQ(after.epoch(), response.epoch());
  EXPECT_EQ(after.counters().requests_failed(), 0u);
  uint32_t held = 0;
  uint64_t expert_bytes = 0;
  for (int rank = 0; rank < after.ranks_size(); ++rank) {
    const v1::RankMoves& moves = response.ranks(rank);
    held += moves.held();
    EXPECT_EQ(after.ranks(rank).loaded_bytes(), moves.loaded_bytes());
    if (moves.gained() == 0) {
      EXPECT_EQ(moves.loaded_bytes(), 0u);
      continue;
    }
    EXPECT_EQ(moves.loaded_bytes() % moves.gained(), 0u);
    if (expert_bytes == 0) expert_bytes = moves.loaded_bytes() / moves.gained();
    EXPECT_EQ(moves.loaded_bytes(), moves.gained() * expert_bytes);
    EXPECT_EQ(after.ranks(rank).memory().weight_bytes(),
              before.ranks(rank).memory().weight_bytes() + moves.gained() * expert_bytes -
                  moves.dropped() * expert_bytes);
  }
  EXPECT_EQ(held, kLayers * (16 + 4)) << "four replicas in each layer";

  // The same requests again, and the same tokens.
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto tokens = GenerateOne(server_.channel(), GreedyRequest(prompts[i], kTokens));
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_TRUE(std::equal(tokens->begin(), tokens->end(), truth[i].begin()));
  }
  const uint64_t computed = TotalLoad(server_.Cluster());
  const uint64_t more = AskForHotExperts();
  const v1::GetClusterResponse spread = WaitForLoad(computed + more);
  EXPECT_LT(Imbalance(spread), 1.5);

  // A rank that is lost comes back with what the new placement gives it.
  const auto pid = static_cast<pid_t>(spread.ranks(1).pid());
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  ASSERT_TRUE(server_.WaitForCluster(
      [&](const auto& cluster) {
        return cluster.state() == v1::READY && cluster.epoch() > response.epoch();
      },
      Scaled(absl::Seconds(30))))
      << server_.log();
  const v1::GetClusterResponse recovered = server_.Cluster();
  for (int rank = 0; rank < recovered.ranks_size(); ++rank) {
    EXPECT_EQ(recovered.ranks(rank).memory().weight_bytes(),
              spread.ranks(rank).memory().weight_bytes());
    if (rank == 1) continue;
    EXPECT_EQ(recovered.ranks(rank).loaded_bytes(), 0u) << "survivors keep theirs";
  }
  const auto again = GenerateOne(server_.channel(), GreedyRequest(prompts[0], kTokens));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(std::equal(again->begin(), again->end(), truth[0].begin()));
}

INSTANTIATE_TEST_SUITE_P(Shapes, RebalanceTest, ::testing::Values(Shape{3, 1}, Shape{2, 2}),
                         [](const auto& shape) {
                           return "dp" + std::to_string(shape.param.dp) + "_tp" +
                                  std::to_string(shape.param.tp);
                         });

// Through the command, in the shape whose activations stay replicated.
TEST(RebalanceCommandTest, TheCommandMovesExpertsAndADryRunDoesNot) {
  Server server({.workers = 2, .dp = 1, .tp = 2, .args = {"--allow-forced-routing"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const std::vector<Tokens> prompts = RandomPrompts(8, 200);
  const Tokens prompt =
      *std::max_element(prompts.begin(), prompts.end(),
                        [](const Tokens& a, const Tokens& b) { return a.size() < b.size(); });
  const auto truth = GenerateOne(server.channel(), GreedyRequest(prompt, kTokens));
  ASSERT_TRUE(truth.ok());
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(GenerateOne(server.channel(), Skewed(prompt)).ok());
  }
  const auto command = [&](std::vector<std::string> arguments) {
    std::vector<std::string> words = {BinaryPath("client/conclave"), "rebalance", "--server",
                                      server.address(), "--json"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return RunCommand(words);
  };
  nlohmann::json dry;
  ASSERT_TRUE(server.WaitForCluster(
      [&](const auto&) {
        dry = nlohmann::json::parse(command({"--dry-run"}).out, nullptr, false);
        return dry.is_object() && dry["layers"][0]["imbalance_before"] > 1.5;
      },
      Scaled(absl::Seconds(20))));
  EXPECT_EQ(dry["epoch"], 1);
  EXPECT_LT(dry["layers"][0]["imbalance_after"], 1.3);
  const CommandResult result = command({});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json done = nlohmann::json::parse(result.out);
  EXPECT_EQ(done["epoch"], 2);
  EXPECT_GT(done["ranks"][0]["loaded_bytes"], 0);
  const auto after = GenerateOne(server.channel(), GreedyRequest(prompt, kTokens));
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(*after, *truth);
}

}  // namespace
}  // namespace conclave::tests
