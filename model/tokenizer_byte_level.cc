#include "model/tokenizer_byte_level.h"

#include <array>
#include <cstdint>

namespace conclave::model {
namespace {

constexpr size_t kAlphabetEnd = 0x100 + 68;
constexpr int16_t kNoByte = -1;

constexpr bool StandsForItself(size_t byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

// [code point] -> byte.
constexpr std::array<int16_t, kAlphabetEnd> kBytes = [] {
  std::array<int16_t, kAlphabetEnd> bytes = {};
  size_t next = 0x100;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (StandsForItself(byte)) {
      bytes[byte] = static_cast<int16_t>(byte);
    } else {
      bytes[byte] = kNoByte;
      bytes[next++] = static_cast<int16_t>(byte);
    }
  }
  return bytes;
}();

}  // namespace

bool FromByteLevel(std::string_view text, std::string& bytes) {
  for (size_t i = 0; i < text.size(); ++i) {
    uint32_t code_point = static_cast<uint8_t>(text[i]);
    if (code_point >= 0x80) {
      // The alphabet ends below U+0800: lead bytes C2..C5 and one more.
      if (code_point < 0xC2 || code_point > 0xDF || i + 1 == text.size()) return false;
      const uint32_t second = static_cast<uint8_t>(text[++i]);
      if ((second & 0xC0) != 0x80) return false;
      code_point = (code_point & 0x1F) << 6 | (second & 0x3F);
    }
    if (code_point >= kAlphabetEnd || kBytes[code_point] == kNoByte) return false;
    bytes.push_back(static_cast<char>(kBytes[code_point]));
  }
  return true;
}

}  // namespace conclave::model
