#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"
#include "model/split_pattern.h"
#include "model/tokenizer.h"
#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

using model::Splitter;
using model::Tokenizer;

std::shared_ptr<const Tokenizer> Load(const char* path) {
  auto tokenizer = Tokenizer::Load(path);
  CONCLAVE_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

const Tokenizer& O200k() {
  static const auto tokenizer = Load("tests/data/o200k_base.tiktoken");
  return *tokenizer;
}

const Tokenizer& Demo() {
  static const auto tokenizer = Load("demo/tiny_gpt_oss/tokenizer.json");
  return *tokenizer;
}

// Both cut valid text at the same places.
void CheckSplitters(std::string_view text) {
  static const Splitter& own = *model::MakeO200kSplitter().release();
  static const Splitter& pcre2 = *model::MakePcre2Splitter(model::kO200kPattern)->release();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = own.PieceEnd(text, begin);
    CONCLAVE_CHECK(end > begin && end <= text.size());
    CONCLAVE_CHECK(end == pcre2.PieceEnd(text, begin));
    begin = end;
  }
}

std::string Bytes(const Tokenizer& tokenizer, const std::vector<int>& ids) {
  std::string bytes;
  for (int id : ids) bytes += tokenizer.TokenBytes(id);
  return bytes;
}

// One token at a time gives the same text as all at once.
void CheckDecoders(const Tokenizer& tokenizer, const std::vector<int>& ids) {
  const std::string whole = tokenizer.Decode(ids);
  const std::string bytes = Bytes(tokenizer, ids);
  CONCLAVE_CHECK(base::ValidateUtf8(whole).ok());
  if (base::ValidateUtf8(bytes).ok()) CONCLAVE_CHECK(whole == bytes);
  model::IncrementalDetokenizer incremental(tokenizer);
  std::string text;
  for (int id : ids) {
    const std::string part = incremental.Append(id);
    CONCLAVE_CHECK(base::ValidateUtf8(part).ok());
    text += part;
  }
  CONCLAVE_CHECK(text + incremental.Finish() == whole);
}

// A second spelling of <|endofprompt|>: its token gives the first one back.
constexpr std::string_view kAlias = "<|reserved_200018|>";

void CheckRoundTrip(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int> plain = tokenizer.Encode(text);
  CONCLAVE_CHECK(Bytes(tokenizer, plain) == text);
  for (int id : plain) CONCLAVE_CHECK(!tokenizer.IsSpecial(id));
  const std::vector<int> special = tokenizer.EncodeWithSpecials(text);
  if (text.find(kAlias) == std::string_view::npos) {
    CONCLAVE_CHECK(Bytes(tokenizer, special) == text);
  }
  CheckDecoders(tokenizer, plain);
  CheckDecoders(tokenizer, special);
}

// Any numbers as ids, those without an entry included.
std::vector<int> IdsOf(std::string_view input) {
  std::vector<int> ids;
  for (size_t at = 0; at + 3 <= input.size(); at += 3) {
    int id = 0;
    std::memcpy(&id, input.data() + at, 3);
    ids.push_back(id % 210'000 - 1000);
  }
  return ids;
}

}  // namespace

int FuzzRoundTrip(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  std::string valid;
  base::AppendUtf8Lossy(input, valid);
  CheckSplitters(valid);
  for (const Tokenizer* tokenizer : {&O200k(), &Demo()}) {
    CheckRoundTrip(*tokenizer, input);
    CheckDecoders(*tokenizer, IdsOf(input));
  }
  return 0;
}

}  // namespace conclave::tests
