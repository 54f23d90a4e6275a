#include "coordinator/token_spans.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "coordinator/scores.h"
#include "model/tokenizer.h"

namespace conclave::coordinator {
namespace {

const std::vector<std::string> kLabels = {"O",     "B-PER", "I-PER", "B-LOC", "I-LOC",
                                          "E-PER", "S-PER", "X",     "B-X",   "I-X"};

struct Labelled {
  const char* label;
  float score;
  size_t start_byte;
  size_t end_byte;
};

std::vector<ScoredToken> Tokens(std::initializer_list<Labelled> list) {
  std::vector<ScoredToken> tokens;
  for (const Labelled& token : list) {
    ScoredToken scored;
    for (const std::string& label : kLabels) {
      scored.scores.push_back(label == token.label ? token.score : 0);
    }
    scored.start_byte = token.start_byte;
    scored.end_byte = token.end_byte;
    tokens.push_back(std::move(scored));
  }
  return tokens;
}

std::vector<LabelledSpan> Spans(std::initializer_list<Labelled> list, const std::string& text,
                                const SpanRules& rules = {}) {
  return MakeSpans(rules, kLabels, Tokens(list), text);
}

TEST(MakeSpansTest, JoinsEqualTagsAndSplitsAtABeginning) {
  const std::string text = "Ann Lee Bob in Rome";
  const auto spans = Spans({{"B-PER", 0.9F, 0, 3},
                            {"I-PER", 0.7F, 3, 7},
                            {"B-PER", 0.6F, 7, 11},
                            {"O", 0.99F, 11, 14},
                            {"I-LOC", 0.5F, 14, 19}},
                           text);
  ASSERT_EQ(spans.size(), 3);
  EXPECT_EQ(spans[0].label, "PER");
  EXPECT_FLOAT_EQ(spans[0].score, 0.8F);
  EXPECT_EQ(spans[0].start_byte, 0);
  EXPECT_EQ(spans[0].end_byte, 7);
  EXPECT_EQ(spans[1].label, "PER");
  EXPECT_EQ(spans[1].start_byte, 7);
  EXPECT_EQ(spans[2].label, "LOC");
  EXPECT_EQ(text.substr(spans[2].start_byte, 5), " Rome");
}

TEST(MakeSpansTest, AnotherTagEndsASpanEvenWithoutABeginning) {
  const auto spans = Spans({{"I-PER", 1, 0, 1}, {"I-LOC", 1, 1, 2}}, "ab");
  ASSERT_EQ(spans.size(), 2);
  EXPECT_EQ(spans[0].label, "PER");
  EXPECT_EQ(spans[1].label, "LOC");
}

TEST(MakeSpansTest, CountsCodePointsAndWidensToWholeCharacters) {
  const std::string text = "日本 é";  // 3 + 3 + 1 + 2 bytes
  // The second token starts inside 本 and the third ends inside é.
  const auto spans = Spans({{"O", 1, 0, 4}, {"B-X", 1, 4, 7}, {"I-X", 1, 7, 8}}, text);
  ASSERT_EQ(spans.size(), 1);
  EXPECT_EQ(spans[0].start_byte, 3);
  EXPECT_EQ(spans[0].end_byte, 9);
  EXPECT_EQ(spans[0].start_char, 1);
  EXPECT_EQ(spans[0].end_char, 4);
}

TEST(MakeSpansTest, SpansThatShareACharacterKeepTheirOffsets) {
  const auto spans = Spans({{"B-X", 1, 0, 2}, {"B-PER", 1, 2, 5}}, "a本b");
  ASSERT_EQ(spans.size(), 2);
  EXPECT_EQ(spans[0].end_char, 2);
  EXPECT_EQ(spans[1].start_char, 1);
  EXPECT_EQ(spans[1].end_char, 3);
}

TEST(MakeSpansTest, NothingGivesNothing) {
  for (const Aggregation aggregation : {Aggregation::kNone, Aggregation::kAverage}) {
    EXPECT_TRUE(Spans({}, "", {.aggregation = aggregation}).empty());
  }
}

TEST(MakeSpansTest, AnEndClosesASpanAndASingleIsOneWhereTheSchemeSaysSo) {
  const std::initializer_list<Labelled> tokens = {{"B-PER", 1, 0, 1}, {"E-PER", 1, 1, 2},
                                                  {"I-PER", 1, 2, 3}, {"S-PER", 1, 3, 4},
                                                  {"S-PER", 1, 4, 5}, {"E-PER", 1, 5, 6}};
  const auto bioes = Spans(tokens, "abcdef", {.scheme = LabelScheme::kBioes});
  ASSERT_EQ(bioes.size(), 5);
  for (const LabelledSpan& span : bioes) EXPECT_EQ(span.label, "PER");
  EXPECT_EQ(bioes[0].end_byte, 2);
  const auto bio = Spans(tokens, "abcdef");
  ASSERT_EQ(bio.size(), 5);
  EXPECT_EQ(bio[0].end_byte, 1);
  EXPECT_EQ(bio[1].label, "E-PER");
  EXPECT_EQ(bio[3].label, "S-PER");  // two tokens of that tag
  EXPECT_EQ(bio[3].end_byte, 5);
  EXPECT_EQ(SchemeOf(kLabels), LabelScheme::kBioes);
  EXPECT_EQ(SchemeOf(std::span(kLabels).first(5)), LabelScheme::kBio);
}

TEST(MakeSpansTest, IgnoredLabelsAreTheCallers) {
  const auto spans = Spans({{"O", 1, 0, 1}, {"B-PER", 1, 1, 2}}, "ab", {.ignored = {"PER", "LOC"}});
  ASSERT_EQ(spans.size(), 1);
  EXPECT_EQ(spans[0].label, "O");
}

// The cases were made by token_span_cases.py, from the logits of the shipped token head.
TEST(MakeSpansTest, EveryStrategyAgreesWithTransformersOnRecordedTexts) {
  const auto tokenizer = *model::Tokenizer::Load("demo/tiny_gpt_oss/tokenizer.json");
  const std::vector<std::string> labels = {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"};
  const std::map<std::string, Aggregation> strategies = {{"none", Aggregation::kNone},
                                                         {"simple", Aggregation::kSimple},
                                                         {"first", Aggregation::kFirst},
                                                         {"average", Aggregation::kAverage},
                                                         {"max", Aggregation::kMax}};
  std::ifstream cases("coordinator/token_span_cases.jsonl");
  size_t texts = 0;
  size_t spans_seen = 0;
  for (std::string line; std::getline(cases, line); ++texts) {
    const auto json = nlohmann::json::parse(line);
    const std::string text = json["text"];
    const std::vector<int> ids = tokenizer->Encode(text);
    ASSERT_EQ(ids, json["ids"].get<std::vector<int>>()) << text;
    std::vector<ScoredToken> tokens;
    size_t byte = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::vector<float> logits = json["logits"][i];
      const size_t end = byte + tokenizer->TokenBytes(ids[i]).size();
      tokens.push_back({Scores(v1::SCORE_FUNCTION_SOFTMAX, logits), byte, end});
      byte = end;
    }
    for (const auto& [name, aggregation] : strategies) {
      const auto spans = MakeSpans({.aggregation = aggregation}, labels, tokens, text);
      const auto& expected = json[name];
      ASSERT_EQ(spans.size(), expected.size()) << name << ": " << text;
      for (size_t i = 0; i < spans.size(); ++i) {
        EXPECT_EQ(spans[i].label, expected[i][0]) << name << ": " << text;
        EXPECT_NEAR(spans[i].score, expected[i][1].get<double>(), 1e-5) << name << ": " << text;
        EXPECT_EQ(spans[i].start_char, expected[i][2]) << name << ": " << text;
        EXPECT_EQ(spans[i].end_char, expected[i][3]) << name << ": " << text;
        ++spans_seen;
      }
    }
  }
  EXPECT_GE(texts, 100);
  EXPECT_GE(spans_seen, 1000);
}

}  // namespace
}  // namespace conclave::coordinator
