#include "base/utf8.h"

#include <cstdint>
#include <cstring>

#include "fmt/format.h"

namespace conclave::base {
namespace {

enum class Unit {
  kCharacter,   // well-formed
  kIllFormed,   // a maximal ill-formed subpart
  kUnfinished,  // well-formed as far as it goes, but the text ends
};

struct Step {
  Unit unit;
  size_t length;  // bytes, >= 1
};

// What a lead byte says of the bytes that follow it: how many, and the range of the first of them
// (the others are 80..BF).
struct Lead {
  int continuation;  // 0 for a byte that leads nothing
  uint8_t low;
  uint8_t high;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0xC2 || byte > 0xF4) return {0, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};  // no overlong forms
  if (byte == 0xED) return {2, 0x80, 0x9F};  // no surrogates
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};  // no overlong forms
  if (byte == 0xF4) return {3, 0x80, 0x8F};  // nothing above U+10FFFF
  return {3, 0x80, 0xBF};
}

// `bytes` is not empty.
Step NextUnit(std::string_view bytes) {
  const auto first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {Unit::kCharacter, 1};
  const Lead lead = LeadOf(first);
  if (lead.continuation == 0) return {Unit::kIllFormed, 1};
  uint8_t low = lead.low;
  uint8_t high = lead.high;
  for (size_t i = 1; i <= static_cast<size_t>(lead.continuation); ++i) {
    if (i == bytes.size()) return {Unit::kUnfinished, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (byte < low || byte > high) return {Unit::kIllFormed, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Unit::kCharacter, static_cast<size_t>(lead.continuation) + 1};
}

// First offset at or after `at` where eight bytes are not all ASCII.
size_t SkipAscii(std::string_view text, size_t at) {
  while (at + sizeof(uint64_t) <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, sizeof(word));
    if ((word & 0x8080808080808080u) != 0) break;
    at += sizeof(word);
  }
  return at;
}

}  // namespace

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = SkipAscii(text, 0);
  while (at < text.size()) {
    const Step step = NextUnit(text.substr(at));
    if (step.unit != Unit::kCharacter) return at;
    at += step.length;
    if (step.length == 1) at = SkipAscii(text, at);
  }
  return at;
}

absl::Status ValidateUtf8(std::string_view text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("not valid UTF-8 at byte {}", valid));
}

size_t AppendUtf8Lossy(std::string_view bytes, std::string& out) {
  size_t taken = 0;
  while (taken < bytes.size()) {
    const std::string_view rest = bytes.substr(taken);
    const size_t valid = ValidUtf8Prefix(rest);
    out.append(rest.substr(0, valid));
    taken += valid;
    if (valid == rest.size()) break;
    const Step step = NextUnit(rest.substr(valid));
    if (step.unit == Unit::kUnfinished) break;
    out.append(kReplacementCharacter);
    taken += step.length;
  }
  return taken;
}

}  // namespace conclave::base
