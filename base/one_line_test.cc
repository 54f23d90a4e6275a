#include "base/one_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

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

}  // namespace
}  // namespace conclave::base
