#include "coordinator/api_key_account.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/retry_delay.h"

namespace conclave::coordinator {
namespace {

// When one of a key's requests ends is anybody's guess.
constexpr absl::Duration kRequestsDelay = absl::Seconds(1);

}  // namespace

ApiKeyAccount::ApiKeyAccount(std::string name, const base::Clock& clock)
    : name_(std::move(name)), clock_(clock), refilled_(clock.Now()) {}

void ApiKeyAccount::SetLimits(const ApiKeyLimits& limits) {
  absl::MutexLock lock(&mutex_);
  Refill();
  // A new limit begins with its minute; one that is lowered takes what is above it.
  if (limits_.tokens_per_minute == 0) tokens_ = static_cast<double>(limits.tokens_per_minute);
  tokens_ = std::min(tokens_, static_cast<double>(limits.tokens_per_minute));
  limits_ = limits;
}

void ApiKeyAccount::Refill() {
  const absl::Time now = clock_.Now();
  const auto limit = static_cast<double>(limits_.tokens_per_minute);
  tokens_ =
      std::min(limit, tokens_ + limit * absl::FDivDuration(now - refilled_, absl::Minutes(1)));
  refilled_ = now;
}

absl::Status ApiKeyAccount::Take(int requests, int64_t prompt_tokens) {
  absl::MutexLock lock(&mutex_);
  if (limits_.max_requests > 0 && requests > limits_.max_requests) {
    return absl::ResourceExhaustedError(fmt::format(
        "{} completions, inputs or labels at once are more than the API key '{}' may ever have "
        "open, {}",
        requests, name_, limits_.max_requests));
  }
  if (limits_.max_requests > 0 && open_ + requests > limits_.max_requests) {
    return base::WithRetryDelay(absl::ResourceExhaustedError(fmt::format(
                                    "the API key '{}' has {} requests open and may have {}", name_,
                                    open_, limits_.max_requests)),
                                kRequestsDelay);
  }
  if (limits_.tokens_per_minute > 0) {
    Refill();
    if (tokens_ <= 0) {
      const absl::Duration wait =
          absl::Minutes(1) * ((1 - tokens_) / static_cast<double>(limits_.tokens_per_minute));
      return base::WithRetryDelay(
          absl::ResourceExhaustedError(fmt::format(
              "the API key '{}' has used its {} tokens per minute; retry after {:.1f} s", name_,
              limits_.tokens_per_minute, absl::ToDoubleSeconds(wait))),
          wait);
    }
    tokens_ -= static_cast<double>(prompt_tokens);
  }
  open_ += requests;
  return absl::OkStatus();
}

void ApiKeyAccount::End(int64_t output_tokens) {
  absl::MutexLock lock(&mutex_);
  --open_;
  if (limits_.tokens_per_minute > 0) tokens_ -= static_cast<double>(output_tokens);
}

void ApiKeyAccount::PutBack(int requests, int64_t prompt_tokens) {
  absl::MutexLock lock(&mutex_);
  open_ -= requests;
  if (limits_.tokens_per_minute > 0) tokens_ += static_cast<double>(prompt_tokens);
}

}  // namespace conclave::coordinator
