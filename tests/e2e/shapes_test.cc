// Guarantee 4: greedy output does not depend on the number of ranks, the parallel shape, chunked
// prefill, the exchange mode or what else is in the batch. Real processes over Gloo.
//
// By default a pairwise cover of shape, chunk length and exchange mode; with CONCLAVE_FULL=1 their
// whole product; under sanitizers three shapes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

struct Variant {
  int dp = 1;
  int tp = 1;
  int chunk = 0;  // tokens of a prefill chunk; 0: the whole prompt
  std::string exchange = "auto";
};

std::string Name(const Variant& v) {
  return "dp" + std::to_string(v.dp) + "_tp" + std::to_string(v.tp) + "_chunk" +
         (v.chunk == 0 ? "whole" : std::to_string(v.chunk)) + "_" + v.exchange;
}

bool IsSet(const char* name) { return std::getenv(name) != nullptr; }

std::vector<std::pair<int, int>> Shapes() {
  if (IsSet("CONCLAVE_SANITIZER")) return {{1, 1}, {3, 1}, {2, 2}};
  return {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {8, 1}, {1, 2}, {2, 2}, {4, 2}};
}

std::vector<Variant> Variants() {
  const std::vector<int> chunks = {0, 1, 7, 64};
  const std::vector<std::string> modes = {"fixed", "exact"};
  const bool sanitized = IsSet("CONCLAVE_SANITIZER");
  std::vector<Variant> variants;
  const auto shapes = Shapes();
  for (size_t s = 0; s < shapes.size(); ++s) {
    for (size_t c = 0; c < chunks.size(); ++c) {
      for (size_t m = 0; m < modes.size(); ++m) {
        // Every pair of values is met: (shape, chunk) always, the mode alternates along both.
        // Under sanitizers every second (shape, chunk), with both modes.
        const bool covered =
            sanitized ? (s + c) % 2 == 0 && (s + c / 2) % 2 == m : (s + c) % 2 == m;
        if (!covered && !IsSet("CONCLAVE_FULL")) continue;
        variants.push_back({shapes[s].first, shapes[s].second, chunks[c], modes[m]});
      }
    }
  }
  if (!sanitized) {
    for (int chunk : chunks) variants.push_back({1, 2, chunk, "replicated"});
  }
  return variants;
}

ServerOptions Options(const Variant& v) {
  ServerOptions options;
  options.workers = v.dp * v.tp;
  options.dp = v.dp;
  options.tp = v.tp;
  options.args = {"--exchange", v.exchange,
                  "--head",     "mood=demo/tiny_gpt_oss/head_sequence",
                  "--head",     "ner=demo/tiny_gpt_oss/head_token"};
  if (v.chunk > 0) {
    options.args.insert(options.args.end(), {"--prefill-chunk", std::to_string(v.chunk)});
  }
  return options;
}

constexpr int kNewTokens = 24;

// The golden prompts, then 32 random ones of up to 232 tokens.
std::vector<Tokens> Prompts() {
  std::vector<Tokens> prompts;
  for (const GoldenCase& golden : LoadGoldens()) prompts.push_back(golden.prompt);
  for (const Tokens& prompt : RandomPrompts(32, 232)) prompts.push_back(prompt);
  return prompts;
}

// What one rank generates for each prompt, whole and alone; where Transformers' answer is known, it
// is the same.
const std::vector<Tokens>& Reference(const std::vector<Tokens>& prompts) {
  static const std::vector<Tokens> reference = [&prompts] {
    Server server(Options({}));
    EXPECT_TRUE(server.WaitServing()) << server.log();
    std::vector<Tokens> all;
    for (const Tokens& prompt : prompts) {
      auto tokens = GenerateOne(server.channel(), GreedyRequest(prompt, kNewTokens));
      EXPECT_TRUE(tokens.ok()) << tokens.status();
      all.push_back(tokens.ok() ? *tokens : Tokens());
    }
    const std::vector<GoldenCase> goldens = LoadGoldens();
    for (size_t i = 0; i < goldens.size(); ++i) {
      Tokens known = all[i];
      known.resize(std::min(known.size(), goldens[i].greedy.size()));
      EXPECT_EQ(known, goldens[i].greedy) << "golden prompt of " << prompts[i].size();
    }
    return all;
  }();
  return reference;
}

class ShapesTest : public ::testing::TestWithParam<Variant> {};

TEST_P(ShapesTest, GreedyOutputAndHeadLogitsAreThoseOfOneRank) {
  const std::vector<Tokens> prompts = Prompts();
  const std::vector<Tokens>& reference = Reference(prompts);
  Server server(Options(GetParam()));
  ASSERT_TRUE(server.WaitServing()) << server.log();
  for (size_t i = 0; i < LoadGoldens().size(); ++i) {
    auto alone = GenerateOne(server.channel(), GreedyRequest(prompts[i], kNewTokens));
    ASSERT_TRUE(alone.ok()) << alone.status() << "\n" << server.log();
    EXPECT_EQ(*alone, reference[i]) << "alone, prompt of " << prompts[i].size();
  }
  const auto together = GenerateTogether(server.channel(), prompts, kNewTokens);
  ASSERT_TRUE(together.ok()) << together.status() << "\n" << server.log();
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ((*together)[i], reference[i]) << "in the batch, prompt of " << prompts[i].size();
  }
  ExpectSequenceGoldens(server.channel(), "mood");
  ExpectTokenGoldens(server.channel(), "");
}

INSTANTIATE_TEST_SUITE_P(Cover, ShapesTest, ::testing::ValuesIn(Variants()),
                         [](const auto& variant) { return Name(variant.param); });

}  // namespace
}  // namespace conclave::tests
