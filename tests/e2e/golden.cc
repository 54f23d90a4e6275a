#include "tests/e2e/golden.h"

#include <random>

#include "base/grpc_status.h"
#include "tests/goldens/goldens.h"

namespace conclave::tests {

std::vector<GoldenCase> LoadGoldens() {
  std::vector<GoldenCase> cases;
  for (const goldens::Generation& golden : goldens::LoadGenerations()) {
    const auto end = golden.greedy.begin() + static_cast<std::ptrdiff_t>(golden.arg_max_steps);
    cases.push_back(
        {Tokens(golden.prompt.begin(), golden.prompt.end()), Tokens(golden.greedy.begin(), end)});
  }
  return cases;
}

std::vector<Tokens> RandomPrompts(int count, int max_length) {
  std::mt19937 random(20240805);
  std::vector<Tokens> prompts(count);
  for (Tokens& prompt : prompts) {
    prompt.resize(1 + random() % max_length);
    for (uint32_t& token : prompt) token = random() % 496;
  }
  return prompts;
}

v1::GenerateRequest GreedyRequest(const Tokens& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_prompt()->mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(static_cast<uint32_t>(max_tokens));
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

absl::StatusOr<Tokens> GenerateOne(const std::shared_ptr<grpc::Channel>& channel,
                                   const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  auto reader = v1::GenerationService::NewStub(channel)->Generate(&context, request);
  Tokens tokens;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return base::FromGrpc(status);
  return tokens;
}

absl::StatusOr<std::vector<Tokens>> GenerateTogether(const std::shared_ptr<grpc::Channel>& channel,
                                                     const std::vector<Tokens>& prompts,
                                                     int max_tokens) {
  v1::GenerateBatchRequest batch;
  for (const Tokens& prompt : prompts) *batch.add_requests() = GreedyRequest(prompt, max_tokens);
  v1::GenerateBatchResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      v1::GenerationService::NewStub(channel)->GenerateBatch(&context, batch, &response);
  if (!status.ok()) return base::FromGrpc(status);
  std::vector<Tokens> all;
  for (const auto& result : response.results()) {
    all.emplace_back(result.tokens().begin(), result.tokens().end());
  }
  return all;
}

}  // namespace conclave::tests
