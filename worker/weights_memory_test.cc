// A rank serves MXFP4 from the file map: what it allocates is small beside its weights, and what it
// maps in is its own.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "tools/checkpoint/random.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"
#include "worker/weights.h"

namespace conclave::worker {
namespace {

constexpr int64_t kCheckpointBytes = int64_t{2} << 30;

// A line of /proc/self/status, in bytes.
int64_t ProcessBytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string name;
  int64_t kib = 0;
  while (status >> name) {
    if (name == field + ":") {
      status >> kib;
      return kib * 1024;
    }
    status.ignore(4096, '\n');
  }
  ADD_FAILURE() << "no " << field << " in /proc/self/status";
  return 0;
}

class WeightsMemoryTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new std::string(testing::TempDir() + "/two_gib");
    tools::RandomCheckpointOptions options;
    options.config = "tools/checkpoint/wide_config.json";
    options.out = *dir_;
    options.bytes = kCheckpointBytes;
    options.shards = 4;
    const absl::Status status = tools::WriteRandomCheckpoint(options);
    ASSERT_TRUE(status.ok()) << status;
  }
  static void TearDownTestSuite() {
    std::filesystem::remove_all(*dir_);
    delete dir_;
  }

  static std::string* dir_;
};

std::string* WeightsMemoryTest::dir_ = nullptr;

TEST_F(WeightsMemoryTest, AnonymousMemoryIsAtMostATenthOfTheWeights) {
  const int64_t before = ProcessBytes("RssAnon");
  auto harness = TransformerHarness::Create(
      {.model_dir = *dir_, .max_step_tokens = 16, .full_blocks = 16, .sliding_blocks = 16});
  ASSERT_TRUE(harness.ok()) << harness.status();
  const int64_t weights = (*harness)->weights(0).bytes;
  EXPECT_GE(weights, kCheckpointBytes);
  const auto results =
      RunRequests(**harness, {{.prompt = std::vector<int>(12, 5), .max_tokens = 3}}, 16,
                  internal::v1::EXCHANGE_MODE_UNSPECIFIED);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ((*results)[0].tokens.size(), 3u);
  const int64_t anonymous = ProcessBytes("RssAnon") - before;
  std::printf("weights %.1f MiB, anonymous %.1f MiB\n", weights / 1048576.0, anonymous / 1048576.0);
  EXPECT_LE(anonymous, weights / 10);
}

TEST_F(WeightsMemoryTest, ARankOfFourMapsInItsOwnShareAlone) {
  auto config = model::LoadConfig(*dir_);
  ASSERT_TRUE(config.ok()) << config.status();
  auto checkpoint = model::Checkpoint::Open(*dir_, *config);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const model::ParallelShape shape = {.dp = 4, .tp = 1};
  const model::Placement placement = model::BalancedPlacement(*config, shape.world());
  const int64_t anonymous_before = ProcessBytes("RssAnon");
  const int64_t file_before = ProcessBytes("RssFile");
  const auto ops = kernels::MakeCpuOps(*config, config->num_kv_heads, {});
  WeightsRequest request;
  request.shape = shape;
  request.rank = 2;
  request.placement = &placement;
  const auto weights =
      LoadRankWeights(*config, *checkpoint, request, *ops, [](int64_t, int64_t) { return true; });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_LE(weights->bytes, kCheckpointBytes * 6 / 10);
  const int64_t anonymous = ProcessBytes("RssAnon") - anonymous_before;
  const int64_t file = ProcessBytes("RssFile") - file_before;
  std::printf("weights %.1f MiB, anonymous %.1f MiB, mapped %.1f MiB\n", weights->bytes / 1048576.0,
              anonymous / 1048576.0, file / 1048576.0);
  EXPECT_LE(anonymous, weights->bytes / 10);
  EXPECT_GE(file, weights->bytes * 99 / 100) << "every byte is in memory before the first step";
  EXPECT_LE(file, weights->bytes * 105 / 100) << "and little but its own";
}

}  // namespace
}  // namespace conclave::worker
