// Made-up weights: the same for the same seed whoever generates which part, and fit to serve.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "model/bfloat16.h"
#include "model/model_source.h"
#include "model/mxfp4.h"

namespace conclave::model {
namespace {

constexpr char kDir[] = "demo/tiny_gpt_oss";

std::shared_ptr<const Checkpoint> Make(uint64_t seed, int layers = 0) {
  const ModelSource source = {kDir, RandomWeights{seed, layers}};
  const auto config = LoadConfig(source);
  EXPECT_TRUE(config.ok()) << config.status();
  auto checkpoint = OpenCheckpoint(source, *config);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::vector<std::byte> Generated(const Checkpoint& checkpoint, const TensorView& view) {
  checkpoint.Generate(view.bytes);
  return {view.bytes.begin(), view.bytes.end()};
}

std::vector<double> Values(const Checkpoint& checkpoint, const TensorView& view) {
  const std::vector<std::byte> bytes = Generated(checkpoint, view);
  std::vector<double> values;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, &bytes[i], sizeof(bits));
    values.push_back(Bf16ToFloat(bits));
  }
  return values;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double Deviation(const std::vector<double>& values) {
  const double mean = Mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size()));
}

TEST(RandomCheckpointTest, OneSeedGivesOneModelAndAnotherAnother) {
  const auto a = Make(7);
  const auto b = Make(7);
  const auto c = Make(8);
  for (const auto member : {&LayerTensors::q_weight, &LayerTensors::gate_up_blocks,
                            &LayerTensors::down_scales, &LayerTensors::post_norm}) {
    const auto bytes = Generated(*a, a->tensors().layers[1].*member);
    EXPECT_EQ(bytes, Generated(*b, b->tensors().layers[1].*member));
    EXPECT_NE(bytes, Generated(*c, c->tensors().layers[1].*member));
  }
  EXPECT_EQ(a->BackboneFingerprint(), b->BackboneFingerprint());
  EXPECT_NE(a->BackboneFingerprint(), c->BackboneFingerprint());
}

TEST(RandomCheckpointTest, TensorsDifferFromEachOther) {
  const auto checkpoint = Make(7);
  const ModelTensors& tensors = checkpoint->tensors();
  EXPECT_NE(Generated(*checkpoint, tensors.layers[0].q_weight),
            Generated(*checkpoint, tensors.layers[1].q_weight));
  EXPECT_NE(Generated(*checkpoint, tensors.embedding), Generated(*checkpoint, tensors.lm_head));
}

TEST(RandomCheckpointTest, APartIsWrittenAloneAndIsThatOfTheWhole) {
  const auto whole = Make(7);
  const auto parts = Make(7);
  const TensorView& want = whole->tensors().layers[0].o_weight;
  const TensorView& got = parts->tensors().layers[0].o_weight;
  whole->Generate(want.bytes);
  // From within a block to within another, and within one.
  for (const auto& [begin, size] : {std::pair<size_t, size_t>{6, 100}, {134, 4}}) {
    parts->Generate(got.bytes.subspan(begin, size));
    EXPECT_TRUE(
        std::ranges::equal(got.bytes.subspan(begin, size), want.bytes.subspan(begin, size)));
  }
  const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
  EXPECT_TRUE(std::ranges::all_of(got.bytes.first(6), is_zero));
  EXPECT_TRUE(std::ranges::all_of(got.bytes.subspan(106, 28), is_zero));
  EXPECT_TRUE(std::ranges::all_of(got.bytes.subspan(138), is_zero));
}

TEST(RandomCheckpointTest, ValuesHaveTheDeviationOfAnInitializedModel) {
  const auto checkpoint = Make(7);
  const LayerTensors& layer = checkpoint->tensors().layers[0];
  const auto weights = Values(*checkpoint, layer.q_weight);
  EXPECT_NEAR(Mean(weights), 0, 5e-4);
  EXPECT_NEAR(Deviation(weights), 0.02, 5e-4);
  const auto norms = Values(*checkpoint, layer.post_norm);
  EXPECT_NEAR(Mean(norms), 1, 1e-2);

  const auto blocks = Generated(*checkpoint, layer.gate_up_blocks);
  const auto scales = Generated(*checkpoint, layer.gate_up_scales);
  std::vector<double> experts;
  for (size_t i = 0; i < scales.size(); ++i) {
    for (int j = 0; j < kMxfp4BlockValues; ++j) {
      const auto* block = reinterpret_cast<const uint8_t*>(&blocks[i * kMxfp4BlockBytes]);
      experts.push_back(Mxfp4Value(block, static_cast<uint8_t>(scales[i]), j));
    }
  }
  EXPECT_NEAR(Mean(experts), 0, 5e-4);
  EXPECT_NEAR(Deviation(experts), 0.02, 5e-4);
}

TEST(RandomCheckpointTest, FewerLayersAreTheFirstOnesAndMoreAreRefused) {
  const auto all = Make(7);
  const auto two = Make(7, 2);
  ASSERT_EQ(two->tensors().layers.size(), 2u);
  EXPECT_EQ(Generated(*two, two->tensors().layers[1].k_weight),
            Generated(*all, all->tensors().layers[1].k_weight));
  const auto config = LoadConfig({kDir, RandomWeights{0, 5}});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(config.status().message()).find("5 layers are wanted"), std::string::npos)
      << config.status();
}

// A folder with config.json alone, of any size: nothing is allocated before it is generated.
TEST(RandomCheckpointTest, ABillionParametersCostNothingUntilTheyAreGenerated) {
  auto config = LoadConfig(std::string(kDir));
  ASSERT_TRUE(config.ok()) << config.status();
  config->vocab_size = 1 << 24;
  config->hidden_size = 1 << 14;
  const auto checkpoint = Checkpoint::Random(*config, 1);  // 1 TiB in the two vocabulary matrices
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorView& lm_head = (*checkpoint)->tensors().lm_head;
  (*checkpoint)->Generate(lm_head.bytes.last(32));
  EXPECT_NE(lm_head.bytes.back(), std::byte{0});
}

TEST(RandomCheckpointTest, ShapesThatNoAddressSpaceHoldsAreRefused) {
  auto config = LoadConfig(std::string(kDir));
  ASSERT_TRUE(config.ok()) << config.status();
  config->vocab_size = 1 << 30;
  config->hidden_size = 1 << 30;
  const auto checkpoint = Checkpoint::Random(*config, 1);
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kResourceExhausted)
      << checkpoint.status();
}

}  // namespace
}  // namespace conclave::model
