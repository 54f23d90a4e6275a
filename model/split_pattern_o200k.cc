// kO200kPattern without a regex engine: one look at each character, no backtracking stack.
//
// The two word alternatives share a run over "upper" characters (kClassUpper), found once for both:
//
//   1  prefix? upper* lower+ contraction?     2  prefix? upper+ lower* contraction?
//
// Alternative 1 needs a lower character: the one after the run or, marks and caseless letters being
// in both sets, the last one inside it. Everything else follows the order of the pattern.

#include <cstdint>
#include <optional>

#include "model/split_pattern.h"
#include "model/split_pattern_classes.h"

namespace conclave::model {
namespace {

struct Char {
  uint8_t cls;
  uint8_t length;  // bytes
};

// U+017F, which folds to s.
constexpr std::string_view kLongS = "\xC5\xBF";

class O200kSplitter final : public Splitter {
 public:
  size_t PieceEnd(std::string_view text, size_t begin) const override {
    const Char first = At(text, begin);
    if (const std::optional<size_t> end = WordEnd(text, begin, first)) return *end;
    if ((first.cls & kClassNumber) != 0) return NumberEnd(text, begin);
    if (const std::optional<size_t> end = SymbolsEnd(text, begin)) return *end;
    return SpaceEnd(text, begin);
  }

 private:
  // Ends of alternatives 1 and 2 for a word that starts, after any prefix, at one place.
  struct Ends {
    std::optional<size_t> lower;  // alternative 1
    std::optional<size_t> upper;  // alternative 2
  };

  // The character at `at` < text.size(). The text is valid, so the lead byte says all.
  Char At(std::string_view text, size_t at) const {
    const auto* p = reinterpret_cast<const uint8_t*>(text.data()) + at;
    if (p[0] < 0x80) return {classes_[p[0]], 1};
    if (p[0] < 0xE0) return {classes_[(p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu)], 2};
    if (p[0] < 0xF0) {
      return {classes_[(p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu)], 3};
    }
    return {classes_[(p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 |
                     (p[3] & 0x3Fu)],
            4};
  }

  // First place at or after `at` whose character has none of the bits `cls`.
  size_t SkipWhile(std::string_view text, size_t at, uint8_t cls) const {
    while (at < text.size()) {
      const Char c = At(text, at);
      if ((c.cls & cls) == 0) break;
      at += c.length;
    }
    return at;
  }

  std::optional<size_t> WordEnd(std::string_view text, size_t begin, Char first) const {
    const bool may_be_prefix = (first.cls & (kClassNewline | kClassLetter | kClassNumber)) == 0;
    const bool may_be_word = (first.cls & (kClassUpper | kClassLower)) != 0;
    Ends after_prefix;
    Ends bare;
    if (may_be_prefix) after_prefix = Words(text, begin + first.length);
    if (after_prefix.lower) return WithContraction(text, *after_prefix.lower);
    if (may_be_word) bare = Words(text, begin);
    if (bare.lower) return WithContraction(text, *bare.lower);
    if (after_prefix.upper) return WithContraction(text, *after_prefix.upper);
    if (bare.upper) return WithContraction(text, *bare.upper);
    return std::nullopt;
  }

  Ends Words(std::string_view text, size_t begin) const {
    size_t at = begin;
    std::optional<size_t> lower_in_run;  // end of the last lower character of the upper run
    Char c = {};
    for (; at < text.size(); at += c.length) {
      c = At(text, at);
      if ((c.cls & kClassUpper) == 0) break;
      if ((c.cls & kClassLower) != 0) lower_in_run = at + c.length;
    }
    Ends ends;
    if (at < text.size() && (c.cls & kClassLower) != 0) {
      ends.lower = SkipWhile(text, at, kClassLower);
      return ends;  // alternative 2 is never asked
    }
    ends.lower = lower_in_run;
    if (at > begin) ends.upper = at;
    return ends;
  }

  // (?i:'s|'t|'re|'ve|'m|'ll|'d)?
  static size_t WithContraction(std::string_view text, size_t end) {
    if (end + 1 >= text.size() || text[end] != '\'') return end;
    const std::string_view rest = text.substr(end + 1);
    if (rest.starts_with(kLongS)) return end + 1 + kLongS.size();
    const char first = ToLower(rest[0]);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return end + 2;
    if (rest.size() < 2) return end;
    const char second = ToLower(rest[1]);
    const bool two =
        ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    return two ? end + 3 : end;
  }

  static char ToLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

  // \p{N}{1,3}
  size_t NumberEnd(std::string_view text, size_t begin) const {
    size_t at = begin;
    for (int i = 0; i < 3 && at < text.size(); ++i) {
      const Char c = At(text, at);
      if ((c.cls & kClassNumber) == 0) break;
      at += c.length;
    }
    return at;
  }

  //  ?[^\s\p{L}\p{N}]+[\r\n/]*
  std::optional<size_t> SymbolsEnd(std::string_view text, size_t begin) const {
    const size_t start = text[begin] == ' ' ? begin + 1 : begin;
    size_t at = start;
    while (at < text.size()) {
      const Char c = At(text, at);
      if ((c.cls & (kClassSpace | kClassLetter | kClassNumber)) != 0) break;
      at += c.length;
    }
    if (at == start) return std::nullopt;
    while (at < text.size() && (text[at] == '\r' || text[at] == '\n' || text[at] == '/')) ++at;
    return at;
  }

  // \s*[\r\n]+ | \s+(?!\S) | \s+
  size_t SpaceEnd(std::string_view text, size_t begin) const {
    size_t at = begin;
    size_t last = begin;  // start of the run's last character
    std::optional<size_t> after_newline;
    while (at < text.size()) {
      const Char c = At(text, at);
      if ((c.cls & kClassSpace) == 0) break;
      last = at;
      at += c.length;
      if ((c.cls & kClassNewline) != 0) after_newline = at;
    }
    if (after_newline) return *after_newline;
    return at == text.size() || last == begin ? at : last;
  }

  const CharClasses& classes_ = CharClasses::Get();
};

}  // namespace

std::unique_ptr<Splitter> MakeO200kSplitter() { return std::make_unique<O200kSplitter>(); }

}  // namespace conclave::model
