// tokenizer.json, on small files made here.

#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_byte_level.h"
#include "model/tokenizer_json.h"
#include "nlohmann/json.hpp"

namespace conclave::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTiny[] = "demo/tiny_gpt_oss/tokenizer.json";

// How tokenizer.json spells a byte.
std::string Spell(int byte) {
  for (int c = 33; c < 0x144; ++c) {
    std::string spelled;
    if (c < 0x80) {
      spelled = std::string(1, static_cast<char>(c));
    } else {
      spelled = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    }
    std::string bytes;
    if (FromByteLevel(spelled, bytes) && static_cast<uint8_t>(bytes[0]) == byte) return spelled;
  }
  ADD_FAILURE() << "byte " << byte << " has no spelling";
  return "";
}

// Single bytes (id = byte), bc = 256, ab = 257, abc = 258, "Ġa" = 259; bc merges before ab.
json BaseFile() {
  json vocab = {{"bc", 256}, {"ab", 257}, {"abc", 258}, {"Ġa", 259}};
  for (int byte = 0; byte < 256; ++byte) vocab[Spell(byte)] = byte;
  return {
      {"version", "1.0"},
      {"truncation", {{"max_length", 5}}},
      {"normalizer", nullptr},
      {"added_tokens", {{{"id", 260}, {"content", "<|x|>"}, {"special", true}, {"lstrip", false}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", {"b c", "a b", "Ġ a"}}}}};
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Make(std::string_view text) {
  auto spec = ParseTokenizerJson(text);
  if (!spec.ok()) return spec.status();
  return MakeTokenizer(*std::move(spec));
}

std::shared_ptr<const Tokenizer> MustMake(const json& file) {
  auto tokenizer = Make(file.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::string ErrorOf(std::string_view text) {
  const auto tokenizer = Make(text);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(TokenizerJsonTest, MergesAreHonouredInTheirOrder) {
  json file = BaseFile();
  EXPECT_THAT(MustMake(file)->Encode("abc"), ElementsAre('a', 256));
  file["model"]["merges"] = {"a b", "b c"};
  EXPECT_THAT(MustMake(file)->Encode("abc"), ElementsAre(257, 'c'));
  file["model"]["merges"] = {"a b", "b c", "ab c"};
  EXPECT_THAT(MustMake(file)->Encode("abc"), ElementsAre(258));
}

TEST(TokenizerJsonTest, IgnoreMergesTakesWholeEntries) {
  json file = BaseFile();
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(MustMake(file)->Encode("abc"), ElementsAre(258));
  EXPECT_THAT(MustMake(file)->Encode("abcbc"), ElementsAre('a', 256, 256));  // by the merges
}

TEST(TokenizerJsonTest, BothSpellingsAndAnyOrderOfMembers) {
  json file = BaseFile();
  const auto spaced = MustMake(file);
  file["model"]["merges"] = json::array({{"b", "c"}, {"a", "b"}, {"Ġ", "a"}});
  const auto pairs = MustMake(file);
  // nlohmann sorts keys, which puts merges before vocab; the reverse by hand.
  std::string reversed = file.dump();
  const std::string merges = ",\"merges\":" + file["model"]["merges"].dump();
  const size_t at = file["model"].dump().find("\"merges\"");
  ASSERT_NE(at, std::string::npos);
  ASSERT_LT(at, file["model"].dump().find("\"vocab\""));
  reversed.erase(reversed.find(merges), merges.size());
  const size_t end = reversed.find("},\"normalizer\"");
  ASSERT_NE(end, std::string::npos);
  reversed.insert(end, merges);
  ASSERT_EQ(json::parse(reversed), file);
  const auto vocab_first = Make(reversed);
  ASSERT_TRUE(vocab_first.ok()) << vocab_first.status();
  for (const std::string text : {"abc abcab", "b c", "a\nab"}) {
    EXPECT_EQ(pairs->Encode(text), spaced->Encode(text));
    EXPECT_EQ((*vocab_first)->Encode(text), spaced->Encode(text));
  }
}

TEST(TokenizerJsonTest, EveryByteDecodesToItself) {
  const auto tokenizer = MustMake(BaseFile());
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer->TokenBytes(byte), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(tokenizer->TokenBytes(259), " a");
}

TEST(TokenizerJsonTest, SpecialTokensOnlyWhenAskedForOthersAlways) {
  json file = BaseFile();
  file["added_tokens"] = json::array({{{"id", 260}, {"content", "<|x|>"}, {"special", true}},
                                      {{"id", 261}, {"content", "<|x|>y"}, {"special", true}},
                                      {{"id", 262}, {"content", "ab"}, {"special", false}}});
  file["model"]["vocab"].erase("ab");
  file["model"]["merges"] = {"b c"};
  const auto tokenizer = MustMake(file);
  EXPECT_THAT(tokenizer->Encode("<|x|>"), ElementsAre('<', '|', 'x', '|', '>'));
  EXPECT_THAT(tokenizer->EncodeWithSpecials("c<|x|>yab<|x|>"), ElementsAre('c', 261, 262, 260));
  EXPECT_THAT(tokenizer->Encode("zabc"), ElementsAre('z', 262, 'c'));
  EXPECT_EQ(tokenizer->SpecialId("<|x|>y"), 261);
  EXPECT_EQ(tokenizer->SpecialId("ab"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(260));
  EXPECT_FALSE(tokenizer->IsSpecial(262));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
  EXPECT_EQ(tokenizer->size(), 263);
}

// GPT-2's file has its special token in the vocabulary too.
TEST(TokenizerJsonTest, SpecialTokenInTheVocabularyIsNotMadeFromText) {
  json file = BaseFile();
  file["added_tokens"] = json::array({{{"id", 258}, {"content", "abc"}, {"special", true}}});
  file["model"]["ignore_merges"] = true;
  const auto tokenizer = MustMake(file);
  EXPECT_THAT(tokenizer->Encode("abc"), ElementsAre('a', 256));
  EXPECT_THAT(tokenizer->EncodeWithSpecials("abc"), ElementsAre(258));
}

TEST(TokenizerJsonTest, SplitsFollowEachOther) {
  json file = BaseFile();
  const auto split = [](const json& pattern) {
    return json{{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}};
  };
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       json::array({split({{"Regex", "[0-9]"}}),
                    split({{"String", "a"}}),
                    {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}})}};
  EXPECT_THAT(MustMake(file)->Encode("abc1bc"), ElementsAre('a', 256, '1', 256));
}

TEST(TokenizerJsonTest, UnsupportedIsRefusedByName) {
  struct Case {
    std::function<void(json&)> change;
    std::string message;
  };
  const std::vector<Case> cases = {
      {[](json& f) {
         f["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer of type \"NFC\""},
      {[](json& f) { f["model"]["type"] = "Unigram"; }, "model.type \"Unigram\""},
      {[](json& f) { f["model"]["dropout"] = 0.1; }, "model.dropout"},
      {[](json& f) { f["model"]["byte_fallback"] = true; }, "model.byte_fallback"},
      {[](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, "model.end_of_word_suffix"},
      {[](json& f) { f["model"]["continuing_subword_prefix"] = "##"; },
       "continuing_subword_prefix"},
      {[](json& f) { f["model"]["ignore_merges"] = 1; }, "model.ignore_merges"},
      {[](json& f) { f["model"].erase("vocab"); }, "model.vocab is missing"},
      {[](json& f) { f["model"].erase("merges"); }, "model.merges is missing"},
      {[](json& f) { f.erase("model"); }, "model is missing"},
      {[](json& f) { f["model"]["vocab"] = json::array({1}); }, "model.vocab"},
      {[](json& f) { f["model"]["vocab"]["q q"] = 300; }, "\"q q\" is not in the ByteLevel"},
      {[](json& f) { f["model"]["vocab"]["zz"] = -5; }, "-5"},
      {[](json& f) { f["model"]["vocab"]["zz"] = 1e30; }, "the id of \"zz\""},
      {[](json& f) { f["model"]["vocab"]["zz"] = UINT64_MAX; }, "is not within 0..2097151"},
      {[](json& f) { f["model"]["vocab"]["zz"] = "1"; }, "the id of \"zz\""},
      {[](json& f) { f["model"]["vocab"]["zz"] = 3; }, "token id 3 is used twice"},
      {[](json& f) { f["model"]["vocab"].erase("z"); }, "no token for byte 0x7A"},
      {[](json& f) { f["model"]["merges"][1] = "a q r"; }, "model.merges[1]: \"a q r\""},
      {[](json& f) { f["model"]["merges"][1] = "ab"; }, "model.merges[1]: \"ab\""},
      {[](json& f) { f["model"]["merges"][2] = "z z"; }, "model.merges[2]: \"z\", \"z\""},
      {[](json& f) { f["model"]["merges"][1] = json::array({"a"}); }, "model.merges[1]"},
      {[](json& f) {
         f["model"]["merges"][1] = json::array({"a", "b", "c"});
       },
       "model.merges[1]"},
      {[](json& f) {
         f["model"]["merges"][1] = json::array({1, 2});
       },
       "model.merges[1]"},
      {[](json& f) { f["model"]["merges"][1] = 7; }, "model.merges[1]"},
      {[](json& f) { f["model"]["merges"][1] = json::object(); }, "model.merges[1]"},
      {[](json& f) { f["pre_tokenizer"] = nullptr; }, "pre_tokenizer"},
      {[](json& f) { f["pre_tokenizer"]["add_prefix_space"] = true; }, "add_prefix_space"},
      {[](json& f) {
         f["pre_tokenizer"] = {{"type", "Whitespace"}};
       },
       "\"Whitespace\""},
      {[](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", 3}};
       },
       "pretokenizers is not an array"},
      {[](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", json::array()}};
       },
       "pretokenizers is empty"},
      {[](json& f) {
         f["pre_tokenizer"] = {
             {"type", "Sequence"},
             {"pretokenizers", {{{"type", "Split"}, {"behavior", "Removed"}}, {{"type", "x"}}}}};
       },
       "pretokenizers[0].behavior \"Removed\""},
      {[](json& f) {
         f["pre_tokenizer"] = {
             {"type", "Sequence"},
             {"pretokenizers",
              {{{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", "a(b"}}}},
               {{"type", "ByteLevel"}}}}};
       },
       "pretokenizers[0].pattern: split pattern, byte 3"},
      {[](json& f) {
         f["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       "post_processor of type \"TemplateProcessing\""},
      {[](json& f) {
         f["decoder"] = {{"type", "Metaspace"}};
       },
       "decoder of type \"Metaspace\""},
      {[](json& f) { f["added_tokens"][0]["lstrip"] = true; }, "added_tokens[0].lstrip"},
      {[](json& f) { f["added_tokens"][0]["id"] = -1; }, "added_tokens[0].id"},
      {[](json& f) { f["added_tokens"][0]["content"] = ""; }, "added_tokens[0].content"},
      {[](json& f) { f["added_tokens"][0]["id"] = 7; }, "\"<|x|>\" has id 7"},
      {[](json& f) { f["added_tokens"] = "x"; }, "added_tokens is not an array"},
  };
  for (const Case& c : cases) {
    json file = BaseFile();
    c.change(file);
    EXPECT_THAT(ErrorOf(file.dump()), HasSubstr(c.message));
  }
  json two_ids = BaseFile();
  two_ids["added_tokens"].push_back({{"id", 261}, {"content", "<|x|>"}});
  EXPECT_THAT(ErrorOf(two_ids.dump()), HasSubstr("two ids, 260 and 261"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("parse error"));
  EXPECT_THAT(ErrorOf("{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1}, "
                      "\"vocab\": {\"a\": 1}}}"),
              HasSubstr("model.vocab is given twice"));
}

TEST(TokenizerJsonTest, LoadNamesTheFile) {
  const auto missing = Tokenizer::Load("no/such/tokenizer.json");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("no/such/tokenizer.json"));
  const auto other = Tokenizer::Load("demo/tiny_gpt_oss/config.json");
  EXPECT_THAT(std::string(other.status().message()),
              HasSubstr("demo/tiny_gpt_oss/config.json: model is missing"));
  EXPECT_THAT(std::string(Tokenizer::Load("vocab.txt").status().message()),
              HasSubstr("vocab.txt: expected a .json or .tiktoken file"));
}

TEST(TokenizerJsonTest, ShippedCheckpointLoadsFromItsFolder) {
  const auto tokenizer = Tokenizer::Load("demo/tiny_gpt_oss");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->size(), 505);
  EXPECT_EQ((*tokenizer)->SpecialId("<|start|>"), 501);
  // Made with Hugging Face's tokenizers.
  EXPECT_THAT(
      (*tokenizer)->Encode("The other error, don't 1234"),
      ElementsAre(51, 71, 68, 412, 220, 258, 81, 260, 11, 303, 261, 6, 83, 220, 16, 17, 18, 19));
  EXPECT_EQ((*tokenizer)->TokenBytes(259), " th");
}

TEST(TokenizerJsonTest, DamagedFileIsAnErrorOrStillATokenizer) {
  const std::string whole = ReadAll(kTiny);
  ASSERT_FALSE(whole.empty());
  for (size_t length = 0; length < whole.size() - 1; length += 97) {
    EXPECT_FALSE(Make(std::string_view(whole).substr(0, length)).ok()) << length;
  }
  std::mt19937_64 random(4);
  int loaded = 0;
  for (int i = 0; i < 2'000; ++i) {
    std::string damaged = whole;
    for (int j = i % 3; j >= 0; --j) {
      damaged[random() % damaged.size()] = static_cast<char>(' ' + random() % 95);
    }
    const auto tokenizer = Make(damaged);
    if (!tokenizer.ok()) continue;
    ++loaded;
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode("any text, 123")), "any text, 123");
  }
  EXPECT_GT(loaded, 0);
}

}  // namespace
}  // namespace conclave::model
