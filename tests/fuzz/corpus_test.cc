// Every seed and every past finding through its target, in each ordinary test run.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

struct Target {
  const char* name;
  int (*run)(const uint8_t* data, size_t size);
};

class CorpusTest : public testing::TestWithParam<Target> {};

TEST_P(CorpusTest, EverySeedHolds) {
  const std::string folder = std::string("tests/fuzz/corpus/") + GetParam().name;
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  EXPECT_GE(paths.size(), 8u);
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    std::ifstream file(path, std::ios::binary);
    const std::string seed{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    EXPECT_FALSE(seed.empty());
    EXPECT_EQ(GetParam().run(reinterpret_cast<const uint8_t*>(seed.data()), seed.size()), 0);
    // What is cut short is an input too.
    GetParam().run(reinterpret_cast<const uint8_t*>(seed.data()), seed.size() / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Fuzz, CorpusTest,
                         testing::Values(Target{"safetensors", FuzzSafetensors},
                                         Target{"config", FuzzConfig},
                                         Target{"tokenizer_json", FuzzTokenizerJson},
                                         Target{"round_trip", FuzzRoundTrip},
                                         Target{"rpc", FuzzRpc}),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace conclave::tests
