#ifndef CONCLAVE_TOOLS_CHECKPOINT_REWRITE_H_
#define CONCLAVE_TOOLS_CHECKPOINT_REWRITE_H_

// The same model in another layout.

#include <string>

#include "absl/status/status.h"
#include "model/checkpoint.h"

namespace conclave::tools {

struct RewriteOptions {
  std::string in;   // a checkpoint's folder, experts in MXFP4
  std::string out;  // folder, made where missing
  // kBf16: experts dequantized and transposed, as save_pretrained leaves them.
  // kOriginal: OpenAI's names and config.json, in `out`/original.
  model::Layout layout = model::Layout::kBf16;
  int shards = 2;  // of the bf16 layout
};

// Values are the same, bit for bit. tokenizer.json and generation_config.json go along.
// INVALID_ARGUMENT when the input is not MXFP4, or has something that OpenAI's configuration cannot
// say.
absl::Status RewriteCheckpoint(const RewriteOptions& options);

}  // namespace conclave::tools

#endif  // CONCLAVE_TOOLS_CHECKPOINT_REWRITE_H_
