#include "tests/goldens/goldens.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/check.h"

namespace conclave::goldens {
namespace {

// Bazel starts tests in the root of their runfiles.
nlohmann::json LoadCases(const std::string& name) {
  std::ifstream file("tests/goldens/" + name);
  CONCLAVE_CHECK(file.is_open());
  nlohmann::json json = nlohmann::json::parse(file);
  CONCLAVE_CHECK(json.at("cases").size() > 0);
  return json.at("cases");
}

}  // namespace

std::vector<Generation> LoadGenerations() {
  std::vector<Generation> out;
  for (const nlohmann::json& json : LoadCases("goldens.json")) {
    Generation& golden = out.emplace_back();
    json.at("prompt").get_to(golden.prompt);
    json.at("last_logits").get_to(golden.last_logits);
    json.at("argmax_every_position").get_to(golden.argmax);
    json.at("logsumexp_every_position").get_to(golden.logsumexp);
    json.at("greedy").get_to(golden.greedy);
    json.at("greedy_margin").get_to(golden.greedy_margin);
    json.at("hidden_norm_per_layer").get_to(golden.hidden_norms);
    golden.arg_max_steps = golden.prompt.size() == 100 ? 1 : golden.greedy.size();
  }
  return out;
}

std::vector<Classification> LoadSequenceClassifications() {
  std::vector<Classification> out;
  for (const nlohmann::json& json : LoadCases("goldens_sequence_classification.json")) {
    Classification& golden = out.emplace_back();
    json.at("ids").get_to(golden.ids);
    json.at("logits").get_to(golden.logits.emplace_back());
  }
  return out;
}

std::vector<Classification> LoadTokenClassifications() {
  std::vector<Classification> out;
  for (const nlohmann::json& json : LoadCases("goldens_token_classification.json")) {
    Classification& golden = out.emplace_back();
    json.at("ids").get_to(golden.ids);
    json.at("logits").get_to(golden.logits);
  }
  return out;
}

double RelativeL2(std::span<const float> got, std::span<const float> want) {
  CONCLAVE_CHECK(got.size() == want.size());
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    norm += double{want[i]} * want[i];
  }
  return std::sqrt(error / norm);
}

double LogSumExp(std::span<const float> logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit} - most);
  return most + std::log(sum);
}

std::string TinyModelDir() { return "demo/tiny_gpt_oss"; }

}  // namespace conclave::goldens
