// The released vocabularies, in both file formats.

#include <cstdint>
#include <ctime>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "model/tokenizer_tiktoken.h"
#include "nlohmann/json.hpp"

namespace conclave::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of this process, one thread: other work on the machine does not count.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

constexpr char kTiktoken[] = "tests/data/o200k_base.tiktoken";
constexpr char kJson[] = "tests/data/gpt_oss_tokenizer.json";

std::shared_ptr<const Tokenizer> MustLoad(const std::string& path) {
  auto tokenizer = Tokenizer::Load(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

const Tokenizer& FromTiktoken() {
  static const auto& tokenizer = *new std::shared_ptr<const Tokenizer>(MustLoad(kTiktoken));
  return *tokenizer;
}

const Tokenizer& FromJson() {
  static const auto& tokenizer = *new std::shared_ptr<const Tokenizer>(MustLoad(kJson));
  return *tokenizer;
}

// Every promise about o200k holds for both files.
class O200kTest : public ::testing::TestWithParam<const Tokenizer& (*)()> {
 protected:
  const Tokenizer& tokenizer_ = GetParam()();
};
INSTANTIATE_TEST_SUITE_P(Files, O200kTest, ::testing::Values(&FromTiktoken, &FromJson),
                         [](const auto& file) { return file.index == 0 ? "Tiktoken" : "Json"; });

// One line of the file, the text "\uFEFFBOM", is wrong: it leaves EF BB and BF apart although EF BB
// BF is token 5574. tiktoken, openai-harmony and Hugging Face's tokenizers all give what stands
// here.
const std::vector<int> kFileSaysForByteOrderMark = {5416, 123, 33, 2760};
const std::vector<int> kByteOrderMark = {5574, 33, 2760};

TEST_P(O200kTest, CasesEncodeExactlyAndDecodeBack) {
  std::ifstream file("tests/data/o200k_harmony_cases.jsonl");
  int cases = 0;
  int corrected = 0;
  for (std::string line; std::getline(file, line); ++cases) {
    const auto parsed = nlohmann::json::parse(line);
    const auto text = parsed["text"].get<std::string>();
    auto ids = parsed["ids"].get<std::vector<int>>();
    EXPECT_EQ(tokenizer_.Decode(ids), text);
    if (text == "\uFEFFBOM") {
      ASSERT_EQ(ids, kFileSaysForByteOrderMark);
      ids = kByteOrderMark;
      ++corrected;
    }
    EXPECT_EQ(tokenizer_.Encode(text), ids) << text;
    EXPECT_EQ(tokenizer_.Decode(ids), text);
  }
  EXPECT_EQ(cases, 427);
  EXPECT_EQ(corrected, 1);
}

TEST_P(O200kTest, Vectors) {
  const std::vector<std::pair<std::string, std::vector<int>>> vectors = {
      {"hello world", {24912, 2375}},
      {"Hello, world!", {13225, 11, 2375, 0}},
      {"assistant", {173781}},
      {"user", {1428}},
      {"system", {17360}},
      {"developer", {77944}},
      {"tool", {17952}},
      {"analysis", {35644}},
      {"commentary", {12606, 815}},
      {"final", {17196}},
      {" to=functions.get_weather", {316, 28, 44580, 775, 170154}},
      {"json", {4108}},
      {" json", {5701}},
      {" code", {3490}},
      {" ", {220}},
      {"\n", {198}},
      {"\n\n", {279}},
      {"  ", {256}},
      {"   a", {256, 261}},
      {"a  b", {64, 220, 287}},
      {"123456789", {7633, 19354, 29338}},
      {"I'm DON'T we'LL", {15390, 153384, 581, 6, 7454}},
      {"日本A", {9048, 32}},
      {"日本Ab", {9048, 4292}},
      {"Ab日C", {4292, 2292, 34}},
      {"iPhone15Pro", {72, 7081, 1055, 958}},
      {"x²y", {87, 13848, 88}},
      {"①②③④", {57019, 61061, 78764, 112794}},
      {"💖", {31446, 244}},
      {"a\r\nb", {64, 370, 65}},
      {"!!!\r\n\r\n", {10880, 1414}},
      {"a  \n  b", {64, 4066, 220, 287}},
      {"end   ", {419, 271}},
      {"#!/bin/sh\n\n# x", {20670, 11893, 41094, 279, 2, 1215}},
      {"foo//\n//bar", {16660, 5754, 2990}},
      {"don’t", {22130, 1573}},
      {"{\"location\": \"Tokyo\"}", {10848, 7693, 1243, 392, 173844, 18583}},
      {"naïve", {1503, 9954, 737}},
      {"שלום", {106154}},
      {"नमस्ते", {998, 1637, 14681, 628}},
      {std::string(40, 'a'), {117525, 117525, 117525, 117525, 117525}},
      {"<|start|>", {27, 91, 5236, 91, 29}},
      {"", {}},
  };
  for (const auto& [text, ids] : vectors) {
    EXPECT_EQ(tokenizer_.Encode(text), ids) << text;
    EXPECT_EQ(tokenizer_.Decode(ids), text);
  }
}

TEST_P(O200kTest, PromptWithSpecials) {
  const std::string text =
      "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
      "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n"
      "# Valid channels: analysis, commentary, final. Channel must be included for every "
      "message.<|end|><|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant";
  const std::vector<int> ids = {
      200006, 17360, 200008, 3575, 553,   17554,  162016, 11,     261,    4410, 6439,
      2359,   22203, 656,    7788, 17527, 558,    87447,  100594, 25,     220,  1323,
      19,     12,    3218,   279,  30377, 289,    25,     14093,  279,    2,    13888,
      18403,  25,    8450,   11,   49159, 11,     1721,   13,     21030,  2804, 413,
      7360,   395,   1753,   3176, 13,    200007, 200006, 1428,   200008, 4827, 382,
      220,    17,    659,    220,  17,    30,     200007, 200006, 173781};
  EXPECT_EQ(tokenizer_.EncodeWithSpecials(text), ids);
  EXPECT_EQ(tokenizer_.Decode(ids), text);
  for (const int id : tokenizer_.Encode(text)) ASSERT_FALSE(tokenizer_.IsSpecial(id));
}

TEST_P(O200kTest, SpecialTokensByNameAndId) {
  const std::vector<std::pair<std::string, int>> names = {
      {"<|startoftext|>", 199998},     {"<|endoftext|>", 199999},
      {"<|reserved_200000|>", 200000}, {"<|return|>", 200002},
      {"<|constrain|>", 200003},       {"<|channel|>", 200005},
      {"<|start|>", 200006},           {"<|end|>", 200007},
      {"<|message|>", 200008},         {"<|call|>", 200012},
      {"<|reserved_200017|>", 200017}, {"<|endofprompt|>", 200018},
  };
  for (const auto& [name, id] : names) {
    EXPECT_EQ(tokenizer_.SpecialId(name), id);
    EXPECT_EQ(tokenizer_.TokenBytes(id), name);
    EXPECT_TRUE(tokenizer_.IsSpecial(id));
    EXPECT_THAT(tokenizer_.EncodeWithSpecials("x" + name), ElementsAre(87, id));
  }
  EXPECT_EQ(tokenizer_.SpecialId("hello"), std::nullopt);
  EXPECT_FALSE(tokenizer_.IsSpecial(199997));
  // The rows of padding decode to reserved names.
  EXPECT_EQ(tokenizer_.TokenBytes(201087), "<|reserved_201087|>");
  EXPECT_TRUE(tokenizer_.IsSpecial(200500));
  EXPECT_EQ(tokenizer_.size(), 201088);
  EXPECT_EQ(tokenizer_.TokenBytes(201088), "");
  EXPECT_EQ(tokenizer_.TokenBytes(-1), "");
}

TEST_P(O200kTest, MegabyteOfOneCharacterTakesLessThanASecond) {
  // Sanitizers slow this down more than the scale says; a tenth still tells n log n from n * n.
  const size_t size = base::TimeScale() > 1.0 ? 100'000 : 1'000'000;
  for (const std::string unit : {"a", "=", " ", "\n", "日", "_a", "\xCC\x81"}) {
    std::string text;
    while (text.size() < size) text += unit;
    const double start = CpuSeconds();
    const std::vector<int> ids = tokenizer_.Encode(text);
    EXPECT_LT(CpuSeconds() - start, 1.0 * base::TimeScale()) << unit;
    EXPECT_EQ(tokenizer_.Decode(ids), text);
  }
}

TEST_P(O200kTest, RandomBytesEncodeAndTheirTokensHaveTheSameBytes) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 20'000; ++i) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random() % 2 == 0 ? random() : 'a' + random() % 26);
    std::string bytes;
    for (const int id : tokenizer_.EncodeWithSpecials(text)) bytes += tokenizer_.TokenBytes(id);
    ASSERT_EQ(bytes, text);
  }
}

TEST(O200kFilesTest, BothFilesGiveTheSameTokens) {
  std::mt19937_64 random(6);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    // Neighbouring tokens of random ids: every part of the vocabulary, and its merges.
    for (int j = 0; j < 8; ++j) text += FromJson().TokenBytes(static_cast<int>(random() % 199'998));
    ASSERT_EQ(FromTiktoken().Encode(text), FromJson().Encode(text)) << text;
  }
}

// OpenAI's own list gives 200018 two names, and all of the padding encodes.
TEST(O200kFilesTest, TiktokenKnowsAllReservedNames) {
  EXPECT_EQ(FromTiktoken().SpecialId("<|reserved_200018|>"), 200018);
  EXPECT_THAT(FromTiktoken().EncodeWithSpecials("<|reserved_201087|>"), ElementsAre(201087));
}

TEST(O200kFilesTest, ReleasedJsonListsOnlyItsOwn) {
  EXPECT_EQ(FromJson().EncodeWithSpecials("<|reserved_201087|>"),
            FromJson().Encode("<|reserved_201087|>"));
}

// 0.45 s on a slow core of its own; the promise is a second, and caches are shared.
TEST(O200kFilesTest, ReleasedJsonLoadsQuickly) {
  const double start = CpuSeconds();
  ASSERT_TRUE(Tokenizer::Load(kJson).ok());
  EXPECT_LT(CpuSeconds() - start, 3.0 * base::TimeScale());
}

TEST(O200kFilesTest, BadTiktokenIsRefusedWithItsLine) {
  const auto error = [](std::string_view text) {
    const auto spec = ParseO200kTiktoken(text);
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(spec.status().message());
  };
  EXPECT_THAT(error("IQ== 0\nIg=="), HasSubstr("line 2: expected"));
  EXPECT_THAT(error("IQ== 0\r\n\n???? 1"), HasSubstr("line 3: the token is not base64"));
  EXPECT_THAT(error("IQ== x"), HasSubstr("line 1: \"x\" is not a rank"));
  EXPECT_THAT(error("IQ== 99999999999"), HasSubstr("is not a rank"));
  EXPECT_THAT(error("IQ== -1"), HasSubstr("-1"));
  EXPECT_THAT(error("IQ== 0\nIQ== 1"), HasSubstr("line 2: tokens 0 and 1"));
  EXPECT_THAT(error("IQ== 0\nIg== 1"), HasSubstr("rank 2 is missing"));
  EXPECT_THAT(error(""), HasSubstr("rank 0 is missing"));
}

}  // namespace
}  // namespace conclave::model
