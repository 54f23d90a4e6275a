#ifndef CONCLAVE_MODEL_TOKENIZER_BYTE_LEVEL_H_
#define CONCLAVE_MODEL_TOKENIZER_BYTE_LEVEL_H_

// The alphabet in which tokenizer.json spells arbitrary bytes as printable characters: 33..126,
// 161..172 and 174..255 stand for themselves, U+0100.. for the other 68 bytes in order.

#include <string>
#include <string_view>

namespace conclave::model {

// Appends the bytes that `text` spells; false, with `bytes` unspecified, when a character is not of
// the alphabet.
bool FromByteLevel(std::string_view text, std::string& bytes);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_BYTE_LEVEL_H_
