#include "model/tokenizer.h"

#include <exception>
#include <filesystem>
#include <fstream>

#include "base/one_line.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "fmt/format.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_tiktoken.h"

namespace conclave::model {
namespace {

// The largest vocabularies in use are a tenth of this.
constexpr uintmax_t kMaxFileBytes = 256u << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(fmt::format("{}: {}", path, error.message()));
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} bytes is too large for a vocabulary", path, size));
  }
  std::string contents(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(contents.data(), static_cast<std::streamsize>(size))) {
    return absl::NotFoundError(fmt::format("{}: cannot be read", path));
  }
  return contents;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> FromContents(std::string_view contents,
                                                              bool is_json) {
  try {
    ASSIGN_OR_RETURN(TokenizerSpec spec,
                     is_json ? ParseTokenizerJson(contents) : ParseO200kTiktoken(contents));
    return MakeTokenizer(std::move(spec));
  } catch (const std::exception& error) {  // of the JSON library, or out of memory
    return absl::InvalidArgumentError(base::OneLine(error.what()));
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& path) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  const std::string file = is_folder ? path + "/tokenizer.json" : path;
  const bool is_json = file.ends_with(".json");
  if (!is_json && !file.ends_with(".tiktoken")) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: expected a .json or .tiktoken file, or a folder with tokenizer.json", file));
  }
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(file));
  auto tokenizer = FromContents(contents, is_json);
  if (!tokenizer.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", file, std::string(tokenizer.status().message())));
  }
  return tokenizer;
}

std::string IncrementalDetokenizer::Append(int id) {
  return AppendBytes(tokenizer_.TokenBytes(id));
}

std::string IncrementalDetokenizer::AppendBytes(std::string_view bytes) {
  pending_ += bytes;
  std::string text;
  pending_.erase(0, base::AppendUtf8Lossy(pending_, text));
  return text;
}

std::string IncrementalDetokenizer::Finish() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(base::kReplacementCharacter);
}

}  // namespace conclave::model
