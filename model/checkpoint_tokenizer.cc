#include "model/checkpoint_tokenizer.h"

#include <filesystem>
#include <system_error>

#include "base/status_macros.h"
#include "fmt/format.h"

namespace conclave::model {

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadCheckpointTokenizer(const std::string& dir,
                                                                         const std::string& file,
                                                                         const Config& config) {
  const std::string path = file.empty() ? dir + "/tokenizer.json" : file;
  std::error_code error;
  if (file.empty() && !std::filesystem::exists(path, error)) {
    return std::shared_ptr<const Tokenizer>();
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::Load(path));
  if (tokenizer->size() <= config.vocab_size) return tokenizer;
  return absl::InvalidArgumentError(
      fmt::format("{}: has token ids up to {}, but config.json says vocab_size {}", path,
                  tokenizer->size() - 1, config.vocab_size));
}

}  // namespace conclave::model
