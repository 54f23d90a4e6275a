#ifndef CONCLAVE_MODEL_TOKENIZER_JSON_READER_H_
#define CONCLAVE_MODEL_TOKENIZER_JSON_READER_H_

// Reads a tokenizer.json in one pass: the vocabulary and the merges, hundreds of thousands of
// strings, go straight into their tables; only the few fields around them become a JSON tree.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model/bpe.h"

namespace conclave::model {

class TokenizerJsonReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  // Fills `parts`' tables, which must outlive the reader.
  explicit TokenizerJsonReader(BpeParts& parts) : parts_(parts) {}

  // INVALID_ARGUMENT with the place of the first error. Call once.
  absl::Status Read(std::string_view text);

  // Everything else. "model" keeps its "vocab" and "merges", empty.
  const nlohmann::json& rest() const { return root_; }

  bool null() override;
  bool boolean(bool value) override;
  bool number_integer(number_integer_t value) override;
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t value, const string_t& text) override;
  bool string(string_t& value) override;
  bool binary(binary_t& value) override;
  bool start_object(size_t elements) override;
  bool key(string_t& value) override;
  bool end_object() override;
  bool start_array(size_t elements) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) override;

 private:
  enum class Place { kTree, kVocab, kMerges, kPair };

  nlohmann::json* Put(nlohmann::json value);
  bool PutScalar(nlohmann::json value);
  bool IsModelMember(std::string_view name) const;
  bool Fail(const std::string& message);
  bool AddToken(int64_t id);
  bool AddSpacedMerge(std::string_view pair);
  bool AddMerge(std::string_view left, std::string_view right);
  // Position in model.merges of the merge being read.
  size_t MergeIndex() const { return next_rank_ + deferred_.size(); }
  bool ResolveMerge(std::string_view left, std::string_view right);

  BpeParts& parts_;
  absl::Status status_;
  Place place_ = Place::kTree;

  nlohmann::json root_;
  std::vector<nlohmann::json*> open_;  // objects and arrays of the tree that have not ended
  const nlohmann::json* model_ = nullptr;
  std::string key_;

  bool vocab_read_ = false;
  bool merges_read_ = false;
  uint32_t next_rank_ = 0;
  std::vector<std::string> pair_;  // of the merge being read
  std::vector<std::pair<std::string, std::string>>
      deferred_;                          // merges written before the vocabulary
  std::string left_bytes_, right_bytes_;  // scratch
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_JSON_READER_H_
