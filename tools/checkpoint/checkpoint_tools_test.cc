#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bfloat16.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/mxfp4.h"
#include "tools/checkpoint/folder.h"
#include "tools/checkpoint/random.h"
#include "tools/checkpoint/rewrite.h"
#include "tools/checkpoint/safetensors_writer.h"

namespace conclave::tools {
namespace {

using model::Checkpoint;
using model::Layout;
using model::TensorView;
using testing::HasSubstr;

constexpr char kDemo[] = "demo/tiny_gpt_oss";

class CheckpointToolsTest : public testing::Test {
 protected:
  CheckpointToolsTest()
      : dir_(testing::TempDir() + "/tools_" +
             testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(dir_);
  }
  ~CheckpointToolsTest() override { std::filesystem::remove_all(dir_); }

  std::shared_ptr<const Checkpoint> Open(const std::string& dir) {
    auto config = model::LoadConfig(dir);
    EXPECT_TRUE(config.ok()) << config.status();
    if (!config.ok()) return nullptr;
    auto checkpoint = Checkpoint::Open(dir, *config);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  absl::Status Rewrite(const std::string& in, Layout layout) {
    RewriteOptions options;
    options.in = in;
    options.out = dir_;
    options.layout = layout;
    return RewriteCheckpoint(options);
  }

  RandomCheckpointOptions Random(int64_t bytes, int shards) {
    RandomCheckpointOptions options;
    options.config = std::string(kDemo) + "/config.json";
    options.out = dir_;
    options.bytes = bytes;
    options.shards = shards;
    return options;
  }

  const std::string dir_;
};

uint16_t Bf16At(const TensorView& view, int64_t index) {
  uint16_t bits = 0;
  std::memcpy(&bits, view.bytes.data() + 2 * index, sizeof(bits));
  return bits;
}

// dense[e, c, r] is blocks[e, r, c], for every value.
void ExpectDequantized(const TensorView& blocks, const TensorView& scales,
                       const TensorView& dense) {
  const int64_t experts = scales.shape[0], rows = scales.shape[1], per_row = scales.shape[2];
  const int64_t cols = per_row * 32;
  ASSERT_THAT(dense.shape, testing::ElementsAre(experts, cols, rows));
  for (int64_t i = 0; i < experts * rows * per_row; ++i) {
    float values[32];
    model::DecodeMxfp4Block(reinterpret_cast<const uint8_t*>(blocks.bytes.data()) + 16 * i,
                            static_cast<uint8_t>(scales.bytes[static_cast<size_t>(i)]), values);
    const int64_t expert = i / per_row / rows, row = i / per_row % rows;
    for (int64_t j = 0; j < 32; ++j) {
      const int64_t col = i % per_row * 32 + j;
      ASSERT_EQ(model::Bf16ToFloat(Bf16At(dense, (expert * cols + col) * rows + row)), values[j])
          << blocks.name << " " << expert << " " << row << " " << col;
    }
  }
}

TEST_F(CheckpointToolsTest, Bf16LayoutHasTheDequantizedValues) {
  ASSERT_TRUE(Rewrite(kDemo, Layout::kBf16).ok());
  const auto released = Open(kDemo);
  const auto dense = Open(dir_);
  ASSERT_NE(dense, nullptr);
  EXPECT_EQ(dense->layout(), Layout::kBf16);
  for (size_t i = 0; i < 4; ++i) {
    const model::LayerTensors& from = released->tensors().layers[i];
    const model::LayerTensors& to = dense->tensors().layers[i];
    ExpectDequantized(from.gate_up_blocks, from.gate_up_scales, to.gate_up_dense);
    ExpectDequantized(from.down_blocks, from.down_scales, to.down_dense);
  }
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/tokenizer.json"));
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/model-00001-of-00002.safetensors"));
  EXPECT_FALSE(ReadJson(dir_ + "/config.json")->contains("quantization_config"));
}

TEST_F(CheckpointToolsTest, OriginalLayoutKeepsConfigAndEndTokens) {
  ASSERT_TRUE(Rewrite(kDemo, Layout::kOriginal).ok());
  const auto from = model::LoadConfig(kDemo);
  const auto to = model::LoadConfig(dir_);
  ASSERT_TRUE(to.ok()) << to.status();
  EXPECT_TRUE(to->original);
  EXPECT_EQ(to->context_length, from->context_length);
  EXPECT_EQ(to->layer_types, from->layer_types);
  EXPECT_EQ(to->eos_token_ids, from->eos_token_ids);
  EXPECT_EQ(to->pad_token_id, from->pad_token_id);
  EXPECT_EQ(model::RopeInverseFrequencies(to->rope, 64),
            model::RopeInverseFrequencies(from->rope, 64));
  EXPECT_EQ(to->rope.attention_factor, from->rope.attention_factor);
  EXPECT_EQ(Open(dir_)->layout(), Layout::kOriginal);
}

TEST_F(CheckpointToolsTest, RewritingRefusesBf16Experts) {
  ASSERT_TRUE(Rewrite(kDemo, Layout::kBf16).ok());
  EXPECT_THAT(std::string(Rewrite(dir_, Layout::kOriginal).message()),
              HasSubstr("mxfp4 is wanted"));
}

TEST_F(CheckpointToolsTest, RewritingRefusesWhatOpenAisConfigCannotSay) {
  ASSERT_TRUE(WriteRandomCheckpoint(Random(0, 2)).ok());
  nlohmann::json config = *ReadJson(dir_ + "/config.json");
  config["rms_norm_eps"] = 1e-6;
  ASSERT_TRUE(WriteJson(dir_ + "/config.json", config).ok());
  EXPECT_THAT(std::string(Rewrite(dir_, Layout::kOriginal).message()), HasSubstr("rms_norm_eps"));
}

TEST_F(CheckpointToolsTest, RandomCheckpointHasTheBytesAndShardsAskedFor) {
  ASSERT_TRUE(WriteRandomCheckpoint(Random(5'000'000, 4)).ok());
  const auto index = ReadJson(dir_ + "/model.safetensors.index.json");
  ASSERT_TRUE(index.ok());
  const auto total = (*index)["metadata"]["total_size"].get<int64_t>();
  EXPECT_GE(total, 5'000'000);
  EXPECT_LT(total, 5'000'000 + 700'000);  // a layer more at most
  for (int shard = 0; shard < 4; ++shard) {
    const std::string name = "/model-0000" + std::to_string(shard) + "-of-00003.safetensors";
    EXPECT_GT(std::filesystem::file_size(dir_ + name), 500'000u);
  }
  const auto checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->tensors().layers.size(), 8u);
}

// Mean and standard deviation.
std::pair<double, double> Moments(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const double mean = sum / static_cast<double>(values.size());
  return {mean, std::sqrt(squares / static_cast<double>(values.size()) - mean * mean)};
}

std::vector<float> Bf16Values(const TensorView& view) {
  std::vector<float> values;
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    values.push_back(model::Bf16ToFloat(Bf16At(view, i)));
  }
  return values;
}

TEST_F(CheckpointToolsTest, RandomWeightsAreOfTheSizeOfRealOnes) {
  ASSERT_TRUE(WriteRandomCheckpoint(Random(0, 1)).ok());
  const auto checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  const auto [mean, deviation] = Moments(Bf16Values(checkpoint->tensors().embedding));
  EXPECT_NEAR(mean, 0, 0.001);
  EXPECT_NEAR(deviation, 0.02, 0.001);
  const auto [norm_mean, norm_deviation] = Moments(Bf16Values(checkpoint->tensors().final_norm));
  EXPECT_NEAR(norm_mean, 1, 0.01);
  EXPECT_LT(norm_deviation, 0.05);

  const model::LayerTensors& layer = checkpoint->tensors().layers[2];
  std::vector<float> experts(static_cast<size_t>(layer.gate_up_scales.num_elements()) * 32);
  for (size_t i = 0; i < layer.gate_up_scales.bytes.size(); ++i) {
    const auto scale = static_cast<uint8_t>(layer.gate_up_scales.bytes[i]);
    EXPECT_LE(scale, model::kMaxMxfp4Scale);
    model::DecodeMxfp4Block(
        reinterpret_cast<const uint8_t*>(layer.gate_up_blocks.bytes.data()) + 16 * i, scale,
        &experts[32 * i]);
  }
  const auto [expert_mean, expert_deviation] = Moments(experts);
  EXPECT_NEAR(expert_mean, 0, 0.001);
  EXPECT_NEAR(expert_deviation, 0.02, 0.002);
}

TEST_F(CheckpointToolsTest, SeedAloneDecidesTheWeights) {
  const auto fingerprint = [&](uint64_t seed, int shards) {
    std::filesystem::remove_all(dir_);
    RandomCheckpointOptions options = Random(0, shards);
    options.seed = seed;
    EXPECT_TRUE(WriteRandomCheckpoint(options).ok());
    return Open(dir_)->BackboneFingerprint();
  };
  const uint64_t first = fingerprint(1, 1);
  EXPECT_EQ(fingerprint(1, 5), first);
  EXPECT_NE(fingerprint(2, 1), first);
}

TEST_F(CheckpointToolsTest, RefusesImpossibleSizes) {
  EXPECT_THAT(std::string(WriteRandomCheckpoint(Random(int64_t{1} << 40, 4)).message()),
              HasSubstr("layers"));
  EXPECT_FALSE(WriteRandomCheckpoint(Random(0, 0)).ok());
  EXPECT_FALSE(WriteRandomCheckpoint(Random(0, 1000)).ok());
}

TEST_F(CheckpointToolsTest, WriterPutsTogetherPartsAcrossItsChunks) {
  ASSERT_TRUE(MakeFolder(dir_).ok());
  std::vector<std::byte> first(1'500'001), second(1'000'003);
  for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<std::byte>(i * 7);
  for (size_t i = 0; i < second.size(); ++i) second[i] = static_cast<std::byte>(i * 13 + 5);
  const std::string path = dir_ + "/x.safetensors";
  ASSERT_TRUE(
      WriteSafetensors(path, {CopyOf("x", model::TensorType::kU8, {2'500'004}, {first, second})})
          .ok());
  const auto file = model::SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto bytes = (*file)->tensors()[0].bytes;
  EXPECT_EQ(std::memcmp(bytes.data(), first.data(), first.size()), 0);
  EXPECT_EQ(std::memcmp(bytes.data() + first.size(), second.data(), second.size()), 0);
}

}  // namespace
}  // namespace conclave::tools
