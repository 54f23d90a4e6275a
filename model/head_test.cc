// Heads attached from folders of their own.

#include <string>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/checkpoint_testing.h"
#include "tools/checkpoint/rewrite.h"

namespace conclave::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class HeadTest : public ChangedCheckpointTest {
 protected:
  HeadTest() {
    auto backbone = Checkpoint::Open(kDemoDir, config_);
    EXPECT_TRUE(backbone.ok()) << backbone.status();
    if (backbone.ok()) backbone_ = *std::move(backbone);
    config_json_ = {{"id2label", {{"0", "no"}, {"1", "yes"}}}};
  }

  absl::StatusOr<AttachedHead> Open(const std::string& dir) {
    return OpenHead("mood", dir, config_, *backbone_);
  }

  // A folder with just a head of two labels.
  void WriteHead(bool bias) {
    tensors_.clear();
    AddBf16("score.weight", {2, 128}, std::byte{1});
    if (bias) AddBf16("score.bias", {2}, std::byte{2});
    WriteFiles();
  }

  void WriteFiles() {
    ASSERT_TRUE(tools::WriteSafetensors(dir_ + "/any name.safetensors", tensors_).ok());
    ASSERT_TRUE(tools::WriteJson(dir_ + "/config.json", config_json_).ok());
  }

  std::string ErrorOf() {
    const auto head = Open(dir_);
    EXPECT_FALSE(head.ok());
    if (head.ok()) return "";
    EXPECT_EQ(head.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(head.status().message());
  }

  std::shared_ptr<const Checkpoint> backbone_;
};

TEST_F(HeadTest, OpensTheDemosHeads) {
  const auto sequence = Open(std::string(kDemoDir) + "/head_sequence");
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->name, "mood");
  EXPECT_EQ(sequence->config.kind, Architecture::kSequenceClassification);
  EXPECT_THAT(sequence->config.labels, ElementsAre("negative", "neutral", "positive"));
  EXPECT_THAT(sequence->tensors.weight.shape, ElementsAre(3, 128));
  EXPECT_TRUE(sequence->tensors.bias.bytes.empty());
  EXPECT_FALSE(sequence->backbone_verified);
  const auto token = Open(std::string(kDemoDir) + "/head_token");
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_EQ(token->config.kind, Architecture::kTokenClassification);
  EXPECT_THAT(token->tensors.bias.shape, ElementsAre(5));
}

TEST_F(HeadTest, BiasTellsTheKindWhereNoArchitectureDoes) {
  WriteHead(false);
  EXPECT_EQ(Open(dir_)->config.kind, Architecture::kSequenceClassification);
  WriteHead(true);
  EXPECT_EQ(Open(dir_)->config.kind, Architecture::kTokenClassification);
}

TEST_F(HeadTest, BiasMustFitTheStatedArchitecture) {
  config_json_["architectures"] = {"GptOssForSequenceClassification"};
  WriteHead(true);
  EXPECT_THAT(ErrorOf(), HasSubstr("score.bias is there, but"));
  config_json_["architectures"] = {"GptOssForTokenClassification"};
  WriteHead(false);
  EXPECT_THAT(ErrorOf(), HasSubstr("score.bias is missing"));
}

TEST_F(HeadTest, WeightsMustFitLabelsAndModel) {
  config_json_["id2label"] = {{"0", "only"}};
  WriteHead(false);
  EXPECT_THAT(ErrorOf(), HasSubstr("score.weight has shape [2, 128]; [1, 128] is wanted"));
  config_json_.erase("id2label");  // two labels by default
  WriteHead(false);
  EXPECT_TRUE(Open(dir_).ok());
  config_.hidden_size = 64;
  EXPECT_THAT(ErrorOf(), HasSubstr("[2, 64] is wanted"));
}

TEST_F(HeadTest, FolderWithoutAHeadIsRefused) {
  EXPECT_EQ(Open(dir_).status().code(), absl::StatusCode::kNotFound);
  WriteFiles();  // the language model's tensors
  EXPECT_THAT(ErrorOf(), HasSubstr("score.weight is missing"));
  std::filesystem::remove(dir_ + "/config.json");
  EXPECT_EQ(Open(dir_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HeadTest, AnAdapterBesideTheHeadIsRefused) {
  tensors_.clear();
  AddBf16("score.weight", {2, 128});
  AddBf16("base_model.model.q_proj.lora_A.weight", {8, 128});
  WriteFiles();
  EXPECT_THAT(ErrorOf(), HasSubstr("lora_A"));
}

TEST_F(HeadTest, SameBackboneIsVerified) {
  AddBf16("score.weight", {2, 128});
  WriteFiles();
  const auto head = Open(dir_);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_TRUE(head->backbone_verified);
}

TEST_F(HeadTest, SameBackboneInAnotherLayoutIsVerified) {
  tools::RewriteOptions options;
  options.in = kDemoDir;
  options.out = dir_;
  ASSERT_TRUE(tools::RewriteCheckpoint(options).ok());
  std::filesystem::remove(dir_ + "/model.safetensors.index.json");
  WriteHead(true);
  const auto head = Open(dir_);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_TRUE(head->backbone_verified);
}

TEST_F(HeadTest, AnotherBackboneIsRefused) {
  AddBf16("score.weight", {2, 128});
  Damage("model.layers.3.post_attention_layernorm.weight", 17);
  WriteFiles();
  EXPECT_THAT(ErrorOf(), HasSubstr("belongs to another backbone"));
}

TEST_F(HeadTest, PartOfABackboneIsRefused) {
  AddBf16("score.weight", {2, 128});
  Remove("model.layers.3.self_attn.q_proj.weight");
  WriteFiles();
  EXPECT_THAT(ErrorOf(), HasSubstr("model.layers.3.self_attn.q_proj.weight is missing"));
}

TEST_F(HeadTest, AStatedFingerprintIsVerified) {
  const uint64_t fingerprint = backbone_->BackboneFingerprint();
  config_json_["backbone_fingerprint"] = fmt::format("{:016x}", fingerprint);
  WriteHead(false);
  EXPECT_TRUE(Open(dir_)->backbone_verified);
  config_json_["backbone_fingerprint"] = fmt::format("{:016x}", fingerprint ^ 1);
  WriteHead(false);
  EXPECT_THAT(ErrorOf(), HasSubstr(fmt::format("{:016x}", fingerprint)));
}

}  // namespace
}  // namespace conclave::model
