#ifndef CONCLAVE_CLIENT_SAMPLING_FLAGS_H_
#define CONCLAVE_CLIENT_SAMPLING_FLAGS_H_

// How tokens are drawn and what ends the text, as flags. What is not given is left to the server,
// but for max_tokens.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/flags.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::client {

struct SamplingFlags {
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
};

struct StopFlags {
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  bool ignore_eos = false;
  std::vector<uint32_t> stop_tokens;
  std::vector<std::string> stop_strings;
};

// `flags` must outlive the parse.
void AddSamplingFlags(base::FlagSet& command, SamplingFlags* flags);
void AddStopFlags(base::FlagSet& command, StopFlags* flags);

// FAILED_PRECONDITION for wrong usage: a bias that is not ID:BIAS. Ranges are for the server.
absl::Status SetSampling(const SamplingFlags& flags, v1::SamplingParams* sampling);
// INVALID_ARGUMENT for text that is not UTF-8, which gRPC cannot carry.
absl::Status SetStop(const StopFlags& flags, v1::StopParams* stop);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SAMPLING_FLAGS_H_
