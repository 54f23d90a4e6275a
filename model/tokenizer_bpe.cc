#include "model/tokenizer_bpe.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "fmt/format.h"
#include "model/tokenizer_added.h"

namespace conclave::model {
namespace {

//   text -> added tokens cut out -> well-formed UTF-8 runs -> pieces -> BPE -> ids
//
// A byte that is not part of a character is a token of its own, so that any bytes encode and the
// splitters see nothing but valid text.
class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(Bpe bpe, const std::vector<AddedToken>& added,
               std::vector<std::unique_ptr<Splitter>> splitters)
      : bpe_(std::move(bpe)),
        splitters_(std::move(splitters)),
        special_(static_cast<size_t>(bpe_.vocab().size()), false) {
    for (const AddedToken& token : added) {
      if (token.special) {
        special_[static_cast<size_t>(token.id)] = true;
        special_ids_.emplace(token.content, token.id);
      }
      if (!token.encodes) continue;
      with_specials_.Add(token.content, token.id);
      if (!token.special) always_.Add(token.content, token.id);
    }
    for (int id = 0; id < bpe_.vocab().size(); ++id) {
      longest_token_ = std::max(longest_token_, bpe_.vocab().Bytes(id).size());
    }
  }

  std::vector<int> Encode(std::string_view text) const override {
    return EncodeAround(always_, text);
  }
  std::vector<int> EncodeWithSpecials(std::string_view text) const override {
    return EncodeAround(with_specials_, text);
  }

  std::string_view TokenBytes(int id) const override { return bpe_.vocab().Bytes(id); }

  std::string Decode(std::span<const int> ids) const override {
    std::string bytes;
    for (const int id : ids) bytes += TokenBytes(id);
    if (base::ValidUtf8Prefix(bytes) == bytes.size()) return bytes;
    std::string text;
    const size_t taken = base::AppendUtf8Lossy(bytes, text);
    if (taken < bytes.size()) text += base::kReplacementCharacter;
    return text;
  }

  std::optional<int> SpecialId(std::string_view name) const override {
    const auto it = special_ids_.find(absl::string_view(name.data(), name.size()));
    if (it == special_ids_.end()) return std::nullopt;
    return it->second;
  }
  bool IsSpecial(int id) const override {
    return id >= 0 && static_cast<size_t>(id) < special_.size() &&
           special_[static_cast<size_t>(id)];
  }
  int size() const override { return bpe_.vocab().size(); }
  size_t longest_token() const override { return longest_token_; }

 private:
  std::vector<int> EncodeAround(const AddedTokenMatcher& added, std::string_view text) const {
    std::vector<int> ids;
    ids.reserve(text.size() / 4 + 4);
    size_t begin = 0;
    if (!added.empty()) {
      while (const auto match = added.Find(text, begin)) {
        EncodeBytes(text.substr(begin, match->begin - begin), ids);
        ids.push_back(match->id);
        begin = match->end;
      }
    }
    EncodeBytes(text.substr(begin), ids);
    return ids;
  }

  void EncodeBytes(std::string_view bytes, std::vector<int>& ids) const {
    while (!bytes.empty()) {
      const size_t valid = base::ValidUtf8Prefix(bytes);
      EncodePieces(bytes.substr(0, valid), 0, ids);
      bytes.remove_prefix(valid);
      if (bytes.empty()) break;
      ids.push_back(bpe_.ByteId(static_cast<uint8_t>(bytes[0])));
      bytes.remove_prefix(1);
    }
  }

  // `text` is a piece of the splitters before `step`.
  void EncodePieces(std::string_view text, size_t step, std::vector<int>& ids) const {
    if (step == splitters_.size()) return bpe_.Encode(text, ids);
    const Splitter& splitter = *splitters_[step];
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = splitter.PieceEnd(text, begin);
      EncodePieces(text.substr(begin, end - begin), step + 1, ids);
      begin = end;
    }
  }

  const Bpe bpe_;
  const std::vector<std::unique_ptr<Splitter>> splitters_;
  AddedTokenMatcher always_;         // added tokens that are not special
  AddedTokenMatcher with_specials_;  // all added tokens
  absl::flat_hash_map<std::string, int> special_ids_;
  std::vector<bool> special_;  // [size]
  size_t longest_token_ = 0;
};

absl::Status AddToVocab(const AddedToken& token, BpeParts& bpe) {
  const std::string_view known = bpe.vocab.Bytes(token.id);
  if (known.empty()) {
    RETURN_IF_ERROR(bpe.vocab.AddHidden(token.content, token.id));
  } else if (token.names_the_id && known != token.content) {
    return absl::InvalidArgumentError(fmt::format("added token \"{}\" has id {}, which is \"{}\"",
                                                  token.content, token.id, known));
  }
  bpe.special_ids.push_back(token.id);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(TokenizerSpec spec) {
  absl::flat_hash_map<std::string, int> contents;
  for (const AddedToken& token : spec.added) {
    const auto [it, is_new] = contents.emplace(token.content, token.id);
    if (!is_new && it->second != token.id) {
      return absl::InvalidArgumentError(fmt::format("added token \"{}\" has two ids, {} and {}",
                                                    token.content, it->second, token.id));
    }
    RETURN_IF_ERROR(AddToVocab(token, spec.bpe));
  }
  ASSIGN_OR_RETURN(Bpe bpe, Bpe::Create(std::move(spec.bpe)));
  return std::make_shared<const BpeTokenizer>(std::move(bpe), spec.added,
                                              std::move(spec.splitters));
}

}  // namespace conclave::model
