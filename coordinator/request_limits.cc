#include "coordinator/request_limits.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

absl::Status CheckHeads(const Request& request, int num_heads) {
  const int prompt = static_cast<int>(request.tokens.size());
  for (const HeadRead& read : request.heads) {
    if (read.head < 0 || read.head >= num_heads) {
      return absl::InvalidArgumentError(
          fmt::format("head {} does not exist: {} are loaded", read.head, num_heads));
    }
    if (read.first < 0 || read.count < 1 || read.count > prompt - read.first) {
      return absl::InvalidArgumentError(
          fmt::format("head {} is read at positions [{}, {} + {}) of a prompt of {} tokens",
                      read.head, read.first, read.first, read.count, prompt));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const Request& request, int context_length) {
  if (request.sink == nullptr) return absl::InvalidArgumentError("the request has no sink");
  if (request.tokens.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (request.max_tokens < 0) {
    return absl::InvalidArgumentError(
        fmt::format("max_tokens is {}: it must be at least 0", request.max_tokens));
  }
  if (request.max_tokens == 0 && request.heads.empty() && request.prompt_logprobs < 0) {
    return absl::InvalidArgumentError(
        "max_tokens is 0, and neither a head nor prompt_logprobs is "
        "asked for");
  }
  if (request.first_prompt_logprob < 1) {
    return absl::InvalidArgumentError(
        fmt::format("first_prompt_logprob is {}: it is at least 1", request.first_prompt_logprob));
  }
  const size_t longest = context_length - (request.max_tokens > 0 ? 1 : 0);
  if (request.tokens.size() > longest) {
    return absl::InvalidArgumentError(fmt::format(
        "the prompt has {} tokens: at most {} fit the context of {}{}", request.tokens.size(),
        longest, context_length, request.max_tokens > 0 ? " with a token to generate" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

int CompletionLimit(const Request& request, int context_length) {
  return std::min(request.max_tokens, context_length - static_cast<int>(request.tokens.size()));
}

int ComputeLimit(const Request& request, int context_length) {
  const int prompt = static_cast<int>(request.tokens.size());
  return prompt + std::max(0, CompletionLimit(request, context_length) - 1);
}

absl::Status CheckRequest(const Request& request, const RequestLimits& limits) {
  RETURN_IF_ERROR(CheckLength(request, limits.context_length));
  RETURN_IF_ERROR(CheckHeads(request, limits.num_heads));
  const int tokens = ComputeLimit(request, limits.context_length);
  const BlockCount needed =
      PeakBlocks(tokens, std::min<int>(limits.prefill_chunk, request.tokens.size()), limits.window);
  if (needed.full > limits.blocks.full || needed.sliding > limits.blocks.sliding) {
    return absl::ResourceExhaustedError(fmt::format(
        "the request needs {} full and {} sliding KV blocks of {} tokens (prompt of {} tokens and "
        "max_tokens {}), the cache has {} and {}: shorten it, or start with a larger KV cache",
        needed.full, needed.sliding, kBlockTokens, request.tokens.size(), request.max_tokens,
        limits.blocks.full, limits.blocks.sliding));
  }
  return absl::OkStatus();
}

}  // namespace conclave::coordinator
