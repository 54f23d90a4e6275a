#include "base/log_json.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

#include "base/utf8.h"

namespace conclave::base {
namespace {

// Longer numbers lose digits in readers that take them for doubles.
constexpr size_t kMaxNumber = 15;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsKeyCharacter(char c) { return (c >= 'a' && c <= 'z') || IsDigit(c) || c == '_'; }

// Length of `key=` at the beginning of `text`, or 0.
size_t KeyLength(std::string_view text) {
  size_t length = 0;
  while (length < text.size() && IsKeyCharacter(text[length])) ++length;
  return length > 0 && length < text.size() && text[length] == '=' ? length + 1 : 0;
}

// A value ends here: at the end, or before a space and another key.
bool EndsAt(std::string_view text, size_t at) {
  if (at == text.size()) return true;
  return text[at] == ' ' && KeyLength(text.substr(at + 1)) > 0;
}

// As JSON has numbers.
bool IsNumber(std::string_view text) {
  if (text.size() > kMaxNumber) return false;
  if (text.starts_with('-')) text.remove_prefix(1);
  size_t whole = 0;
  while (whole < text.size() && IsDigit(text[whole])) ++whole;
  if (whole == 0 || (whole > 1 && text[0] == '0')) return false;
  if (whole == text.size()) return true;
  const std::string_view rest = text.substr(whole + 1);
  return text[whole] == '.' && !rest.empty() && std::all_of(rest.begin(), rest.end(), IsDigit);
}

void AppendString(std::string_view bytes, std::string& out) {
  std::string text;
  if (AppendUtf8Lossy(bytes, text) < bytes.size()) text += kReplacementCharacter;
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> code = {};
      std::snprintf(code.data(), code.size(), "\\u%04x", static_cast<unsigned>(c));
      out += code.data();
    } else {
      out += c;
    }
  }
  out += '"';
}

// Takes a quoted value off `rest`, which begins with its quotation mark.
std::string TakeQuoted(std::string_view& rest) {
  std::string value;
  size_t at = 1;
  for (; at < rest.size(); ++at) {
    const char next = at + 1 < rest.size() ? rest[at + 1] : '\0';
    if (rest[at] == '\\' && (next == '"' || next == '\\')) {
      value += rest[++at];
    } else if (rest[at] == '"' && EndsAt(rest, at + 1)) {
      ++at;
      break;
    } else {
      value += rest[at];
    }
  }
  rest.remove_prefix(at);
  return value;
}

class Members {
 public:
  void Add(std::string_view name, std::string_view value, bool bare) {
    if (std::find(names_.begin(), names_.end(), name) != names_.end()) return;
    names_.emplace_back(name);
    if (!out_.empty()) out_ += ',';
    AppendString(name, out_);
    out_ += ':';
    if (bare && (IsNumber(value) || value == "true" || value == "false")) {
      out_ += value;
    } else {
      AppendString(value, out_);
    }
  }
  std::string Take() { return std::move(out_); }

 private:
  std::vector<std::string> names_ = {"ts", "level", "process", "pid"};
  std::string out_;
};

}  // namespace

std::string JsonMembers(std::string_view line) {
  Members members;
  while (!line.empty()) {
    const size_t key = KeyLength(line);
    if (key == 0) {
      members.Add("message", line, false);
      break;
    }
    const std::string_view name = line.substr(0, key - 1);
    line.remove_prefix(key);
    if (line.starts_with('"')) {
      members.Add(name, TakeQuoted(line), false);
    } else {
      size_t end = 0;
      while (!EndsAt(line, end)) ++end;
      members.Add(name, line.substr(0, end), true);
      line.remove_prefix(end);
    }
    if (line.starts_with(' ')) line.remove_prefix(1);
  }
  return members.Take();
}

}  // namespace conclave::base
