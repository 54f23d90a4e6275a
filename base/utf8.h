#ifndef CONCLAVE_BASE_UTF8_H_
#define CONCLAVE_BASE_UTF8_H_

// Well-formed UTF-8 as the Unicode Standard defines it (table 3-7): no overlong forms, no
// surrogates, nothing above U+10FFFF.

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace conclave::base {

// Length of the longest prefix of `text` that is well-formed; text.size() when all of it is.
size_t ValidUtf8Prefix(std::string_view text);

// INVALID_ARGUMENT with the offset of the first byte that is not part of a character.
absl::Status ValidateUtf8(std::string_view text);

// Appends `bytes` to `out` as well-formed UTF-8, one U+FFFD for each maximal ill-formed subpart
// (the practice that the Unicode Standard and the WHATWG recommend). Returns how many bytes were
// taken: all but the beginning of a character at the very end, which is at most 3 bytes.
size_t AppendUtf8Lossy(std::string_view bytes, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_UTF8_H_
