#include "base/one_line.h"

#include <algorithm>

#include "base/utf8.h"

namespace conclave::base {

std::string OneLine(std::string_view text) {
  constexpr size_t kMaxBytes = 1000;
  const bool cut = text.size() > kMaxBytes;
  if (cut) text = text.substr(0, kMaxBytes);
  std::string line;
  const size_t taken = AppendUtf8Lossy(text, line);
  if (taken < text.size() && !cut) line += kReplacementCharacter;
  std::replace_if(
      line.begin(), line.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, ' ');
  if (cut) return line + "...";
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace conclave::base
