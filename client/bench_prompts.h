#ifndef CONCLAVE_CLIENT_BENCH_PROMPTS_H_
#define CONCLAVE_CLIENT_BENCH_PROMPTS_H_

// Requests of a load: prompts of random token ids, the same for the same seed and index.

#include <cstdint>

#include "proto/conclave/v1/generation.pb.h"
#include "proto/conclave/v1/model.pb.h"

namespace conclave::client {

// Prompts are drawn from the ids below this. gpt-oss has its special tokens at the end of the
// vocabulary, the end tokens among the first five of them: so below the smallest end token, unless
// that would leave less than half of the vocabulary, which tells of another layout: then the whole.
uint32_t PromptIdLimit(const v1::GetModelResponse& model);

struct RequestShape {
  uint32_t id_limit = 1;  // at least 1
  uint32_t input_len = 1;
  uint32_t output_len = 1;
  float temperature = 1;
  uint64_t seed = 0;
};

// Generates `output_len` tokens whatever they are: end tokens do not end it. No two indexes have
// the same prompt, save by chance.
v1::GenerateRequest MakeBenchRequest(const RequestShape& shape, uint64_t index);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_PROMPTS_H_
