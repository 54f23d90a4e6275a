#include "model/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <ctime>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/split_pattern_classes.h"

namespace conclave::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of this process, one thread: other work on the machine does not count.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::vector<std::string> Pieces(const Splitter& splitter, std::string_view text) {
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = splitter.PieceEnd(text, begin);
    if (end <= begin || end > text.size()) {
      ADD_FAILURE() << "piece [" << begin << ", " << end << ") of " << text.size() << " bytes";
      break;
    }
    pieces.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

std::unique_ptr<Splitter> Pcre2(std::string_view pattern) {
  auto splitter = MakePcre2Splitter(pattern);
  EXPECT_TRUE(splitter.ok()) << splitter.status();
  return *std::move(splitter);
}

std::string Utf8(uint32_t c) {
  std::string out;
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
  } else {
    if (c < 0x10000) {
      out.push_back(static_cast<char>(0xE0 | c >> 12));
    } else {
      out.push_back(static_cast<char>(0xF0 | c >> 18));
      out.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    }
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
  }
  out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  return out;
}

bool IsSurrogate(uint32_t c) { return c >= 0xD800 && c < 0xE000; }

// Whether this PCRE2 knows the Unicode version of our tables; others differ in new characters.
bool SameUnicodeVersion() {
  char version[64] = {};
  pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
  return std::string_view(version) == "14.0.0";
}

// Code points on which our table and this machine's PCRE2 agree.
const std::vector<uint32_t>& CommonCodePoints() {
  static const auto& common = *new std::vector<uint32_t>([] {
    const std::vector<std::pair<std::string, uint8_t>> sets = {
        {"[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", kClassUpper},
        {"[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", kClassLower},
        {"\\p{L}", kClassLetter},
        {"\\p{N}", kClassNumber},
        {"\\s", kClassSpace},
        {"[\\r\\n]", kClassNewline}};
    std::vector<uint8_t> theirs(0x110000, 0);
    for (const auto& [set, bit] : sets) {
      // With a "0" (a number) or "a" (a letter) before each character, it is a piece of its own if
      // it is in the set, and else is not.
      const auto splitter = Pcre2(set);
      for (uint32_t c = 0; c < 0x110000; ++c) {
        if (IsSurrogate(c)) continue;
        const bool letter_like = (bit & (kClassUpper | kClassLower | kClassLetter)) != 0;
        const std::string text = (letter_like ? "0" : "a") + Utf8(c);
        if (splitter->PieceEnd(text, 0) == 1) theirs[c] |= bit;
      }
    }
    std::vector<uint32_t> same;
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (!IsSurrogate(c) && theirs[c] == CharClasses::Get()[c]) same.push_back(c);
    }
    return same;
  }());
  return common;
}

TEST(SplitPatternTest, TableIsUnicodeAsPcre2KnowsIt) {
  const size_t scalars = 0x110000 - 0x800;
  if (SameUnicodeVersion()) {
    EXPECT_EQ(CommonCodePoints().size(), scalars);
  } else {
    EXPECT_GE(CommonCodePoints().size(), scalars - 20'000);
  }
}

TEST(SplitPatternTest, AlternativesInOrder) {
  const auto o200k = MakeO200kSplitter();
  EXPECT_THAT(Pieces(*o200k, "Hello, world!"), ElementsAre("Hello", ",", " world", "!"));
  EXPECT_THAT(Pieces(*o200k, "I'm DON'T we'LL"), ElementsAre("I'm", " DON'T", " we'LL"));
  EXPECT_THAT(Pieces(*o200k, "it'\xC5\xBF x'l"), ElementsAre("it'\xC5\xBF", " x", "'l"));
  EXPECT_THAT(Pieces(*o200k, "iPhone15Pro"), ElementsAre("i", "Phone", "15", "Pro"));
  EXPECT_THAT(Pieces(*o200k, "1234567"), ElementsAre("123", "456", "7"));
  EXPECT_THAT(Pieces(*o200k, "a  \n  b"), ElementsAre("a", "  \n", " ", " b"));
  EXPECT_THAT(Pieces(*o200k, "end   "), ElementsAre("end", "   "));
  EXPECT_THAT(Pieces(*o200k, "foo//\n//bar"), ElementsAre("foo", "//\n//", "bar"));
  EXPECT_THAT(Pieces(*o200k, "日本A"), ElementsAre("日本", "A"));
  EXPECT_THAT(Pieces(*o200k, "Ab日C"), ElementsAre("Ab日", "C"));
}

// Characters that matter to the pattern, each chosen often, and any code point now and then.
std::string RandomText(std::mt19937_64& random) {
  static const std::vector<std::string> special = {"a",
                                                   "b",
                                                   "z",
                                                   "A",
                                                   "Z",
                                                   "é",
                                                   "É",
                                                   "ǅ",
                                                   "ʰ",
                                                   "日",
                                                   "ア",
                                                   "\xCC\x81",
                                                   "\xE0\xA4\xBE",
                                                   "'s",
                                                   "'S",
                                                   "'",
                                                   "'t",
                                                   "'re",
                                                   "'VE",
                                                   "'m",
                                                   "'ll",
                                                   "'lL",
                                                   "'D",
                                                   "'\xC5\xBF",
                                                   "r",
                                                   "l",
                                                   "1",
                                                   "23",
                                                   "½",
                                                   "Ⅷ",
                                                   "٣",
                                                   " ",
                                                   "  ",
                                                   "\t",
                                                   "\n",
                                                   "\r",
                                                   "\r\n",
                                                   "\xC2\xA0",
                                                   "\xE3\x80\x80",
                                                   "\xE2\x80\xA8",
                                                   "\xE1\xA0\x8E",
                                                   "\xE2\x80\x8B",
                                                   "/",
                                                   "!",
                                                   "-",
                                                   "_",
                                                   "💖",
                                                   "\xC2\x85",
                                                   "\v",
                                                   "K",
                                                   "\xE2\x84\xAA",
                                                   std::string(1, '\0')};
  const std::vector<uint32_t>& common = CommonCodePoints();
  std::string text;
  const int length = static_cast<int>(random() % 14) + 1;
  for (int i = 0; i < length; ++i) {
    const uint64_t kind = random() % 16;
    if (kind == 0) {
      text += Utf8(common[random() % common.size()]);
    } else if (kind == 1) {
      text += Utf8(common[random() % 0x3000]);
    } else {
      text += special[random() % special.size()];
    }
  }
  return text;
}

TEST(SplitPatternTest, HandWrittenMatcherAgreesWithTheRegularExpression) {
  const auto o200k = MakeO200kSplitter();
  const auto regex = Pcre2(kO200kPattern);
  std::mt19937_64 random(20250805);
  for (int i = 0; i < 400'000; ++i) {
    const std::string text = RandomText(random);
    ASSERT_EQ(Pieces(*o200k, text), Pieces(*regex, text))
        << "text: " << text << " (case " << i << ")";
  }
}

TEST(SplitPatternTest, OtherPatternsGoThroughPcre2) {
  const auto byte_level = MakeSplitter(kByteLevelPattern);
  ASSERT_TRUE(byte_level.ok()) << byte_level.status();
  EXPECT_THAT(Pieces(**byte_level, "I'm  12345 naïve!?"),
              ElementsAre("I", "'m", " ", " 12345", " naïve", "!?"));
  // Text between matches is a piece; an empty match only splits.
  EXPECT_THAT(Pieces(*Pcre2("[0-9]+"), "ab12cd3"), ElementsAre("ab", "12", "cd", "3"));
  EXPECT_THAT(Pieces(*Pcre2("(?=[A-Z])"), "oneTwoThree"), ElementsAre("one", "Two", "Three"));
  EXPECT_THAT(Pieces(*Pcre2("\\s+"), "a\xE1\xA0\x8E\xE2\x80\x83z"),
              ElementsAre("a\xE1\xA0\x8E", "\xE2\x80\x83", "z"));
  EXPECT_THAT(Pieces(*Pcre2("[^\\S]+"), "a \tb"), ElementsAre("a", " \t", "b"));
}

TEST(SplitPatternTest, LiteralIsNoRegularExpression) {
  const auto literal = MakeLiteralSplitter(".*");
  ASSERT_TRUE(literal.ok()) << literal.status();
  EXPECT_THAT(Pieces(**literal, "a.*b.c"), ElementsAre("a", ".*", "b.c"));
}

TEST(SplitPatternTest, BadPatternIsRefusedWithItsPlace) {
  const auto status = [](std::string_view pattern) {
    return std::string(MakeSplitter(pattern).status().message());
  };
  EXPECT_THAT(status("ab(c"), HasSubstr("byte 4"));
  EXPECT_THAT(status("\\w+"), HasSubstr("\\w at byte 0"));
  EXPECT_THAT(status("a\\b"), HasSubstr("\\b at byte 1"));
  EXPECT_THAT(status("\\C"), HasSubstr("\\C"));
  EXPECT_THAT(status("\\h"), HasSubstr("\\h at byte 0"));
  EXPECT_THAT(status("[a-z&&[^x]]"), HasSubstr("&& at byte 4"));
  EXPECT_THAT(status(""), HasSubstr("empty"));
  EXPECT_EQ(MakeSplitter("a\\\\w").status(), absl::OkStatus());  // an escaped backslash, then w
}

TEST(SplitPatternTest, CatastrophicPatternEndsInTime) {
  const auto evil = Pcre2("(a*)*b|(?:a|aa)+c");
  const std::string text(100'000, 'a');
  const double start = CpuSeconds();
  EXPECT_THAT(Pieces(*evil, text), ElementsAre(text));
  EXPECT_LT(CpuSeconds() - start, 10.0 * base::TimeScale());
}

TEST(SplitPatternTest, LongRunsTakeLinearTime) {
  const auto o200k = MakeO200kSplitter();
  const auto regex = Pcre2(kO200kPattern);
  const double start = CpuSeconds();
  for (const std::string unit :
       {"a", "A", "日", "\xCC\x81", " ", "\n", " \n", "!", "!\xCC\x81", "A\xCC\x81", "1", "aB"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    EXPECT_EQ(Pieces(*o200k, text), Pieces(*regex, text)) << unit;
  }
  EXPECT_LT(CpuSeconds() - start, 10.0 * base::TimeScale());
}

}  // namespace
}  // namespace conclave::model
