#ifndef CONCLAVE_MODEL_TOKENIZER_H_
#define CONCLAVE_MODEL_TOKENIZER_H_

// Byte-level BPE. Reads Hugging Face's tokenizer.json and OpenAI's .tiktoken vocabularies (the
// latter with the o200k_harmony split pattern and special tokens).
//
//   ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load("/models/gpt-oss-20b/tokenizer.json"));
//   std::vector<int> ids = tokenizer->Encode("hello world");          // specials are plain text
//   std::string text = tokenizer->Decode(ids);
//
// Immutable after Load; every method is thread-safe.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::model {

class Tokenizer {
 public:
  // `path` ends in .json or .tiktoken, or is a folder that holds tokenizer.json. INVALID_ARGUMENT
  // names the file and the field.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& path);
  virtual ~Tokenizer() = default;

  // Encodes `text` (valid UTF-8; use base::ValidateUtf8 first, other bytes are encoded one by one).
  // Special tokens spelled in the text are ordinary text.
  virtual std::vector<int> Encode(std::string_view text) const = 0;
  // As Encode, but special tokens spelled in the text become their ids.
  virtual std::vector<int> EncodeWithSpecials(std::string_view text) const = 0;

  // The bytes of one token; a special token's name; empty for an id without an entry.
  virtual std::string_view TokenBytes(int id) const = 0;
  // Concatenated bytes, sequences that are not UTF-8 replaced by U+FFFD.
  virtual std::string Decode(std::span<const int> ids) const = 0;

  virtual std::optional<int> SpecialId(std::string_view name) const = 0;
  virtual bool IsSpecial(int id) const = 0;
  // One past the largest id with an entry.
  virtual int size() const = 0;
  // Bytes of the longest token: no text of more than n times as many is n tokens.
  virtual size_t longest_token() const = 0;
};

// Turns a stream of tokens into text that is always whole UTF-8 characters. One per sequence, not
// thread-safe.
class IncrementalDetokenizer {
 public:
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // Text completed by `id`; bytes that may still become a character are kept, bytes that cannot are
  // given out as U+FFFD.
  std::string Append(int id);
  // The same of any part of tokens' bytes.
  std::string AppendBytes(std::string_view bytes);
  // What is left at the end, an unfinished character as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_H_
