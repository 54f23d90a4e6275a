#ifndef CONCLAVE_COORDINATOR_LIST_TOKENIZER_TESTING_H_
#define CONCLAVE_COORDINATOR_LIST_TOKENIZER_TESTING_H_

// A tokenizer whose token i spells entry i; it only decodes.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/tokenizer.h"

namespace conclave::coordinator {

class ListTokenizer final : public model::Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}

  std::vector<int> Encode(std::string_view) const override { return {}; }
  std::vector<int> EncodeWithSpecials(std::string_view) const override { return {}; }
  std::string_view TokenBytes(int id) const override { return tokens_[id]; }
  std::string Decode(std::span<const int> ids) const override {
    std::string text;
    for (int id : ids) text += tokens_[id];
    return text;
  }
  std::optional<int> SpecialId(std::string_view) const override { return std::nullopt; }
  bool IsSpecial(int) const override { return false; }
  int size() const override { return static_cast<int>(tokens_.size()); }
  size_t longest_token() const override { return 0; }

 private:
  std::vector<std::string> tokens_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_LIST_TOKENIZER_TESTING_H_
