#ifndef CONCLAVE_TESTS_LOAD_WORKLOAD_H_
#define CONCLAVE_TESTS_LOAD_WORKLOAD_H_

// The requests of the load test, each determined by its number.

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include "proto/conclave/v1/generation.pb.h"

namespace conclave::tests {

// Of the tiny checkpoint.
inline constexpr uint32_t kPlainTokens = 496;  // ids below are no special ones
inline constexpr int kLongest = 120;           // prompt, and completion

// Prompts of 1 to 120 tokens in families that begin alike; greedy or drawn from a seed; one in
// eight asks for two completions, one in four heeds end tokens.
inline v1::GenerateRequest MakeWork(int work, int max_tokens) {
  std::mt19937 random(static_cast<uint32_t>(work) * 2654435761U + 1);
  v1::GenerateRequest request;
  const uint32_t family = work % 3;
  const auto length = static_cast<uint32_t>(1 + random() % kLongest);
  const uint32_t common = work % 4 == 0 ? 0 : std::min<uint32_t>(length, 64);
  auto* ids = request.mutable_prompt()->mutable_tokens();
  for (uint32_t i = 0; i < length; ++i) {
    const auto own = static_cast<uint32_t>(random());
    ids->add_ids((i < common ? (family + 1) * 7919 * (i + 1) : own) % kPlainTokens);
  }
  request.mutable_sampling()->set_temperature(work % 2 == 0 ? 0 : 0.9F);
  request.mutable_sampling()->set_seed(static_cast<uint64_t>(work) * 1000);
  request.mutable_stop()->set_ignore_eos(work % 4 != 3);
  request.mutable_stop()->set_max_tokens(static_cast<uint32_t>(max_tokens));
  request.set_n(work % 8 == 7 ? 2 : 1);
  request.set_user("user " + std::to_string(work % 5));
  return request;
}

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_LOAD_WORKLOAD_H_
