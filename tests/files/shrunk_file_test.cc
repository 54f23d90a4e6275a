// A disk that stops giving what it gave: a shard cut short under a running service. Only the ranks
// that need the lost pages end, each says which file it was, and the service returns with the file.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"
#include "tests/files/model_folder.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

bool IsReady(const v1::GetClusterResponse& cluster) { return cluster.state() == v1::READY; }

bool Alive(pid_t pid) { return ::kill(pid, 0) == 0; }

TEST(ShrunkFileTest, RanksThatNeedItEndWithItsNameAndTheServiceReturns) {
  const ModelFolder folder("shrinking");
  const std::string contents = folder.Read(kShard);
  Server server({.workers = 2, .model = folder.dir(), .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const GoldenCase golden = LoadGoldens()[0];
  const v1::GenerateRequest request = GreedyRequest(golden.prompt, 24);
  ASSERT_EQ(*GenerateOne(server.channel(), request), golden.greedy);
  const pid_t coordinator = server.CoordinatorPid();
  ASSERT_GT(coordinator, 0);
  const uint64_t epoch = server.Cluster().epoch();

  folder.Resize(kShard, 8192);
  const auto lost = GenerateOne(server.channel(), request);
  ASSERT_EQ(lost.status().code(), absl::StatusCode::kUnavailable) << lost.status();
  const std::string line =
      "conclave-worker: " + folder.Path(kShard) + ": the file became shorter, or cannot be read";
  EXPECT_TRUE(server.WaitForLog(line)) << server.log();
  EXPECT_TRUE(Alive(server.pid()));
  EXPECT_TRUE(Alive(coordinator));
  // Workers that start meanwhile find the file wrong, and say so before they touch it.
  EXPECT_TRUE(server.WaitForLog(fmt::format("{}: tensor ", kShard))) << server.log();

  folder.Write(kShard, contents);
  ASSERT_TRUE(server.WaitForCluster(
      [&](const auto& cluster) { return IsReady(cluster) && cluster.epoch() > epoch; },
      Scaled(absl::Seconds(40))))
      << server.log();
  EXPECT_EQ(*GenerateOne(server.channel(), request), golden.greedy);
  EXPECT_EQ(server.CoordinatorPid(), coordinator);
  EXPECT_THAT(server.log(), Not(HasSubstr("Bus error")));
}

}  // namespace
}  // namespace conclave::tests
