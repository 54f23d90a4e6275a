#include "coordinator/stop_strings.h"

#include <algorithm>
#include <random>

#include "coordinator/list_tokenizer_testing.h"
#include "coordinator/shown_text.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

struct Shown {
  std::string text;
  int tokens = 0;  // until it ended
  int string = -1;
};

// What a client sees of `pieces`, one token each; the first `min_tokens` end nothing.
Shown Generate(const std::vector<std::string>& pieces, const std::vector<std::string>& strings,
               int min_tokens = 0) {
  const auto tokenizer = std::make_shared<const ListTokenizer>(pieces);
  StopMatcher matcher(std::make_shared<const StopStrings>(tokenizer, strings));
  ShownText shown(*tokenizer);
  Shown out;
  while (out.tokens < tokenizer->size() && out.string < 0) {
    TokenEvent event;
    event.token = out.tokens++;
    const StopMatch match = matcher.Append(event.token, out.tokens <= min_tokens);
    event.held_bytes = match.held_bytes;
    event.stop_string = match.string >= 0;
    out.string = match.string;
    out.text += shown.Append(event);
  }
  out.text += shown.Finish();
  return out;
}

// The same by search in the whole text.
Shown Expected(const std::vector<std::string>& pieces, const std::vector<std::string>& strings,
               int min_tokens) {
  std::string text;
  for (size_t token = 0; token < pieces.size(); ++token) {
    for (const char byte : pieces[token]) {
      text += byte;
      if (static_cast<int>(token) < min_tokens) continue;
      int best = -1;
      for (size_t i = 0; i < strings.size(); ++i) {
        if (!text.ends_with(strings[i])) continue;
        if (best < 0 || strings[i].size() > strings[best].size()) best = static_cast<int>(i);
      }
      if (best < 0) continue;
      text.resize(text.size() - strings[best].size());
      return {text, static_cast<int>(token) + 1, best};
    }
  }
  return {text, static_cast<int>(pieces.size()), -1};
}

TEST(StopStringsTest, EveryCutOfATextIntoTokensStopsAtTheSamePlace) {
  const std::string text = "one\nUser: two";
  const std::string stop = "\nUser:";
  const int cuts = static_cast<int>(text.size()) - 1;
  for (int mask = 0; mask < 1 << cuts; ++mask) {
    std::vector<std::string> pieces(1);
    for (size_t i = 0; i < text.size(); ++i) {
      if (i > 0 && (mask >> (i - 1) & 1) != 0) pieces.emplace_back();
      pieces.back() += text[i];
    }
    const Shown shown = Generate(pieces, {stop});
    ASSERT_EQ(shown.text, "one") << mask;
    ASSERT_EQ(shown.string, 0);
    // It ends with the token that holds the colon.
    size_t before = 0;
    for (int i = 0; i < shown.tokens - 1; ++i) before += pieces[i].size();
    ASSERT_LE(before, text.find(':'));
    ASSERT_GT(before + pieces[shown.tokens - 1].size(), text.find(':'));
  }
}

TEST(StopStringsTest, RandomTextsStopAsBySearch) {
  std::mt19937 random(7);
  const auto make = [&](int longest) {
    std::string out(1 + random() % longest, 'a');
    for (char& byte : out) byte = static_cast<char>('a' + random() % 2);
    return out;
  };
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> pieces(random() % 12);
    for (std::string& piece : pieces) piece = random() % 8 == 0 ? "" : make(4);
    std::vector<std::string> strings(1 + random() % 3);
    for (std::string& string : strings) string = make(7);
    const int min_tokens = random() % 2 == 0 ? 0 : static_cast<int>(random() % 6);
    const Shown shown = Generate(pieces, strings, min_tokens);
    const Shown expected = Expected(pieces, strings, min_tokens);
    ASSERT_EQ(shown.text, expected.text) << round;
    ASSERT_EQ(shown.tokens, expected.tokens) << round;
    ASSERT_EQ(shown.string, expected.string) << round;
    stopped += shown.string >= 0 ? 1 : 0;
  }
  EXPECT_GT(stopped, 5000);
  EXPECT_LT(stopped, 19000);
}

// Text is shown as soon as no stop string can begin in it, and not before.
TEST(StopStringsTest, HoldsJustTheLongestBeginning) {
  const auto tokenizer =
      std::make_shared<const ListTokenizer>(std::vector<std::string>{"xab", "a", "c", "b", "ab"});
  const auto strings =
      std::make_shared<const StopStrings>(tokenizer, std::vector<std::string>{"abac", "bb"});
  StopMatcher matcher(strings);
  EXPECT_EQ(matcher.Append(0).held_bytes, 2);  // x|ab
  EXPECT_EQ(matcher.Append(1).held_bytes, 3);  // x|aba
  EXPECT_EQ(matcher.Append(4).held_bytes, 2);  // xaba|ab
  const StopMatch match = matcher.Append(3);   // xabaab|b
  EXPECT_EQ(match.string, 1);
  EXPECT_EQ(match.held_bytes, 2);
}

TEST(StopStringsTest, AStringThatCameTooEarlyIsText) {
  EXPECT_EQ(Generate({"ab", "x", "ab", "y"}, {"ab"}, 1).text, "abx");
  EXPECT_EQ(Generate({"ab", "x", "ab", "y"}, {"ab"}, 4).text, "abxaby");
  // Begun early, complete in time.
  EXPECT_EQ(Generate({"xa", "b"}, {"ab"}, 1).text, "x");
}

TEST(StopStringsTest, CharactersStayWhole) {
  const std::string euro = "\xE2\x82\xAC";
  EXPECT_EQ(Generate({"1", euro.substr(0, 1), euro.substr(1), "2"}, {"2"}).text, "1" + euro);
  EXPECT_EQ(Generate({"1", euro.substr(0, 2), euro.substr(2) + "2"}, {euro}).text, "1");
  // The beginning of a character that a stop string breaks off.
  EXPECT_EQ(Generate({"1", euro.substr(0, 2), "stop"}, {"stop"}).text, "1\xEF\xBF\xBD");
}

}  // namespace
}  // namespace conclave::coordinator
