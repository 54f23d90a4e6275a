#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/split_pattern.h"

namespace conclave::model {
namespace {

// Bounds of one match. Each is far above what a split pattern needs and far below what would hold
// up a server; the interpreter's heap is used only when the just-in-time code's stack is too small.
constexpr uint32_t kMatchLimit = 5'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

struct Pcre2Free {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using Code = std::unique_ptr<pcre2_code, Pcre2Free>;
using MatchContext = std::unique_ptr<pcre2_match_context, Pcre2Free>;
using MatchData = std::unique_ptr<pcre2_match_data, Pcre2Free>;

// Scratch of the calling thread; one pair is enough for any pattern, groups are not read.
pcre2_match_data* ThreadMatchData() {
  thread_local const MatchData data(pcre2_match_data_create(1, nullptr));
  return data.get();
}

class Pcre2Splitter final : public Splitter {
 public:
  explicit Pcre2Splitter(Code code)
      : code_(std::move(code)), context_(pcre2_match_context_create(nullptr)) {
    CONCLAVE_CHECK(context_ != nullptr);
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
  }

  size_t PieceEnd(std::string_view text, size_t begin) const override {
    pcre2_match_data* data = ThreadMatchData();
    // An empty match splits the text where it stands, but not at the start of a piece.
    constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY_ATSTART;
    int found = Match(text, begin, kOptions, data);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = Match(text, begin, kOptions | PCRE2_NO_JIT, data);
    }
    if (found < 0) return text.size();
    const size_t* match = pcre2_get_ovector_pointer(data);
    return match[0] > begin ? match[0] : match[1];
  }

 private:
  int Match(std::string_view text, size_t begin, uint32_t options, pcre2_match_data* data) const {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin,
                       options, data, context_.get());
  }

  const Code code_;
  const MatchContext context_;  // not changed after the constructor, so threads share it
};

absl::Status Unsupported(std::string_view what, size_t at) {
  return absl::InvalidArgumentError(fmt::format(
      "split pattern: {} at byte {} is not supported, write the Unicode properties out", what, at));
}

// From the dialect of tokenizer.json (Oniguruma) to PCRE2's. Its \s is White_Space; PCRE2's takes
// U+180E too, which has not been one since Unicode 6.3. What means something else there is refused.
absl::StatusOr<std::string> Translate(std::string_view pattern) {
  if (const size_t at = pattern.find("&&"); at != std::string_view::npos) {
    return Unsupported("&&", at);
  }
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out.push_back(pattern[i]);
      continue;
    }
    const std::string_view escape = pattern.substr(i, 2);
    ++i;
    if (escape == "\\s") {
      out += "\\p{White_Space}";
    } else if (escape == "\\S") {
      out += "\\P{White_Space}";
    } else if (std::string_view("wWbBhH").find(escape[1]) != std::string_view::npos) {
      return Unsupported(escape, i - 1);
    } else {
      out += escape;
    }
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Splitter>> Compile(std::string_view pattern, uint32_t options) {
  if (pattern.empty()) return absl::InvalidArgumentError("split pattern is empty");
  int error = 0;
  size_t offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                          &error, &offset, nullptr));
  if (code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(fmt::format("split pattern, byte {} of \"{}\": {}", offset,
                                                  pattern, reinterpret_cast<char*>(message)));
  }
  // Without just-in-time code (an unusual CPU) the interpreter gives the same pieces.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return std::make_unique<Pcre2Splitter>(std::move(code));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Splitter>> MakePcre2Splitter(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, Translate(pattern));
  // PCRE2_NEVER_BACKSLASH_C: \C could leave the middle of a character.
  return Compile(translated, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
}

absl::StatusOr<std::unique_ptr<Splitter>> MakeLiteralSplitter(std::string_view literal) {
  return Compile(literal, PCRE2_LITERAL | PCRE2_UTF);
}

}  // namespace conclave::model
