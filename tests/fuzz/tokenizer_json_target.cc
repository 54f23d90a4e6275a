#include <exception>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_json.h"
#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

// Tokenizer::Load without the file.
absl::StatusOr<std::shared_ptr<const model::Tokenizer>> Make(std::string_view json) {
  try {
    auto spec = model::ParseTokenizerJson(json);
    if (!spec.ok()) return spec.status();
    return model::MakeTokenizer(*std::move(spec));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

}  // namespace

int FuzzTokenizerJson(const uint8_t* data, size_t size) {
  const auto tokenizer = Make({reinterpret_cast<const char*>(data), size});
  if (!tokenizer.ok()) {
    CONCLAVE_CHECK(tokenizer.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  for (const std::string_view text : {"", "the other error, don't 1234\n\n  x",
                                      "Łódź \u200d\U0001F469\u0301", "a\xff\xc3", "    "}) {
    for (const std::vector<int>& ids :
         {(*tokenizer)->Encode(text), (*tokenizer)->EncodeWithSpecials(text)}) {
      std::string bytes;
      for (int id : ids) {
        CONCLAVE_CHECK(id >= 0 && id < (*tokenizer)->size());
        bytes += (*tokenizer)->TokenBytes(id);
      }
      CONCLAVE_CHECK(bytes == text);
      CONCLAVE_CHECK(base::ValidateUtf8((*tokenizer)->Decode(ids)).ok());
    }
  }
  return 0;
}

}  // namespace conclave::tests
