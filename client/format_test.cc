#include "client/format.h"

#include <vector>

#include "gtest/gtest.h"

namespace conclave::client {
namespace {

TEST(FormatTest, BytesUseTheLargestUnitBelowThem) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{5} << 30), "5.0 GiB");
}

TEST(FormatTest, RunsOfIdsAreCompressed) {
  EXPECT_EQ(FormatRanges({}), "-");
  EXPECT_EQ(FormatRanges(std::vector<uint32_t>{4}), "4");
  EXPECT_EQ(FormatRanges(std::vector<uint32_t>{0, 1, 2, 3, 7, 9, 10}), "0-3,7,9-10");
}

TEST(FormatTest, ControlCharactersStayOnTheLine) {
  EXPECT_EQ(Escape("a\nb\tc\x1b[d\xc3\xa9"), "a\\nb\\tc\\x1b[d\xc3\xa9");
}

TEST(FormatTest, NumbersAreAlignedRightAndTextLeft) {
  Table table({"name", "n"});
  table.AddRow({"a", "1"});
  table.AddRow({"bcdef", "234"});
  EXPECT_EQ(table.ToString(),
            "name     n\n"
            "a        1\n"
            "bcdef  234\n");
}

TEST(FormatTest, WideCharactersCountOnce) {
  Table table({"t", "x"});
  table.AddRow({"\xc3\xa9\xc3\xa9", "y"});
  table.AddRow({"ab", "z"});
  EXPECT_EQ(table.ToString(),
            "t   x\n"
            "\xc3\xa9\xc3\xa9  y\n"
            "ab  z\n");
}

}  // namespace
}  // namespace conclave::client
