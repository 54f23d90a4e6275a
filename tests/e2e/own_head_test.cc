// Classification checkpoints, which carry their head and no language model: as save_pretrained of
// GptOssForSequenceClassification and GptOssForTokenClassification writes them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

namespace fs = std::filesystem;

constexpr char kDemo[] = "demo/tiny_gpt_oss";

// The demo's backbone under the configuration and with the weights of one of its heads. The index
// no longer names lm_head: for the reader the checkpoint has none.
std::string ClassificationCheckpoint(const std::string& head) {
  const std::string dir = testing::TempDir() + "/" + head;
  fs::create_directories(dir);
  const auto copy = [&](const std::string& from, const std::string& to) {
    fs::copy_file(fs::canonical(std::string(kDemo) + "/" + from), dir + "/" + to,
                  fs::copy_options::overwrite_existing);
  };
  for (const char* file :
       {"model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"}) {
    copy(file, file);
  }
  copy(head + "/config.json", "config.json");
  copy(head + "/head.safetensors", "score.safetensors");
  std::ifstream in(std::string(kDemo) + "/model.safetensors.index.json");
  nlohmann::json index = nlohmann::json::parse(in);
  index["weight_map"].erase("lm_head.weight");
  index["weight_map"]["score.weight"] = "score.safetensors";
  if (head == "head_token") index["weight_map"]["score.bias"] = "score.safetensors";
  std::ofstream(dir + "/model.safetensors.index.json") << index;
  return dir;
}

void ExpectNoGeneration(const Server& server) {
  const auto refused = GenerateOne(server.channel(), GreedyRequest({1, 2, 3}, 4));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
}

TEST(OwnHeadTest, ASequenceClassifierIsServedWithoutHeadFlags) {
  Server server({.workers = 2, .model = ClassificationCheckpoint("head_sequence"), .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ExpectSequenceGoldens(server.channel(), "");
  ExpectNoGeneration(server);
}

TEST(OwnHeadTest, ATokenClassifierIsServedWithoutHeadFlags) {
  Server server(
      {.workers = 2, .tp = 2, .model = ClassificationCheckpoint("head_token"), .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ExpectTokenGoldens(server.channel(), "");
  ExpectNoGeneration(server);
}

TEST(OwnHeadTest, MoreHeadsCanBeAttached) {
  Server server({.workers = 1,
                 .model = ClassificationCheckpoint("head_sequence"),
                 .args = {"--head", "ner=demo/tiny_gpt_oss/head_token"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ExpectTokenGoldens(server.channel(), "ner");
  ExpectSequenceGoldens(server.channel(), "");
}

}  // namespace
}  // namespace conclave::tests
