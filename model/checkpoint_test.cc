#include "model/checkpoint.h"

#include <cstring>
#include <fstream>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint_testing.h"
#include "tools/checkpoint/rewrite.h"

namespace conclave::model {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

bool SameBytes(const TensorView& a, const TensorView& b) {
  return a.shape == b.shape && a.bytes.size() == b.bytes.size() &&
         std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

class CheckpointTest : public ChangedCheckpointTest {
 protected:
  std::shared_ptr<const Checkpoint> Open(const std::string& dir) {
    auto config = LoadConfig(dir);
    EXPECT_TRUE(config.ok()) << config.status();
    if (!config.ok()) return nullptr;
    config_ = *std::move(config);
    auto checkpoint = Checkpoint::Open(dir, config_);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  std::string ErrorOf() {
    const auto checkpoint = Checkpoint::Open(dir_, config_);
    EXPECT_FALSE(checkpoint.ok());
    if (checkpoint.ok()) return "";
    EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(checkpoint.status().message());
  }

  std::string WriteAndGetError() {
    Write();
    return ErrorOf();
  }

  std::shared_ptr<const Checkpoint> Rewritten(Layout layout) {
    tools::RewriteOptions options;
    options.in = kDemoDir;
    options.out = dir_;
    options.layout = layout;
    const absl::Status status = tools::RewriteCheckpoint(options);
    EXPECT_TRUE(status.ok()) << status;
    return Open(dir_);
  }

  uint64_t FingerprintNow() {
    Write();
    const auto checkpoint = Open(dir_);
    return checkpoint == nullptr ? 0 : checkpoint->BackboneFingerprint();
  }
};

TEST_F(CheckpointTest, BindsTheReleasedLayout) {
  const auto checkpoint = Open(kDemoDir);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->layout(), Layout::kMxfp4);
  EXPECT_EQ(checkpoint->head(), nullptr);
  const ModelTensors& tensors = checkpoint->tensors();
  EXPECT_EQ(tensors.embedding.name, "model.embed_tokens.weight");
  EXPECT_THAT(tensors.embedding.shape, ElementsAre(512, 128));
  EXPECT_EQ(tensors.lm_head.name, "lm_head.weight");
  ASSERT_EQ(tensors.layers.size(), 4u);
  const LayerTensors& layer = tensors.layers[3];
  EXPECT_EQ(layer.k_bias.name, "model.layers.3.self_attn.k_proj.bias");
  EXPECT_THAT(layer.k_weight.shape, ElementsAre(128, 128));
  EXPECT_THAT(layer.q_weight.shape, ElementsAre(512, 128));
  EXPECT_THAT(layer.o_weight.shape, ElementsAre(128, 512));
  EXPECT_THAT(layer.gate_up_blocks.shape, ElementsAre(16, 192, 4, 16));
  EXPECT_THAT(layer.down_scales.shape, ElementsAre(16, 128, 3));
  EXPECT_TRUE(layer.gate_up_dense.shape.empty());
}

TEST_F(CheckpointTest, OriginalLayoutIsTheSameModel) {
  const auto released = Open(kDemoDir);
  const auto original = Rewritten(Layout::kOriginal);
  ASSERT_NE(released, nullptr);
  ASSERT_NE(original, nullptr);
  EXPECT_EQ(original->layout(), Layout::kOriginal);
  EXPECT_TRUE(SameBytes(original->tensors().embedding, released->tensors().embedding));
  EXPECT_TRUE(SameBytes(original->tensors().lm_head, released->tensors().lm_head));
  EXPECT_TRUE(SameBytes(original->tensors().final_norm, released->tensors().final_norm));
  for (size_t i = 0; i < 4; ++i) {
    const LayerTensors& a = original->tensors().layers[i];
    const LayerTensors& b = released->tensors().layers[i];
    for (const auto field :
         {&LayerTensors::input_norm, &LayerTensors::q_weight, &LayerTensors::q_bias,
          &LayerTensors::k_weight, &LayerTensors::k_bias, &LayerTensors::v_weight,
          &LayerTensors::v_bias, &LayerTensors::o_weight, &LayerTensors::o_bias,
          &LayerTensors::sinks, &LayerTensors::post_norm, &LayerTensors::router_weight,
          &LayerTensors::router_bias, &LayerTensors::gate_up_blocks, &LayerTensors::gate_up_scales,
          &LayerTensors::down_blocks, &LayerTensors::down_scales, &LayerTensors::gate_up_bias,
          &LayerTensors::down_bias}) {
      EXPECT_TRUE(SameBytes(a.*field, b.*field)) << (a.*field).name;
    }
    EXPECT_EQ(a.k_weight.name, "block." + std::to_string(i) + ".attn.qkv.weight[512:640]");
  }
}

TEST_F(CheckpointTest, Bf16LayoutIsBound) {
  const auto checkpoint = Rewritten(Layout::kBf16);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->layout(), Layout::kBf16);
  EXPECT_FALSE(config_.mxfp4);
  const LayerTensors& layer = checkpoint->tensors().layers[1];
  EXPECT_THAT(layer.gate_up_dense.shape, ElementsAre(16, 128, 192));
  EXPECT_THAT(layer.down_dense.shape, ElementsAre(16, 96, 128));
  EXPECT_TRUE(layer.gate_up_blocks.shape.empty());
}

TEST_F(CheckpointTest, FingerprintIsTheSameInEveryLayout) {
  const uint64_t released = Open(kDemoDir)->BackboneFingerprint();
  EXPECT_EQ(Rewritten(Layout::kOriginal)->BackboneFingerprint(), released);
  std::filesystem::remove_all(dir_);
  EXPECT_EQ(Rewritten(Layout::kBf16)->BackboneFingerprint(), released);
  std::filesystem::remove_all(dir_);
  std::filesystem::create_directories(dir_);
  EXPECT_EQ(FingerprintNow(), released);
}

TEST_F(CheckpointTest, FingerprintSeesAChangedWeight) {
  const uint64_t released = FingerprintNow();
  const std::vector<tools::NewTensor> good = tensors_;
  for (const char* name :
       {"model.layers.2.input_layernorm.weight", "model.layers.0.self_attn.sinks",
        "model.embed_tokens.weight", "model.layers.3.mlp.experts.down_proj_blocks",
        "model.layers.1.mlp.experts.gate_up_proj_scales", "model.norm.weight"}) {
    tensors_ = good;
    Damage(name, 0);
    EXPECT_NE(FingerprintNow(), released) << name;
  }
  tensors_ = good;
  Damage("lm_head.weight", 0);
  EXPECT_EQ(FingerprintNow(), released);  // no part of the backbone
}

TEST_F(CheckpointTest, EveryMissingTensorIsNamed) {
  const std::vector<tools::NewTensor> good = tensors_;
  for (const tools::NewTensor& tensor : good) {
    if (!tensor.name.starts_with("model.layers.2.") && tensor.name.starts_with("model.layers.")) {
      continue;
    }
    tensors_ = good;
    Remove(tensor.name);
    EXPECT_THAT(WriteAndGetError(), HasSubstr("tensor " + tensor.name + " is missing"));
  }
}

TEST_F(CheckpointTest, EveryWrongShapeIsNamedWithBothShapes) {
  const std::vector<tools::NewTensor> good = tensors_;
  for (size_t i = 0; i < good.size(); ++i) {
    if (good[i].name.starts_with("model.layers.") && !good[i].name.starts_with("model.layers.1.")) {
      continue;
    }
    tensors_ = good;
    tensors_[i].shape.front() += 1;
    EXPECT_THAT(WriteAndGetError(), AllOf(HasSubstr("tensor " + good[i].name + " has shape ["),
                                          HasSubstr("is wanted"), HasSubstr(".safetensors: ")));
  }
  tensors_ = good;
  std::swap(Tensor("model.layers.0.mlp.experts.down_proj_bias").shape[0],
            Tensor("model.layers.0.mlp.experts.down_proj_bias").shape[1]);
  EXPECT_THAT(WriteAndGetError(), HasSubstr("has shape [128, 16]; [16, 128] is wanted"));
}

TEST_F(CheckpointTest, RefusesOtherDtypes) {
  tools::NewTensor& bias = Tensor("model.layers.0.mlp.router.bias");
  bias.type = TensorType::kF32;
  EXPECT_THAT(WriteAndGetError(),
              HasSubstr("tensor model.layers.0.mlp.router.bias is F32; BF16 is wanted"));
}

TEST_F(CheckpointTest, RefusesMoreLayersThanTheConfigHas) {
  AddBf16("model.layers.4.input_layernorm.weight", {128});
  EXPECT_THAT(WriteAndGetError(), AllOf(HasSubstr("model.layers.4.input_layernorm.weight"),
                                        HasSubstr("num_hidden_layers is 4")));
}

TEST_F(CheckpointTest, RefusesBf16AtAnOddAddress) {
  // An unusual header length moves all data by one byte.
  Write();
  const std::string path = dir_ + "/model-00000-of-00001.safetensors";
  std::ifstream in(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  bytes.insert(sizeof(length) + length, " ");
  ++length;
  std::memcpy(bytes.data(), &length, sizeof(length));
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_THAT(ErrorOf(), HasSubstr("begins at an odd byte"));
}

TEST_F(CheckpointTest, OtherTensorsAreNobodysBusiness) {
  AddBf16("something.else", {3});
  Write();
  EXPECT_NE(Open(dir_), nullptr);
}

TEST_F(CheckpointTest, TiedEmbeddingServesAsLmHead) {
  Remove("lm_head.weight");
  config_json_["tie_word_embeddings"] = true;
  Write();
  const auto checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->tensors().lm_head.bytes.data(),
            checkpoint->tensors().embedding.bytes.data());
}

TEST_F(CheckpointTest, AttentionWithoutBiasesIsBoundWithoutThem) {
  config_json_["attention_bias"] = false;
  config_.attention_bias = false;
  EXPECT_THAT(WriteAndGetError(), HasSubstr("q_proj.bias is there, but"));
  std::erase_if(tensors_, [](const auto& tensor) { return tensor.name.ends_with("_proj.bias"); });
  Write();
  const auto checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->tensors().layers[0].o_bias.bytes.empty());
}

TEST_F(CheckpointTest, ClassificationCheckpointsCarryTheirHead) {
  Remove("lm_head.weight");
  config_json_["id2label"] = {{"0", "a"}, {"1", "b"}, {"2", "c"}};
  config_json_["architectures"] = {"GptOssForSequenceClassification"};
  AddBf16("score.weight", {3, 128});
  Write();
  auto checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  ASSERT_NE(checkpoint->head(), nullptr);
  EXPECT_THAT(checkpoint->head()->weight.shape, ElementsAre(3, 128));
  EXPECT_TRUE(checkpoint->head()->bias.bytes.empty());
  EXPECT_TRUE(checkpoint->tensors().lm_head.bytes.empty());

  config_json_["architectures"] = {"GptOssForTokenClassification"};
  Write();
  config_ = *LoadConfig(dir_);
  EXPECT_THAT(ErrorOf(), HasSubstr("tensor score.bias is missing"));
  AddBf16("score.bias", {3});
  Write();
  checkpoint = Open(dir_);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_THAT(checkpoint->head()->bias.shape, ElementsAre(3));

  config_json_["id2label"] = {{"0", "a"}, {"1", "b"}};
  Write();
  config_ = *LoadConfig(dir_);
  EXPECT_THAT(ErrorOf(), HasSubstr("score.weight has shape [3, 128]; [2, 128] is wanted"));
}

TEST_F(CheckpointTest, Mxfp4NeedsWholeBlocks) {
  Write();
  config_.intermediate_size = 80;
  EXPECT_THAT(ErrorOf(), HasSubstr("intermediate_size 80"));
}

TEST_F(CheckpointTest, AnyShardNamesWillDo) {
  Write();
  std::filesystem::remove(dir_ + "/model.safetensors.index.json");
  EXPECT_NE(Open(dir_), nullptr);  // model*.safetensors
  std::filesystem::rename(dir_ + "/model-00000-of-00001.safetensors",
                          dir_ + "/model--00001-of-00001.safetensors");
  EXPECT_NE(Open(dir_), nullptr);
  std::filesystem::copy(dir_ + "/model-00001-of-00001.safetensors",
                        dir_ + "/model-00002-of-00001.safetensors");
  EXPECT_THAT(ErrorOf(), HasSubstr("is in both"));
}

TEST_F(CheckpointTest, OneFileNeedsNoIndex) {
  ASSERT_TRUE(tools::WriteSafetensors(dir_ + "/model.safetensors", tensors_).ok());
  ASSERT_TRUE(tools::WriteJson(dir_ + "/config.json", config_json_).ok());
  EXPECT_NE(Open(dir_), nullptr);
}

TEST_F(CheckpointTest, FolderWithoutWeightsIsNotFound) {
  const auto checkpoint = Checkpoint::Open(dir_, config_);
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(checkpoint.status().message()),
              HasSubstr("model.safetensors.index.json"));
}

TEST_F(CheckpointTest, RefusesFilesOfAnotherModel) {
  tensors_.clear();
  AddBf16("transformer.h.0.ln_1.weight", {4});
  AddBf16("transformer.h.0.ln_2.weight", {4});
  EXPECT_THAT(WriteAndGetError(), HasSubstr("no tensor is named model.layers.N or block.N"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatIsWrong) {
  const auto error_with = [&](const std::function<void(json&)>& change) {
    Write();
    const std::string path = dir_ + "/model.safetensors.index.json";
    json index = *tools::ReadJson(path);
    change(index);
    EXPECT_TRUE(tools::WriteJson(path, index).ok());
    const std::string error = ErrorOf();
    EXPECT_THAT(error, HasSubstr("model.safetensors.index.json: "));
    return error;
  };
  const auto file_error = [&](const json& file) {
    return error_with([&](json& index) { index["weight_map"]["lm_head.weight"] = file; });
  };
  EXPECT_THAT(file_error("model-00007-of-00001.safetensors"), HasSubstr("model-00007"));
  EXPECT_THAT(file_error("model-00001-of-00001.safetensors"),
              HasSubstr("has lm_head.weight, but it has not"));
  EXPECT_THAT(file_error("config.json"), HasSubstr("config.json"));
  for (const json& bad :
       {json("../model-00000-of-00001.safetensors"), json("/etc/passwd"), json(".."), json("."),
        json(""), json("a/b"), json(3), json(nullptr), json(std::string("a\0b", 3))}) {
    EXPECT_THAT(file_error(bad), HasSubstr("the name of a file in the same folder")) << bad;
  }
  EXPECT_THAT(error_with([](json& index) { index.erase("weight_map"); }), HasSubstr("weight_map"));
  EXPECT_THAT(error_with([](json& index) { index["weight_map"] = json::array(); }),
              HasSubstr("weight_map"));
  EXPECT_THAT(error_with([](json& index) { index["weight_map"] = json::object(); }),
              HasSubstr("weight_map"));
  EXPECT_THAT(error_with([](json& index) { index["weight_map"].erase("model.norm.weight"); }),
              HasSubstr("tensor model.norm.weight is missing"));
}

TEST_F(CheckpointTest, RefusesAShardThatWasCutShort) {
  Write();
  const std::string path = dir_ + "/model-00001-of-00001.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_THAT(ErrorOf(), AllOf(HasSubstr(path), HasSubstr("data_offsets")));
}

}  // namespace
}  // namespace conclave::model
