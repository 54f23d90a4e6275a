// .tiktoken vocabularies: a rank is a token's id and its precedence. Any two tokens whose bytes
// together are an entry merge into it, so the pairs are every split of every entry.

#include "model/tokenizer_tiktoken.h"

#include <charconv>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/tokenizer_o200k.h"

namespace conclave::model {
namespace {

// One line, without its end: "IQ== 0".
absl::Status AddLine(std::string_view line, BpeVocab& vocab) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) {
    return absl::InvalidArgumentError("expected \"base64 rank\"");
  }
  std::string bytes;
  if (!absl::Base64Unescape({line.data(), space}, &bytes)) {
    return absl::InvalidArgumentError("the token is not base64");
  }
  const std::string_view digits = line.substr(space + 1);
  int rank = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    return absl::InvalidArgumentError(fmt::format("\"{}\" is not a rank", digits));
  }
  return vocab.Add(bytes, rank);
}

absl::Status AddLines(std::string_view text, BpeVocab& vocab) {
  for (int number = 1; !text.empty(); ++number) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    if (absl::Status status = AddLine(line, vocab); !status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("line {}: {}", number, std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

void AddSplits(const BpeVocab& vocab, BpeMerges& merges) {
  for (int id = 0; id < vocab.size(); ++id) {
    const std::string_view bytes = vocab.Bytes(id);
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const int left = vocab.Find(bytes.substr(0, cut));
      if (left < 0) continue;
      const int right = vocab.Find(bytes.substr(cut));
      if (right >= 0) merges.Set(left, right, {static_cast<uint32_t>(id), id});
    }
  }
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseO200kTiktoken(std::string_view text) {
  TokenizerSpec spec;
  RETURN_IF_ERROR(AddLines(text, spec.bpe.vocab));
  for (int id = 0; id < kO200kRanks; ++id) {
    if (!spec.bpe.vocab.Has(id)) {
      return absl::InvalidArgumentError(
          fmt::format("rank {} is missing: o200k_harmony has ranks 0..{}", id, kO200kRanks - 1));
    }
  }
  if (spec.bpe.vocab.size() != kO200kRanks) {
    return absl::InvalidArgumentError(
        fmt::format("rank {} is one of o200k_harmony's special tokens", spec.bpe.vocab.size() - 1));
  }
  AddSplits(spec.bpe.vocab, spec.bpe.merges);
  spec.bpe.whole_entries = true;
  spec.added = O200kHarmonySpecials();
  spec.splitters.push_back(MakeO200kSplitter());
  return spec;
}

}  // namespace conclave::model
