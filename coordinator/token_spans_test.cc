#include "coordinator/token_spans.h"

#include <gtest/gtest.h>

namespace conclave::coordinator {
namespace {

TEST(GroupSpansTest, JoinsEqualTagsAndSplitsAtABeginning) {
  const std::string text = "Ann Lee Bob in Rome";
  const std::vector<LabelledToken> tokens = {
      {"B-PER", 0.9F, 0, 3}, {"I-PER", 0.7F, 3, 7},   {"B-PER", 0.6F, 7, 11},
      {"O", 0.99F, 11, 14},  {"I-LOC", 0.5F, 14, 19},
  };
  const auto spans = GroupSpans(tokens, text);
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

TEST(GroupSpansTest, AnotherTagEndsASpanEvenWithoutABeginning) {
  const auto spans =
      GroupSpans(std::vector<LabelledToken>{{"I-PER", 1, 0, 1}, {"I-LOC", 1, 1, 2}}, "ab");
  ASSERT_EQ(spans.size(), 2);
  EXPECT_EQ(spans[0].label, "PER");
  EXPECT_EQ(spans[1].label, "LOC");
}

TEST(GroupSpansTest, CountsCodePointsAndWidensToWholeCharacters) {
  const std::string text = "日本 é";  // 3 + 3 + 1 + 2 bytes
  // The second token starts inside 本 and the third ends inside é.
  const auto spans = GroupSpans(
      std::vector<LabelledToken>{{"O", 1, 0, 4}, {"B-X", 1, 4, 7}, {"I-X", 1, 7, 8}}, text);
  ASSERT_EQ(spans.size(), 1);
  EXPECT_EQ(spans[0].start_byte, 3);
  EXPECT_EQ(spans[0].end_byte, 9);
  EXPECT_EQ(spans[0].start_char, 1);
  EXPECT_EQ(spans[0].end_char, 4);
}

TEST(GroupSpansTest, SpansThatShareACharacterKeepTheirOffsets) {
  const std::string text = "a本b";
  const auto spans =
      GroupSpans(std::vector<LabelledToken>{{"B-X", 1, 0, 2}, {"B-Y", 1, 2, 5}}, text);
  ASSERT_EQ(spans.size(), 2);
  EXPECT_EQ(spans[0].end_char, 2);
  EXPECT_EQ(spans[1].start_char, 1);
  EXPECT_EQ(spans[1].end_char, 3);
}

TEST(GroupSpansTest, NothingGivesNothing) { EXPECT_TRUE(GroupSpans({}, "").empty()); }

}  // namespace
}  // namespace conclave::coordinator
