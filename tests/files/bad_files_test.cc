// Every kind of bad file, through the programs that open checkpoints: one line on stderr that names
// the file and what is wrong, exit 1, before any process is started and any large memory is taken.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <vector>

#include "base/utf8.h"
#include "tests/e2e/server.h"
#include "tests/files/model_folder.h"

namespace conclave::tests {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

// A program of this size with the shipped checkpoint takes a third of it.
constexpr int64_t kMaxPeakBytes = int64_t{96} << 20;

struct Case {
  const char* name;
  std::function<void(const ModelFolder&)> breaks;
  std::vector<std::string> says;  // all of them
  std::string head = "";          // folder of a head to attach
};

// The programs that a folder may meet first.
class BadFilesTest : public testing::TestWithParam<Case> {
 protected:
  // Stand-ins that leave a mark where `conclave serve` starts them.
  void SetUp() override {
    bin_ = testing::TempDir() + "/bin";
    fs::create_directories(bin_);
    for (const char* program : {"/conclave-coordinator", "/conclave-worker"}) {
      std::ofstream(bin_ + program) << "#!/bin/sh\necho started >> " << bin_ << "/started\n";
      fs::permissions(bin_ + program, fs::perms::owner_all);
    }
    setenv("CONCLAVE_BIN_DIR", bin_.c_str(), 1);
  }
  void TearDown() override {
    EXPECT_FALSE(fs::exists(bin_ + "/started")) << "a process was started";
    fs::remove_all(bin_);
  }

  static void ExpectRefused(std::vector<std::string> command, const Case& c) {
    if (!c.head.empty()) command.insert(command.end(), {"--head", "h=" + c.head});
    const CommandResult result = RunCommand(command);
    SCOPED_TRACE(command[0] + ": " + result.err.substr(0, 2000));
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
    EXPECT_LE(result.err.size(), 1200u);
    EXPECT_TRUE(base::ValidateUtf8(result.err).ok());
    for (const std::string& part : c.says) EXPECT_THAT(result.err, HasSubstr(part));
    if (std::getenv("CONCLAVE_SANITIZER") == nullptr) {
      EXPECT_LE(result.peak_bytes, kMaxPeakBytes);
    }
  }

  std::string bin_;
};

TEST_P(BadFilesTest, OneLineSaysWhichFileAndWhat) {
  const ModelFolder folder("model");
  Case c = GetParam();
  c.breaks(folder);
  if (HasFatalFailure()) return;
  if (!c.head.empty()) c.head = folder.Path(c.head);
  const std::vector<std::string> before = [&] {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder.dir())) names.push_back(entry.path());
    return names;
  }();
  ExpectRefused({BinaryPath("client/conclave"), "serve", "--model", folder.dir(), "--workers", "1",
                 "--device", "cpu", "--listen", "127.0.0.1:0"},
                c);
  ExpectRefused({BinaryPath("coordinator/conclave-coordinator"), "--model", folder.dir(),
                 "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"},
                c);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.dir()), fs::directory_iterator()),
            static_cast<ptrdiff_t>(before.size()))
      << "something was left in the folder";
}

// --- safetensors ---

constexpr char kNorm[] = "model.layers.2.input_layernorm.weight";
constexpr char kNormEntry[] = R"({"dtype":"BF16","shape":[128],"data_offsets":[32768,33024]})";

std::function<void(const ModelFolder&)> Header(const std::string& from, const std::string& to) {
  return [=](const ModelFolder& folder) { folder.EditHeader(kShard, from, to); };
}

std::function<void(const ModelFolder&)> Length(uint64_t length) {
  return [=](const ModelFolder& folder) {
    std::string contents = folder.Read(kShard);
    contents.replace(0, 8, reinterpret_cast<const char*>(&length), 8);
    folder.Write(kShard, contents);
  };
}

std::function<void(const ModelFolder&)> Contents(const std::string& file,
                                                 const std::string& contents) {
  return [=](const ModelFolder& folder) { folder.Write(file, contents); };
}

std::function<void(const ModelFolder&)> Size(const std::string& file, uint64_t bytes) {
  return [=](const ModelFolder& folder) { folder.Resize(file, bytes); };
}

std::function<void(const ModelFolder&)> Folder(const std::string& file) {
  return [=](const ModelFolder& folder) {
    folder.Remove(file);
    fs::create_directory(folder.Path(file));
  };
}

const std::vector<Case> kSafetensors = {
    {"Empty", Size(kShard, 0), {kShard, "empty"}},
    {"SevenBytes", Size(kShard, 7), {kShard, "7 bytes"}},
    {"CutShort", Size(kShard, 1'000'000), {kShard, "not within the", "bytes of data"}},
    {"HeaderCutShort", Size(kShard, 2000), {kShard, "claims 4232 bytes in a file of 2000"}},
    {"HeaderOversized", Length(uint64_t{1} << 40), {kShard, "claims 1099511627776 bytes"}},
    {"HeaderLengthWraps", Length(~uint64_t{0}), {kShard, "claims 18446744073709551615 bytes"}},
    {"HeaderOverLimit",
     [](const ModelFolder& folder) {
       Length(100'000'001)(folder);
       folder.Resize(kShard, 200'000'000);
     },
     {kShard, "claims 100000001 bytes", "limit 100000000"}},
    {"Overlap", Header("[32768,33024]", "[32512,32768]"), {kShard, kNorm, "byte 32512"}},
    {"OutOfFile", Header("[32768,33024]", "[9932768,9933024]"), {kShard, kNorm, "9932768"}},
    {"Backwards", Header("[32768,33024]", "[33024,32768]"), {kShard, kNorm, "33024"}},
    {"Hole", Size(kShard, 1'400'000), {kShard, "1395760"}},
    {"DuplicateName",
     Header("\"model.layers.2.mlp.experts.down_proj_bias\":", "\"" + std::string(kNorm) + "\":"),
     {kShard, kNorm, "twice"}},
    {"AbsurdShape",
     Header(kNormEntry,
            R"({"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[32768,33024]})"),
     {kShard, kNorm, "4294967296", "256 bytes"}},
    {"NegativeShape",
     Header(kNormEntry, R"({"dtype":"BF16","shape":[-128],"data_offsets":[32768,33024]})"),
     {kShard, kNorm, "shape"}},
    {"OtherShape",
     Header(kNormEntry, R"({"dtype":"BF16","shape":[2,64],"data_offsets":[32768,33024]})"),
     {kShard, kNorm, "[2, 64]", "[128]"}},
    {"OtherDtype",
     Header(kNormEntry, R"({"dtype":"F32","shape":[64],"data_offsets":[32768,33024]})"),
     {kShard, kNorm, "F32", "BF16"}},
    {"UnknownDtype",
     Header(kNormEntry, R"({"dtype":"Q4","shape":[64],"data_offsets":[32768,33024]})"),
     {kShard, kNorm, "\"Q4\""}},
    {"HeaderNotJson",
     [](const ModelFolder& folder) { folder.WriteHeader(kShard, "{\"a\": nonsense}"); },
     {kShard, "header"}},
    {"HeaderOfGarbage",
     [](const ModelFolder& folder) {
       folder.WriteHeader(kShard, "\"" + std::string(2'000'000, '\xC4'));
     },
     {kShard, "header"}},
    {"HeaderNested",
     [](const ModelFolder& folder) { folder.WriteHeader(kShard, std::string(1'000'000, '[')); },
     {kShard, "header"}},
    {"ShardIsAFolder", Folder(kShard), {kShard, "not a regular file"}},
};

// --- the index ---

std::function<void(const ModelFolder&)> FileOf(const Json& file) {
  return [=](const ModelFolder& folder) {
    Json index = folder.ReadJson(kIndex);
    index["weight_map"][kNorm] = file;
    folder.Write(kIndex, index.dump());
  };
}

const std::vector<Case> kIndexes = {
    {"IndexNamesAMissingFile",
     FileOf("model-00009.safetensors"),
     {kIndex, "model-00009.safetensors"}},
    {"IndexLeadsUp", FileOf("../model.safetensors"), {kIndex, "../model.safetensors", kNorm}},
    {"IndexLeadsAway", FileOf("/etc/passwd"), {kIndex, "/etc/passwd", kNorm}},
    {"IndexNamesTheParent", FileOf(".."), {kIndex, "\"..\"", kNorm}},
    {"IndexHasANumber", FileOf(7), {kIndex, "7", kNorm}},
    {"IndexPutsATensorElsewhere", FileOf("model-00000-of-00002.safetensors"), {kIndex, kNorm}},
    {"IndexIsNotJson", Contents(kIndex, "{\"weight_map\": "), {kIndex, "JSON"}},
    {"IndexIsAList", Contents(kIndex, "[1]"), {kIndex, "a list"}},
    {"IndexHasNoMap", Contents(kIndex, "{\"metadata\": {}}"), {kIndex, "weight_map"}},
    {"IndexMapIsAList", Contents(kIndex, "{\"weight_map\": [1]}"), {kIndex, "weight_map"}},
    {"IndexIsHuge", Size(kIndex, uint64_t{1} << 33), {kIndex, "8589934592 bytes"}},
    {"IndexIsAFolder", Folder(kIndex), {kIndex, "not a regular file"}},
};

// --- config.json ---

std::function<void(const ModelFolder&)> Field(const std::string& name, const Json& value) {
  return [=](const ModelFolder& folder) { folder.SetField("config.json", name, value); };
}

const std::vector<Case> kConfigs = {
    {"ConfigMissing",
     [](const ModelFolder& folder) { folder.Remove("config.json"); },
     {"config.json"}},
    {"ConfigIsAFolder", Folder("config.json"), {"config.json", "not a regular file"}},
    {"ConfigEmpty", Contents("config.json", ""), {"config.json", "JSON"}},
    {"ConfigCutShort", Size("config.json", 700), {"config.json", "JSON"}},
    {"ConfigIsAList", Contents("config.json", "[]"), {"config.json", "a list"}},
    {"ConfigHasNan", Contents("config.json", "{\"rms_norm_eps\": NaN}"), {"config.json", "JSON"}},
    {"ConfigNested", Contents("config.json", std::string(1'000'000, '[')), {"config.json", "JSON"}},
    {"ConfigOfGarbage",
     Contents("config.json", "{\"" + std::string(2'000'000, '\xFF')),
     {"config.json", "JSON"}},
    {"ConfigOfControlCharacters",
     Contents("config.json", "{\"a\": \"\x1b[2J\n\r\x07"),
     {"config.json", "JSON"}},
    {"ConfigIsHuge",
     Size("config.json", uint64_t{1} << 40),
     {"config.json", "1099511627776 bytes"}},
    {"ConfigOfAnotherModel", Field("model_type", "llama"), {"config.json", "model_type", "llama"}},
    {"ConfigArchitecture",
     Field("architectures", Json::array({"LlamaForCausalLM"})),
     {"config.json", "architectures", "LlamaForCausalLM"}},
    {"ConfigFieldMissing",
     Field("num_key_value_heads", nullptr),
     {"config.json", "num_key_value_heads", "missing"}},
    {"ConfigText", Field("hidden_size", "128"), {"config.json", "hidden_size", "\"128\""}},
    {"ConfigFraction", Field("head_dim", 63.5), {"config.json", "head_dim", "63.5"}},
    {"ConfigNegative", Field("vocab_size", -512), {"config.json", "vocab_size", "-512"}},
    {"ConfigAbsurd",
     Field("num_hidden_layers", 2'000'000'000),
     {"config.json", "num_hidden_layers", "2000000000"}},
    {"ConfigBeyondInt64",
     Field("num_local_experts", ~uint64_t{0}),
     {"config.json", "num_local_experts", "18446744073709551615"}},
    {"ConfigOtherWidth", Field("hidden_size", 65536), {"[512, 128]", "[512, 65536]"}},
    {"ConfigOtherVocabulary", Field("vocab_size", 16777216), {"[512, 128]", "[16777216, 128]"}},
    {"ConfigOtherExperts", Field("num_local_experts", 4096), {"[16, 128]", "[4096, 128]"}},
    {"ConfigContradicts", Field("num_experts_per_tok", 17), {"config.json", "experts_per_t", "17"}},
    {"ConfigLayerTypes",
     Field("layer_types", Json::array({"full_attention"})),
     {"config.json", "layer_types", "1"}},
    {"ConfigRope",
     Field("rope_scaling", {{"rope_type", "linear"}, {"factor", 2}}),
     {"config.json", "rope_scaling", "linear"}},
    {"ConfigQuantization",
     Field("quantization_config", {{"quant_method", "gptq"}}),
     {"config.json", "quant_method", "gptq"}},
    {"GenerationConfig",
     Contents("generation_config.json", "{\"eos_token_id\": [1, 512]}"),
     {"generation_config.json", "eos_token_id[1]", "512"}},
};

// --- tokenizer.json ---

constexpr char kTokenizer[] = "tokenizer.json";

std::function<void(const ModelFolder&)> Tokenizer(const std::function<void(Json&)>& change) {
  return [=](const ModelFolder& folder) {
    Json tokenizer = folder.ReadJson(kTokenizer);
    change(tokenizer);
    folder.Write(kTokenizer, tokenizer.dump());
  };
}

Json Split(const std::string& regex) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", regex}}}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

const std::vector<Case> kTokenizers = {
    {"TokenizerEmpty", Contents(kTokenizer, ""), {kTokenizer, "parse error"}},
    {"TokenizerCutShort", Size(kTokenizer, 10'000), {kTokenizer, "parse error"}},
    {"TokenizerIsAList", Contents(kTokenizer, "[]"), {kTokenizer, "not a JSON object"}},
    {"TokenizerNested",
     Contents(kTokenizer, std::string(1'000'000, '[')),
     {kTokenizer, "parse error"}},
    {"TokenizerOfGarbage",
     Contents(kTokenizer, "{\"" + std::string(2'000'000, '\xE2')),
     {kTokenizer, "parse error"}},
    {"TokenizerType",
     Tokenizer([](Json& t) { t["model"]["type"] = "Unigram"; }),
     {kTokenizer, "model.type", "Unigram"}},
    {"TokenizerNormalizer",
     Tokenizer([](Json& t) {
       t["normalizer"] = {{"type", "NFC"}};
     }),
     {kTokenizer, "normalizer", "NFC"}},
    {"TokenizerRegex",
     Tokenizer([](Json& t) { t["pre_tokenizer"] = Split("a(b"); }),
     {kTokenizer, "pre_tokenizer.pretokenizers[0].pattern", "byte 3"}},
    {"TokenizerLongRegex",
     Tokenizer([](Json& t) { t["pre_tokenizer"] = Split(std::string(1'000'000, '(')); }),
     {kTokenizer, "pre_tokenizer.pretokenizers[0].pattern"}},
    {"TokenizerMerge",
     Tokenizer([](Json& t) { t["model"]["merges"][3] = "no such"; }),
     {kTokenizer, "model.merges[3]"}},
    {"TokenizerIdTooLarge",
     Tokenizer([](Json& t) { t["model"]["vocab"]["zzzz"] = 3'000'000; }),
     {kTokenizer, "model.vocab", "3000000", "2097151"}},
    {"TokenizerLargerThanTheModel",
     Tokenizer([](Json& t) { t["model"]["vocab"]["zzzz"] = 600; }),
     {kTokenizer, "600", "vocab_size 512"}},
    {"TokenizerHuge", Size(kTokenizer, uint64_t{1} << 36), {kTokenizer, "68719476736 bytes"}},
    {"TokenizerIsAFolder", Folder(kTokenizer), {kTokenizer}},
};

// --- heads ---

constexpr char kHead[] = "head_sequence";
constexpr char kHeadFile[] = "head_sequence/head.safetensors";
constexpr char kHeadConfig[] = "head_sequence/config.json";

const std::vector<Case> kHeads = {
    {"HeadOfAnotherWidth",
     [](const ModelFolder& folder) { folder.EditHeader(kHeadFile, "[3,128]", "[6,64]"); },
     {kHeadFile, "score.weight", "[6, 64]", "[3, 128]"},
     kHead},
    {"HeadWithOtherLabels",
     [](const ModelFolder& folder) {
       folder.SetField(kHeadConfig, "id2label", {{"0", "no"}, {"1", "yes"}});
       folder.SetField(kHeadConfig, "label2id", nullptr);
     },
     {kHeadFile, "score.weight", "[3, 128]", "[2, 128]"},
     kHead},
    {"HeadLabelsWithAGap",
     [](const ModelFolder& folder) {
       folder.SetField(kHeadConfig, "id2label", {{"0", "no"}, {"7", "yes"}});
     },
     {kHeadConfig, "id2label"},
     kHead},
    {"HeadCutShort", Size(kHeadFile, 500), {kHeadFile, "score.weight"}, kHead},
    {"HeadConfigIsNotJson", Contents(kHeadConfig, "{,}"), {kHeadConfig, "JSON"}, kHead},
    {"HeadWithoutFile",
     [](const ModelFolder& folder) { folder.Remove(kHeadFile); },
     {"head_sequence", "safetensors"},
     kHead},
    {"HeadWithoutFolder", [](const ModelFolder&) {}, {"no_such_head"}, "no_such_head"},
    {"HeadOfAnotherBackbone",
     [](const ModelFolder& folder) {
       folder.SetField(kHeadConfig, "backbone_fingerprint", "0123456789abcdef");
     },
     {"head_sequence", "0123456789abcdef"},
     kHead},
};

std::string NameOf(const testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Safetensors, BadFilesTest, testing::ValuesIn(kSafetensors), NameOf);
INSTANTIATE_TEST_SUITE_P(Index, BadFilesTest, testing::ValuesIn(kIndexes), NameOf);
INSTANTIATE_TEST_SUITE_P(Config, BadFilesTest, testing::ValuesIn(kConfigs), NameOf);
INSTANTIATE_TEST_SUITE_P(Tokenizer, BadFilesTest, testing::ValuesIn(kTokenizers), NameOf);
INSTANTIATE_TEST_SUITE_P(Head, BadFilesTest, testing::ValuesIn(kHeads), NameOf);

// The copy itself is good: what the cases see is what they broke.
TEST(ModelFolderTest, TheUnbrokenCopyIsAccepted) {
  const ModelFolder folder("good");
  const CommandResult plan = RunCommand(
      {BinaryPath("client/conclave"), "plan", "--model", folder.dir(), "--workers", "1"});
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_GT(plan.peak_bytes, 0);
}

}  // namespace
}  // namespace conclave::tests
