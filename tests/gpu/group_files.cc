#include "tests/gpu/group_files.h"

#include <fstream>

#include "gtest/gtest.h"

namespace conclave::gpu {

using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;
using internal::v1::EXCHANGE_MODE_UNSPECIFIED;
using internal::v1::ExchangeMode;
using worker::TestRequest;
using worker::TestResult;

Json ToJson(const std::vector<TestRequest>& requests) {
  Json out = Json::array();
  for (const TestRequest& request : requests) {
    out.push_back({{"prompt", request.prompt},
                   {"max_tokens", request.max_tokens},
                   {"head", request.head},
                   {"forced", request.forced_expert_ids}});
    std::vector<int> bytes;
    for (char c : request.sampling.SerializeAsString()) bytes.push_back(c);
    out.back()["sampling"] = bytes;
  }
  return out;
}

std::vector<TestRequest> RequestsFrom(const Json& json) {
  std::vector<TestRequest> out;
  for (const Json& item : json) {
    TestRequest& request = out.emplace_back();
    item.at("prompt").get_to(request.prompt);
    item.at("max_tokens").get_to(request.max_tokens);
    item.at("head").get_to(request.head);
    item.at("forced").get_to(request.forced_expert_ids);
    std::string bytes;
    for (const Json& byte : item.at("sampling")) bytes += static_cast<char>(byte.get<int>());
    EXPECT_TRUE(request.sampling.ParseFromString(bytes));
  }
  return out;
}

Json ToJson(const std::vector<TestResult>& results) {
  Json out = Json::array();
  for (const TestResult& result : results) {
    out.push_back({{"tokens", result.tokens},
                   {"logprobs", result.logprobs},
                   {"top", result.top},
                   {"head_logits", result.head_logits}});
  }
  return out;
}

std::vector<TestResult> ResultsFrom(const Json& json) {
  std::vector<TestResult> out;
  for (const Json& item : json) {
    TestResult& result = out.emplace_back();
    item.at("tokens").get_to(result.tokens);
    item.at("logprobs").get_to(result.logprobs);
    item.at("top").get_to(result.top);
    item.at("head_logits").get_to(result.head_logits);
  }
  return out;
}

Json ReadJson(const std::filesystem::path& path) {
  std::ifstream file(path);
  return Json::parse(file, nullptr, /*allow_exceptions=*/false);
}

std::vector<ExchangeMode> ModesOf(const model::ParallelShape& shape) {
  if (shape.world() == 1) return {EXCHANGE_MODE_UNSPECIFIED};
  std::vector<ExchangeMode> modes = {EXCHANGE_MODE_FIXED, EXCHANGE_MODE_EXACT};
  if (shape.dp == 1) modes.push_back(EXCHANGE_MODE_REPLICATED);
  return modes;
}

std::string NameOf(ExchangeMode mode) {
  return mode == EXCHANGE_MODE_FIXED        ? "fixed"
         : mode == EXCHANGE_MODE_EXACT      ? "exact"
         : mode == EXCHANGE_MODE_REPLICATED ? "replicated"
                                            : "one rank";
}

}  // namespace conclave::gpu
