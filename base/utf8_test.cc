#include "base/utf8.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::base {
namespace {

using ::testing::HasSubstr;

std::string Lossy(std::string_view bytes) {
  std::string out;
  const size_t taken = AppendUtf8Lossy(bytes, out);
  if (taken < bytes.size()) out.append(kReplacementCharacter);
  return out;
}

std::string Encode(uint32_t code_point) {
  std::string out;
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | code_point >> 6));
    out.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else if (code_point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | code_point >> 12));
    out.push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | code_point >> 18));
    out.push_back(static_cast<char>(0x80 | (code_point >> 12 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  }
  return out;
}

TEST(Utf8Test, ExactlyTheUnicodeScalarValuesAreValid) {
  for (uint32_t code_point = 0; code_point < 0x111000; ++code_point) {
    const bool scalar = code_point < 0xD800 || (code_point >= 0xE000 && code_point <= 0x10FFFF);
    const std::string bytes = Encode(code_point);
    ASSERT_EQ(ValidUtf8Prefix(bytes) == bytes.size(), scalar) << std::hex << code_point;
  }
}

TEST(Utf8Test, FirstBadByteIsNamed) {
  const std::vector<std::pair<std::string, size_t>> cases = {
      {"\xFF", 0},
      {"abc\x80", 3},                           // a continuation byte alone
      {"0123456789abcdef\xC3", 16},             // the text ends inside a character
      {"0123456\xC3\xA9\xC0\xAF", 9},           // overlong
      {"\xE2\x82\xAC\xE0\x80\xAF", 3},          // overlong
      {"\xED\xA0\x80", 0},                      // surrogate
      {"\xF0\x9F\x98\x80\xF4\x90\x80\x80", 4},  // above U+10FFFF
      {"\xF0\x9F\x98\x80\xF0\x80\x80\x80", 4},  // overlong
      {"a\xF5\x80\x80\x80", 1},
  };
  for (const auto& [bytes, offset] : cases) {
    EXPECT_EQ(ValidUtf8Prefix(bytes), offset);
    const absl::Status status = ValidateUtf8(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("byte " + std::to_string(offset)));
  }
  EXPECT_TRUE(ValidateUtf8("").ok());
  EXPECT_TRUE(ValidateUtf8("na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x92\x96 and plain ASCII").ok());
}

// `pattern` with a replacement character for each question mark.
std::string Replaced(std::string_view pattern) {
  std::string out;
  for (const char c : pattern) {
    if (c == '?') {
      out.append(kReplacementCharacter);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

// The examples of the Unicode Standard, section 3.9, "U+FFFD substitution of maximal subparts".
TEST(Utf8Test, OneReplacementForEachMaximalSubpart) {
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), Replaced("????????A"));
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), Replaced("????????A"));
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), Replaced("?????A??B"));
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), Replaced("????A"));
}

TEST(Utf8Test, UnfinishedCharacterAtTheEndIsLeft) {
  std::string out;
  EXPECT_EQ(AppendUtf8Lossy("ok\xF0\x9F\x92", out), 2u);
  EXPECT_EQ(out, "ok");
  out.clear();
  EXPECT_EQ(AppendUtf8Lossy("\xE2\x82\xAC\xE2\x82", out), 3u);
  EXPECT_EQ(out, "\xE2\x82\xAC");
  out.clear();
  EXPECT_EQ(AppendUtf8Lossy("", out), 0u);
  EXPECT_EQ(out, "");
}

}  // namespace
}  // namespace conclave::base
