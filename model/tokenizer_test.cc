// Decoding, whole and token by token.

#include "model/tokenizer.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using ::testing::ElementsAre;

// In this file ids of single bytes are the bytes in the order of the ByteLevel alphabet.
class DetokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load("demo/tiny_gpt_oss/tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    byte_ids_.resize(256);
    for (int id = 0; id < tokenizer_->size(); ++id) {
      const std::string_view bytes = tokenizer_->TokenBytes(id);
      if (bytes.size() == 1) byte_ids_[static_cast<uint8_t>(bytes[0])] = id;
    }
  }

  // One token per byte.
  std::vector<int> Ids(std::string_view bytes) const {
    std::vector<int> ids;
    for (const char c : bytes) ids.push_back(byte_ids_[static_cast<uint8_t>(c)]);
    return ids;
  }

  // What each Append gives, then Finish. Each must be whole characters.
  std::vector<std::string> Parts(const std::vector<int>& ids) const {
    IncrementalDetokenizer detokenizer(*tokenizer_);
    std::vector<std::string> parts;
    for (const int id : ids) parts.push_back(detokenizer.Append(id));
    parts.push_back(detokenizer.Finish());
    for (const std::string& part : parts) {
      EXPECT_EQ(base::ValidUtf8Prefix(part), part.size());
    }
    return parts;
  }

  static std::string Join(const std::vector<std::string>& parts) {
    std::string text;
    for (const std::string& part : parts) text += part;
    return text;
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<int> byte_ids_;
};

TEST_F(DetokenizerTest, CharacterComesWithItsLastByte) {
  EXPECT_THAT(Parts(Ids("é€💖a")), ElementsAre("", "é", "", "", "€", "", "", "", "💖", "a", ""));
}

TEST_F(DetokenizerTest, UnfinishedCharacterIsOneReplacementAtTheEnd) {
  EXPECT_THAT(Parts(Ids("a\xF0\x9F\x92")), ElementsAre("a", "", "", "", "\uFFFD"));
  EXPECT_THAT(Parts({}), ElementsAre(""));
}

TEST_F(DetokenizerTest, BytesThatCannotBecomeACharacterAreGivenOutAtOnce) {
  EXPECT_THAT(Parts(Ids("\xFF")), ElementsAre("\uFFFD", ""));
  EXPECT_THAT(Parts(Ids("\xE2\x82"
                        "A")),
              ElementsAre("", "",
                          "\uFFFD"
                          "A",
                          ""));
  EXPECT_THAT(Parts(Ids("\xE2\xE2\x82\xAC")), ElementsAre("", "\uFFFD", "", "€", ""));
}

TEST_F(DetokenizerTest, FinishStartsAfresh) {
  IncrementalDetokenizer detokenizer(*tokenizer_);
  EXPECT_EQ(detokenizer.Append(Ids("\xE2")[0]), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.Append(Ids("z")[0]), "z");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST_F(DetokenizerTest, SpecialTokensDecodeToTheirNames) {
  EXPECT_EQ(tokenizer_->Decode(std::vector<int>{501, 502}), "<|start|><|end|>");
  EXPECT_THAT(Parts({501}), ElementsAre("<|start|>", ""));
}

TEST_F(DetokenizerTest, IdsWithoutAnEntryDecodeToNothing) {
  EXPECT_EQ(tokenizer_->Decode(std::vector<int>{-1, 1 << 30, 505}), "");
  EXPECT_THAT(Parts({-1, 1 << 30}), ElementsAre("", "", ""));
}

TEST_F(DetokenizerTest, AnySplitOfTextGivesTheText) {
  const std::string text = "naïve 💖 日本語 שלום \U0010FFFF e\u0301 plain, the other error";
  EXPECT_EQ(Join(Parts(Ids(text))), text);
  EXPECT_EQ(Join(Parts(tokenizer_->Encode(text))), text);
}

TEST_F(DetokenizerTest, PartsTogetherAreWhatDecodeGives) {
  std::mt19937_64 random(8);
  for (int i = 0; i < 20'000; ++i) {
    std::vector<int> ids(random() % 12);
    for (int& id : ids) {
      // Bytes of two- to four-byte characters are chosen often, so that some become characters.
      const uint64_t kind = random() % 4;
      id = kind == 0   ? static_cast<int>(random() % 505)
           : kind == 1 ? byte_ids_[0xC0 + random() % 0x38]
                       : byte_ids_[0x80 + random() % 0x40];
    }
    const std::string whole = tokenizer_->Decode(ids);
    ASSERT_EQ(base::ValidUtf8Prefix(whole), whole.size());
    ASSERT_EQ(Join(Parts(ids)), whole);
  }
}

}  // namespace
}  // namespace conclave::model
