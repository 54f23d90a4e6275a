#include "model/config.h"

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// The 20b release, without what has no effect on inference.
json Released() {
  json layer_types = json::array();
  for (int i = 0; i < 12; ++i) {
    layer_types.push_back("sliding_attention");
    layer_types.push_back("full_attention");
  }
  return {{"architectures", {"GptOssForCausalLM"}},
          {"model_type", "gpt_oss"},
          {"num_hidden_layers", 24},
          {"num_local_experts", 32},
          {"num_experts_per_tok", 4},
          {"experts_per_token", 4},
          {"hidden_size", 2880},
          {"intermediate_size", 2880},
          {"num_attention_heads", 64},
          {"num_key_value_heads", 8},
          {"head_dim", 64},
          {"vocab_size", 201088},
          {"sliding_window", 128},
          {"layer_types", layer_types},
          {"max_position_embeddings", 131072},
          {"initial_context_length", 4096},
          {"rope_theta", 150000},
          {"rope_scaling",
           {{"rope_type", "yarn"},
            {"factor", 32.0},
            {"beta_fast", 32.0},
            {"beta_slow", 1.0},
            {"original_max_position_embeddings", 4096},
            {"truncate", false}}},
          {"swiglu_limit", 7.0},
          {"rms_norm_eps", 1e-5},
          {"attention_bias", true},
          {"tie_word_embeddings", false},
          {"eos_token_id", 200002},
          {"pad_token_id", 199999},
          {"quantization_config", {{"quant_method", "mxfp4"}}}};
}

json Original() {
  return {{"num_hidden_layers", 24},   {"num_experts", 32},
          {"experts_per_token", 4},    {"vocab_size", 201088},
          {"hidden_size", 2880},       {"intermediate_size", 2880},
          {"swiglu_limit", 7.0},       {"head_dim", 64},
          {"num_attention_heads", 64}, {"num_key_value_heads", 8},
          {"sliding_window", 128},     {"initial_context_length", 4096},
          {"rope_theta", 150000},      {"rope_scaling_factor", 32.0},
          {"rope_ntk_alpha", 1},       {"rope_ntk_beta", 32}};
}

Config Parse(const json& object) {
  auto config = ParseConfig(object.dump(), "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *std::move(config) : Config();
}

std::string ErrorOf(const json& object) {
  const auto config = ParseConfig(object.dump(), "config.json");
  EXPECT_FALSE(config.ok()) << "accepted: " << object;
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

json With(json object, const std::string& name, const json& value) {
  object[name] = value;
  return object;
}

json Without(json object, const std::string& name) {
  object.erase(name);
  return object;
}

void ExpectReleasedRope(const Rope& rope) {
  EXPECT_EQ(rope.theta, 150000.0);
  EXPECT_TRUE(rope.yarn);
  EXPECT_EQ(rope.factor, 32.0);
  EXPECT_EQ(rope.beta_fast, 32.0);
  EXPECT_EQ(rope.beta_slow, 1.0);
  EXPECT_EQ(rope.original_max_positions, 4096.0);
  EXPECT_FALSE(rope.truncate);
  EXPECT_DOUBLE_EQ(rope.attention_factor, 1.3465735902799727);
}

TEST(ConfigTest, ReadsTheReleasedSpelling) {
  const Config config = Parse(Released());
  EXPECT_EQ(config.architecture, Architecture::kCausalLm);
  EXPECT_EQ(config.num_layers, 24);
  EXPECT_EQ(config.num_experts, 32);
  EXPECT_EQ(config.experts_per_token, 4);
  EXPECT_EQ(config.hidden_size, 2880);
  EXPECT_EQ(config.intermediate_size, 2880);
  EXPECT_EQ(config.num_heads, 64);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 201088);
  EXPECT_EQ(config.sliding_window, 128);
  EXPECT_EQ(config.context_length, 131072);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.swiglu_limit, 7.0);
  EXPECT_EQ(config.swiglu_alpha, 1.702);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_TRUE(config.mxfp4);
  EXPECT_FALSE(config.original);
  EXPECT_EQ(config.num_layers_of(LayerType::kSliding), 12);
  EXPECT_EQ(config.num_layers_of(LayerType::kFull), 12);
  EXPECT_EQ(config.layer_types[0], LayerType::kSliding);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(200002));
  EXPECT_EQ(config.pad_token_id, 199999);
  EXPECT_FALSE(config.head.has_value());
  ExpectReleasedRope(config.rope);
}

TEST(ConfigTest, ReadsTheNewerSpelling) {
  json object = Without(Without(Released(), "rope_theta"), "num_experts_per_tok");
  object["rope_parameters"] = object["rope_scaling"];
  object["rope_parameters"]["rope_theta"] = 150000.0;
  object.erase("rope_scaling");
  object["swiglu_alpha"] = 1.5;
  const Config config = Parse(object);
  ExpectReleasedRope(config.rope);
  EXPECT_EQ(config.experts_per_token, 4);
  EXPECT_EQ(config.swiglu_alpha, 1.5);
}

TEST(ConfigTest, ReadsOpenAisSpelling) {
  const Config config = Parse(Original());
  EXPECT_TRUE(config.original);
  EXPECT_TRUE(config.mxfp4);
  EXPECT_EQ(config.num_experts, 32);
  EXPECT_EQ(config.experts_per_token, 4);
  EXPECT_EQ(config.context_length, 131072);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_TRUE(config.eos_token_ids.empty());
  EXPECT_EQ(config.layer_types, Parse(Released()).layer_types);
  ExpectReleasedRope(config.rope);
}

TEST(ConfigTest, DefaultsStandForWhatDoesNotShapeTheWeights) {
  json object = Released();
  for (const char* name :
       {"sliding_window", "layer_types", "max_position_embeddings", "rope_theta", "rope_scaling",
        "swiglu_limit", "rms_norm_eps", "attention_bias", "tie_word_embeddings",
        "quantization_config", "eos_token_id", "pad_token_id", "architectures"}) {
    object.erase(name);
  }
  const Config config = Parse(object);
  EXPECT_EQ(config.architecture, Architecture::kCausalLm);
  EXPECT_EQ(config.sliding_window, 128);
  EXPECT_EQ(config.context_length, 131072);
  EXPECT_EQ(config.swiglu_limit, 7.0);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.mxfp4);
  EXPECT_TRUE(config.eos_token_ids.empty());
  EXPECT_FALSE(config.pad_token_id.has_value());
  EXPECT_EQ(config.layer_types, Parse(Released()).layer_types);
  ExpectReleasedRope(config.rope);
}

TEST(ConfigTest, NamesEveryMissingSize) {
  for (const char* name :
       {"num_hidden_layers", "num_local_experts", "hidden_size", "intermediate_size",
        "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"}) {
    EXPECT_EQ(ErrorOf(Without(Released(), name)),
              std::string("config.json: ") + name + " is missing");
  }
  EXPECT_EQ(ErrorOf(Without(Without(Released(), "num_experts_per_tok"), "experts_per_token")),
            "config.json: num_experts_per_tok is missing");
  EXPECT_EQ(ErrorOf(Without(Without(Released(), "model_type"), "architectures")),
            "config.json: model_type is missing");
  EXPECT_EQ(ErrorOf(With(Released(), "hidden_size", nullptr)),
            "config.json: hidden_size is missing");
}

TEST(ConfigTest, NamesTheFieldAndTheNumberOfAContradiction) {
  const struct {
    const char* name;
    json value;
    std::vector<std::string> parts;
  } cases[] = {
      {"experts_per_token", 8, {"experts_per_token is 8", "num_experts_per_tok is 4"}},
      {"num_experts", 16, {"num_experts is 16", "num_local_experts is 32"}},
      {"num_local_experts", 2, {"num_experts_per_tok is 4", "2 experts"}},
      {"num_key_value_heads", 7, {"num_attention_heads is 64", "num_key_value_heads, 7"}},
      {"layer_types", {"full_attention"}, {"layer_types has 1", "num_hidden_layers is 24"}},
      {"hidden_size", 2890, {"hidden_size is 2890", "32"}},
      {"intermediate_size", 100, {"intermediate_size is 100", "32"}},
      {"head_dim", 65, {"head_dim is 65"}},
      {"pad_token_id", 201088, {"pad_token_id is 201088", "201087"}},
      {"eos_token_id", {5, -1}, {"eos_token_id[1] is -1"}},
  };
  for (const auto& test : cases) {
    const std::string error = ErrorOf(With(Released(), test.name, test.value));
    for (const std::string& part : test.parts) EXPECT_THAT(error, HasSubstr(part));
  }
}

TEST(ConfigTest, RefusesValuesOfTheWrongKindOrOutOfRange) {
  const struct {
    const char* name;
    json value;
  } cases[] = {
      {"num_hidden_layers", 0},
      {"num_hidden_layers", -24},
      {"num_hidden_layers", 1e9},
      {"num_hidden_layers", 1000000000},
      {"num_hidden_layers", 18446744073709551615u},
      {"num_hidden_layers", "24"},
      {"num_hidden_layers", 24.0},
      {"num_hidden_layers", true},
      {"num_hidden_layers", json::array({24})},
      {"num_local_experts", 1 << 20},
      {"hidden_size", 1 << 30},
      {"vocab_size", 1 << 30},
      {"head_dim", 4096},
      {"sliding_window", nullptr},
      {"sliding_window", 0},
      {"max_position_embeddings", 0},
      {"rms_norm_eps", 0},
      {"rms_norm_eps", -1e-5},
      {"rms_norm_eps", "1e-5"},
      {"swiglu_limit", -7},
      {"attention_bias", 1},
      {"tie_word_embeddings", "false"},
      {"layer_types", "sliding_attention"},
      {"eos_token_id", "x"},
      {"model_type", "llama"},
      {"model_type", 3},
      {"architectures", {"LlamaForCausalLM"}},
      {"architectures", "GptOssForCausalLM"},
      {"architectures", {1}},
      {"quantization_config", "mxfp4"},
      {"rope_theta", 0},
      {"rope_scaling", 3},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(ErrorOf(With(Released(), test.name, test.value)), HasSubstr(test.name));
  }
  json types = Released();
  types["layer_types"][5] = "chunked_attention";
  EXPECT_THAT(ErrorOf(types), HasSubstr("layer_types[5]"));
  EXPECT_THAT(ErrorOf(With(Released(), "quantization_config", {{"quant_method", "awq"}})),
              HasSubstr("quantization_config.quant_method is \"awq\""));
  EXPECT_THAT(ErrorOf(With(Released(), "quantization_config", json::object())),
              HasSubstr("quantization_config.quant_method is missing"));
}

TEST(ConfigTest, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "{", "[]", "null", "3", "{\"a\":}", "{} {}", "\xff\xfe{}"}) {
    const auto config = ParseConfig(text, "some/config.json");
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("some/config.json: "));
  }
}

TEST(ConfigTest, SurvivesDeepNesting) {
  const std::string deep = "{\"x\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_FALSE(ParseConfig(deep, "config.json").ok());
}

// rope_scaling first, then rope_parameters; theta inside, else outside, else 150000.
TEST(ConfigRopeTest, ParametersAreFoundInTheReadersOrder) {
  json object = Released();
  object["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 8.0}, {"rope_theta", 9999}};
  EXPECT_EQ(Parse(object).rope.factor, 32.0);
  EXPECT_EQ(Parse(object).rope.theta, 150000.0);
  object["rope_scaling"] = json::object();
  EXPECT_EQ(Parse(object).rope.factor, 8.0);
  EXPECT_EQ(Parse(object).rope.theta, 9999.0);
  object["rope_parameters"].erase("rope_theta");
  object["rope_theta"] = 1234;
  EXPECT_EQ(Parse(object).rope.theta, 1234.0);
  object.erase("rope_theta");
  EXPECT_EQ(Parse(object).rope.theta, 150000.0);
}

TEST(ConfigRopeTest, MissingYarnKeysTakeTheReadersDefaults) {
  const Rope rope =
      Parse(With(Released(), "rope_scaling", {{"type", "yarn"}, {"factor", 4.0}})).rope;
  EXPECT_TRUE(rope.yarn);
  EXPECT_TRUE(rope.truncate);
  EXPECT_EQ(rope.beta_fast, 32.0);
  EXPECT_EQ(rope.beta_slow, 1.0);
  EXPECT_EQ(rope.original_max_positions, 131072.0);
  EXPECT_DOUBLE_EQ(rope.attention_factor, 0.1 * std::log(4.0) + 1.0);
}

TEST(ConfigRopeTest, NoTypeMeansUnscaled) {
  for (const json& parameters : {json{{"rope_theta", 500.0}}, json{{"rope_type", "default"}}}) {
    json object = Without(Released(), "rope_scaling");
    object["rope_parameters"] = parameters;
    const Rope rope = Parse(object).rope;
    EXPECT_FALSE(rope.yarn);
    EXPECT_EQ(rope.attention_factor, 1.0);
  }
  const Rope empty = Parse(With(Released(), "rope_scaling", json::object())).rope;
  EXPECT_FALSE(empty.yarn);
  const Rope absent = Parse(With(Released(), "rope_scaling", nullptr)).rope;
  EXPECT_TRUE(absent.yarn);
}

TEST(ConfigRopeTest, AttentionFactorCanBeStatedOrDerivedFromTwoScales) {
  const auto factor_with = [](const json& more) {
    json object = Released();
    object["rope_scaling"].update(more);
    return Parse(object).rope.attention_factor;
  };
  EXPECT_EQ(factor_with({{"attention_factor", 1.25}}), 1.25);
  EXPECT_DOUBLE_EQ(factor_with({{"mscale", 0.707}, {"mscale_all_dim", 0.5}}),
                   (0.0707 * std::log(32.0) + 1) / (0.05 * std::log(32.0) + 1));
  EXPECT_DOUBLE_EQ(factor_with({{"mscale", 0.707}}), 1.3465735902799727);
  EXPECT_DOUBLE_EQ(factor_with({{"mscale", 0.707}, {"mscale_all_dim", 0}}), 1.3465735902799727);
  EXPECT_EQ(factor_with({{"factor", 0.5}}), 1.0);
}

TEST(ConfigRopeTest, TablesPerLayerTypeMustBeEqual) {
  json object = Released();
  json inner = object["rope_scaling"];
  inner["rope_theta"] = 150000;
  object.erase("rope_scaling");
  object.erase("rope_theta");
  object["rope_parameters"] = {{"sliding_attention", inner}, {"full_attention", inner}};
  ExpectReleasedRope(Parse(object).rope);
  object["rope_parameters"]["full_attention"]["rope_theta"] = 10000;
  EXPECT_THAT(ErrorOf(object), HasSubstr("rope_parameters differs"));
  object["rope_parameters"].erase("full_attention");
  EXPECT_THAT(ErrorOf(object), HasSubstr("rope_parameters.full_attention is missing"));
}

TEST(ConfigRopeTest, RefusesBadParametersByName) {
  const auto error_with = [](const json& more) {
    json object = Released();
    object["rope_scaling"].update(more);
    return ErrorOf(object);
  };
  EXPECT_THAT(error_with({{"rope_type", "longrope"}}), HasSubstr("rope_scaling.rope_type is"));
  EXPECT_THAT(error_with({{"rope_type", 3}}), HasSubstr("rope_scaling.rope_type"));
  EXPECT_THAT(error_with({{"factor", -1}}), HasSubstr("rope_scaling.factor is -1"));
  EXPECT_THAT(error_with({{"factor", nullptr}}), HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(error_with({{"beta_fast", 0.5}}), HasSubstr("rope_scaling.beta_fast is 0.5"));
  EXPECT_THAT(error_with({{"truncate", 0}}), HasSubstr("rope_scaling.truncate is 0"));
  EXPECT_THAT(error_with({{"original_max_position_embeddings", 0}}),
              HasSubstr("rope_scaling.original_max_position_embeddings is 0"));
}

int64_t UlpsApart(float a, float b) {
  return std::abs(int64_t{std::bit_cast<int32_t>(a)} - int64_t{std::bit_cast<int32_t>(b)});
}

TEST(ConfigRopeTest, InverseFrequenciesAreTheReferencesWithinTwoUlps) {
  constexpr float kExpected[] = {1.0f,
                                 0.689044297f,
                                 0.47478205f,
                                 0.327145845f,
                                 0.225418001f,
                                 0.155322984f,
                                 0.107024424f,
                                 0.0737445652f,
                                 0.05081328f,
                                 0.0317056961f,
                                 0.0193350017f,
                                 0.0115920492f,
                                 0.00679495931f,
                                 0.00386035908f,
                                 0.00209379266f,
                                 0.00105260219f,
                                 0.000456483918f,
                                 0.000129318694f,
                                 3.83088118e-05f,
                                 2.63964721e-05f,
                                 1.8188337e-05f,
                                 1.25325696e-05f,
                                 8.63549576e-06f,
                                 5.95023948e-06f,
                                 4.09997847e-06f,
                                 2.82506676e-06f,
                                 1.94659629e-06f,
                                 1.34129107e-06f,
                                 9.24208962e-07f,
                                 6.36820914e-07f,
                                 4.38797855e-07f,
                                 3.0235114e-07f};
  const std::vector<float> table = RopeInverseFrequencies(Rope(), 64);
  ASSERT_EQ(table.size(), std::size(kExpected));
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_LE(UlpsApart(table[i], kExpected[i]), 2) << i << ": " << table[i];
  }
}

TEST(ConfigRopeTest, TruncationMovesTheRamp) {
  Rope truncated;
  truncated.truncate = true;
  const std::vector<float> with = RopeInverseFrequencies(truncated, 64);
  const std::vector<float> without = RopeInverseFrequencies(Rope(), 64);
  EXPECT_EQ(with[8], without[8]);  // ramp from 8 instead of 8.09: both zero at 8
  EXPECT_NE(with[9], without[9]);
  EXPECT_NE(with[17], without[17]);
  EXPECT_EQ(with[18], without[18]);
}

TEST(ConfigRopeTest, UnscaledFrequenciesArePowersOfTheBase) {
  Rope rope;
  rope.yarn = false;
  rope.theta = 10000.0;
  const std::vector<float> table = RopeInverseFrequencies(rope, 8);
  ASSERT_EQ(table.size(), 4u);
  EXPECT_FLOAT_EQ(table[0], 1.0f);
  EXPECT_FLOAT_EQ(table[1], 0.1f);
  EXPECT_FLOAT_EQ(table[2], 0.01f);
  EXPECT_FLOAT_EQ(table[3], 0.001f);
}

json Classifier(const char* architecture) {
  return With(Released(), "architectures", json::array({architecture}));
}

TEST(ConfigHeadTest, LabelsAreInIdOrder) {
  json object = Classifier("GptOssForSequenceClassification");
  object["id2label"] = {{"0", "negative"}, {"2", "positive"}, {"1", "neutral"}};
  object["label2id"] = {{"negative", 0}, {"neutral", 1}, {"positive", 2}};
  object["problem_type"] = "multi_label_classification";
  const Config config = Parse(object);
  EXPECT_EQ(config.architecture, Architecture::kSequenceClassification);
  ASSERT_TRUE(config.head.has_value());
  EXPECT_EQ(config.head->kind, Architecture::kSequenceClassification);
  EXPECT_THAT(config.head->labels, ElementsAre("negative", "neutral", "positive"));
  EXPECT_EQ(config.head->problem_type, ProblemType::kMultiLabel);
}

TEST(ConfigHeadTest, LabelsHaveDefaults) {
  const json object = Classifier("GptOssForTokenClassification");
  EXPECT_THAT(Parse(object).head->labels, ElementsAre("LABEL_0", "LABEL_1"));
  EXPECT_THAT(Parse(With(object, "num_labels", 1)).head->labels, ElementsAre("LABEL_0"));
  EXPECT_EQ(Parse(object).head->kind, Architecture::kTokenClassification);
  EXPECT_EQ(Parse(object).head->problem_type, ProblemType::kUnset);
}

TEST(ConfigHeadTest, RefusesBadLabelsByField) {
  const json object = Classifier("GptOssForSequenceClassification");
  const json two = With(object, "id2label", {{"0", "a"}, {"1", "b"}});
  const struct {
    json config;
    const char* part;
  } cases[] = {
      {With(two, "num_labels", 3), "num_labels is 3 but id2label has 2"},
      {With(object, "num_labels", 0), "num_labels is 0"},
      {With(object, "num_labels", 1 << 20), "num_labels is 1048576"},
      {With(object, "id2label", {{"0", "a"}, {"2", "b"}}), "id2label has the key \"2\""},
      {With(object, "id2label", {{"0", "a"}, {"01", "b"}}), "id2label has the key \"01\""},
      {With(object, "id2label", {{"x", "a"}}), "id2label has the key \"x\""},
      {With(object, "id2label", {{"0", 7}}), "id2label.0 is not a string"},
      {With(object, "id2label", json::object()), "id2label is not an object"},
      {With(object, "id2label", {"a", "b"}), "id2label is not an object"},
      {With(two, "label2id", {{"a", 1}}), "label2id maps \"a\" to 1"},
      {With(two, "label2id", {{"c", 0}}), "label2id maps \"c\" to 0"},
      {With(two, "label2id", {{"a", -1}}), "label2id maps \"a\" to -1"},
      {With(object, "problem_type", "ranking"), "problem_type is \"ranking\""},
      {With(object, "backbone_fingerprint", "xyz"), "backbone_fingerprint"},
  };
  for (const auto& test : cases) EXPECT_THAT(ErrorOf(test.config), HasSubstr(test.part));
}

// A folder of JSON files that is gone after the test.
class ConfigFolderTest : public testing::Test {
 protected:
  ConfigFolderTest()
      : dir_(testing::TempDir() + "/config_" +
             testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_ + "/original");
  }
  ~ConfigFolderTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, const json& object) {
    std::ofstream(dir_ + "/" + name) << object;
  }

  const std::string dir_;
};

TEST_F(ConfigFolderTest, GenerationConfigNamesTheEndTokens) {
  Write("config.json", Released());
  EXPECT_THAT(LoadConfig(dir_)->eos_token_ids, ElementsAre(200002));
  Write("generation_config.json",
        {{"eos_token_id", {200002, 199999, 200012}}, {"pad_token_id", 1}});
  const auto config = LoadConfig(dir_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(200002, 199999, 200012));
  EXPECT_EQ(config->pad_token_id, 199999);
  Write("generation_config.json", {{"eos_token_id", 201088}});
  EXPECT_THAT(std::string(LoadConfig(dir_).status().message()),
              HasSubstr("generation_config.json: eos_token_id is 201088"));
}

TEST_F(ConfigFolderTest, OriginalConfigStandsInForAMissingOne) {
  Write("original/config.json", Original());
  Write("generation_config.json", {{"eos_token_id", 200002}, {"pad_token_id", 199999}});
  const auto config = LoadConfig(dir_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->original);
  EXPECT_EQ(config->pad_token_id, 199999);
  Write("config.json", Released());
  EXPECT_FALSE(LoadConfig(dir_)->original);
}

TEST_F(ConfigFolderTest, SaysWhichFileIsNotThere) {
  EXPECT_EQ(LoadConfig(dir_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(LoadConfig(dir_).status().message()), HasSubstr("config.json"));
  EXPECT_EQ(LoadConfig(dir_ + "/nowhere").status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directories(dir_ + "/config.json");
  EXPECT_THAT(std::string(LoadConfig(dir_).status().message()), HasSubstr("not a regular file"));
}

TEST_F(ConfigFolderTest, HeadConfigNeedsNoBackboneAndNoArchitecture) {
  Write("config.json", {{"id2label", {{"0", "no"}, {"1", "yes"}}},
                        {"problem_type", "single_label_classification"},
                        {"backbone_fingerprint", "0123456789abcdef"}});
  const auto head = LoadHeadConfig(dir_, Architecture::kTokenClassification);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->kind, Architecture::kTokenClassification);
  EXPECT_THAT(head->labels, ElementsAre("no", "yes"));
  EXPECT_EQ(head->problem_type, ProblemType::kSingleLabel);
  EXPECT_EQ(head->backbone_fingerprint, "0123456789abcdef");
}

TEST_F(ConfigFolderTest, StatedArchitectureOfAHeadCounts) {
  Write("config.json", {{"architectures", {"GptOssForSequenceClassification"}}});
  EXPECT_EQ(LoadHeadConfig(dir_, Architecture::kTokenClassification)->kind,
            Architecture::kSequenceClassification);
  Write("config.json", {{"architectures", {"GptOssForCausalLM"}}});
  EXPECT_THAT(
      std::string(LoadHeadConfig(dir_, Architecture::kTokenClassification).status().message()),
      HasSubstr("architectures"));
}

TEST(ConfigDemoTest, ReadsTheShippedCheckpoint) {
  const auto config = LoadConfig("demo/tiny_gpt_oss");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 4);
  EXPECT_EQ(config->rope.factor, 4.0);
  EXPECT_EQ(config->rope.original_max_positions, 64.0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(498, 497, 504));
  const auto head =
      LoadHeadConfig("demo/tiny_gpt_oss/head_sequence", Architecture::kTokenClassification);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_THAT(head->labels, ElementsAre("negative", "neutral", "positive"));
}

}  // namespace
}  // namespace conclave::model
