#include "base/one_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/log_json.h"
#include "base/utf8.h"

namespace conclave::base {
namespace {

TEST(OneLineTest, TextStaysAsItIs) { EXPECT_EQ(OneLine("Łódź: 3 of 4"), "Łódź: 3 of 4"); }

TEST(OneLineTest, ControlCharactersBecomeSpaces) {
  EXPECT_EQ(OneLine("a\nb\r\tc\x1b[2J\x7F.\n\n"), "a b  c [2J .");
  EXPECT_EQ(OneLine("\n"), "");
}

TEST(OneLineTest, WhatIsNotUtf8IsReplaced) {
  EXPECT_EQ(OneLine("/models/\xFF/x\xC3"), "/models/\uFFFD/x\uFFFD");
}

TEST(OneLineTest, LongTextIsCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "ź€";
  const std::string line = OneLine(text);
  EXPECT_LE(line.size(), 1003u);
  EXPECT_GE(line.size(), 990u);
  EXPECT_THAT(line, testing::EndsWith("..."));
  EXPECT_TRUE(ValidateUtf8(line).ok());
}

TEST(LogJsonTest, PairsBecomeMembers) {
  EXPECT_EQ(JsonMembers("event=lost worker=3 share=0.25 rest=007 id=12345678901234567 ok=true"),
            R"("event":"lost","worker":3,"share":0.25,"rest":"007","id":"12345678901234567",)"
            R"("ok":true)");
  EXPECT_EQ(JsonMembers(R"(event=x why="two words, a=b" n="5")"),
            R"("event":"x","why":"two words, a=b","n":"5")");
  EXPECT_EQ(JsonMembers("event=x status=NOT FOUND: a b code=5"),
            R"("event":"x","status":"NOT FOUND: a b","code":5)");
  EXPECT_EQ(JsonMembers("no pairs here"), R"("message":"no pairs here")");
  EXPECT_EQ(JsonMembers(""), "");
}

// Whatever a value holds, the line stays one object, and its own members are not replaced.
TEST(LogJsonTest, NoValueForgesAMember) {
  EXPECT_EQ(JsonMembers(R"(event=x error="say \"hi\" level=error" code=1)"),
            R"("event":"x","error":"say \"hi\" level=error","code":1)");
  EXPECT_EQ(JsonMembers("event=x pid=1 level=error event=y"), R"("event":"x")");
  EXPECT_EQ(JsonMembers("event=x error=\"tab\t\xFF"),
            "\"event\":\"x\",\"error\":\"tab\\u0009\uFFFD\"");
}

}  // namespace
}  // namespace conclave::base
