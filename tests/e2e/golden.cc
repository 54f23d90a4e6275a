#include "tests/e2e/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/grpc_status.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "tests/goldens/goldens.h"

namespace conclave::tests {
namespace {

void AddIds(const std::vector<int>& ids, v1::Prompt* input) {
  input->mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
}

void ExpectClose(const google::protobuf::RepeatedField<float>& found,
                 const std::vector<float>& wanted) {
  ASSERT_EQ(found.size(), static_cast<int>(wanted.size()));
  for (int i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], wanted[i], 1e-4 * std::max(1.0F, std::abs(wanted[i])));
  }
}

}  // namespace

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

void ExpectSequenceGoldens(const std::shared_ptr<grpc::Channel>& channel, const std::string& head) {
  const auto cases = goldens::LoadSequenceClassifications();
  v1::ClassifySequenceRequest request;
  request.set_head(head);
  for (const auto& golden : cases) AddIds(golden.ids, request.add_inputs());
  v1::ClassifySequenceResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      v1::ClassificationService::NewStub(channel)->ClassifySequence(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.results_size(), static_cast<int>(cases.size()));
  for (int i = 0; i < response.results_size(); ++i) {
    google::protobuf::RepeatedField<float> logits;
    for (const auto& label : response.results(i).labels()) logits.Add(label.logit());
    ExpectClose(logits, cases[i].logits.front());
  }
}

void ExpectTokenGoldens(const std::shared_ptr<grpc::Channel>& channel, const std::string& head) {
  const auto cases = goldens::LoadTokenClassifications();
  v1::ClassifyTokensRequest request;
  request.set_head(head);
  for (const auto& golden : cases) AddIds(golden.ids, request.add_inputs());
  v1::ClassifyTokensResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      v1::ClassificationService::NewStub(channel)->ClassifyTokens(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.results_size(), static_cast<int>(cases.size()));
  for (int i = 0; i < response.results_size(); ++i) {
    ASSERT_EQ(response.results(i).tokens_size(), static_cast<int>(cases[i].logits.size()));
    for (int t = 0; t < response.results(i).tokens_size(); ++t) {
      ExpectClose(response.results(i).tokens(t).logits(), cases[i].logits[t]);
    }
  }
}

}  // namespace conclave::tests
