#include "client/bench_prompts.h"

#include <algorithm>
#include <random>

namespace conclave::client {

uint32_t PromptIdLimit(const v1::GetModelResponse& model) {
  const auto& ends = model.eos_token_ids();
  if (ends.empty()) return model.vocab_size();
  const uint32_t first = *std::min_element(ends.begin(), ends.end());
  const bool at_the_end = first > 0 && first >= model.vocab_size() / 2;
  return at_the_end ? std::min(first, model.vocab_size()) : model.vocab_size();
}

v1::GenerateRequest MakeBenchRequest(const RequestShape& shape, uint64_t index) {
  // seed_seq takes 32 bits of each.
  std::seed_seq seeds{shape.seed, shape.seed >> 32, index, index >> 32};
  std::mt19937_64 random(seeds);
  v1::GenerateRequest request;
  auto* ids = request.mutable_prompt()->mutable_tokens()->mutable_ids();
  ids->Reserve(static_cast<int>(shape.input_len));
  for (uint32_t i = 0; i < shape.input_len; ++i) {
    ids->Add(static_cast<uint32_t>(random() % shape.id_limit));
  }
  request.mutable_sampling()->set_temperature(shape.temperature);
  request.mutable_sampling()->set_seed(shape.seed + index);
  request.mutable_stop()->set_max_tokens(shape.output_len);
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

}  // namespace conclave::client
