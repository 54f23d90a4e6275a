// One rank against the goldens: what Transformers computes from the same checkpoint in float32.

#include "worker/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <span>

#include "tests/goldens/goldens.h"
#include "worker/transformer_harness.h"
#include "worker/transformer_test_driver.h"

namespace conclave::worker {
namespace {

using goldens::LogSumExp;
using goldens::RelativeL2;

constexpr auto kMode = internal::v1::EXCHANGE_MODE_UNSPECIFIED;
constexpr int kWhole = 256;  // a chunk that takes any prompt of the tiny model

std::unique_ptr<TransformerHarness> OneRank() {
  const std::string dir = goldens::TinyModelDir();
  auto harness = TransformerHarness::Create(
      {.model_dir = dir,
       .heads = {{"sequence", dir + "/head_sequence"}, {"token", dir + "/head_token"}}});
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
}

double Norm(std::span<const float> values) {
  double sum = 0;
  for (float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

class TransformerTest : public testing::Test {
 protected:
  void SetUp() override {
    harness_ = OneRank();
    ASSERT_NE(harness_, nullptr);
  }

  // Trace of a whole prompt as one chunk.
  Transformer::Trace TracePrompt(const std::vector<int>& prompt) {
    GroupDriver driver(harness_->config(), harness_->options(), kWhole);
    driver.Add({.prompt = prompt});
    ResolvedStep step;
    auto trace = harness_->Trace(driver.Next(), step);
    EXPECT_TRUE(trace.ok()) << trace.status();
    auto freed = harness_->Step({driver.Next()}, kMode, 0);
    EXPECT_TRUE(freed.ok()) << freed.status();
    return trace.ok() ? *std::move(trace) : Transformer::Trace();
  }

  std::vector<TestResult> Run(const std::vector<TestRequest>& requests, int chunk) {
    auto results = RunRequests(*harness_, requests, chunk, kMode);
    EXPECT_TRUE(results.ok()) << results.status();
    return results.ok() ? *std::move(results) : std::vector<TestResult>(requests.size());
  }

  std::unique_ptr<TransformerHarness> harness_;
  const std::vector<goldens::Generation> goldens_ = goldens::LoadGenerations();
};

TEST_F(TransformerTest, LogitsAreThoseOfTheReferenceAtEveryPosition) {
  const size_t vocab = harness_->config().vocab_size;
  for (const goldens::Generation& golden : goldens_) {
    SCOPED_TRACE(testing::Message() << "prompt of " << golden.prompt.size());
    const Transformer::Trace trace = TracePrompt(golden.prompt);
    ASSERT_EQ(trace.logits.size(), golden.prompt.size() * vocab);
    const std::span<const float> logits(trace.logits);
    const double error = RelativeL2(logits.last(vocab), golden.last_logits);
    EXPECT_LE(error, 1e-4);
    double worst = 0;
    for (size_t at = 0; at < golden.prompt.size(); ++at) {
      const auto row = logits.subspan(at * vocab, vocab);
      worst = std::max(worst, std::abs(LogSumExp(row) - golden.logsumexp[at]));
      const auto best = std::max_element(row.begin(), row.end()) - row.begin();
      EXPECT_EQ(best, golden.argmax[at]) << "position " << at;
    }
    EXPECT_LE(worst, 1e-4);
    std::printf("prompt %zu: last logits rel L2 %.2e, log-sum-exp %.2e\n", golden.prompt.size(),
                error, worst);
  }
}

TEST_F(TransformerTest, HiddenStatesHaveTheReferencesNormAfterEachLayer) {
  const size_t hidden = harness_->config().hidden_size;
  const size_t layers = harness_->config().num_layers;
  for (const goldens::Generation& golden : goldens_) {
    SCOPED_TRACE(testing::Message() << "prompt of " << golden.prompt.size());
    const Transformer::Trace trace = TracePrompt(golden.prompt);
    ASSERT_EQ(trace.hidden.size(), layers + 2);
    ASSERT_EQ(golden.hidden_norms.size(), layers + 1);
    for (size_t i = 0; i <= layers; ++i) {
      // The reference keeps the last layer's output only after the final norm.
      const std::vector<float>& state = trace.hidden[i < layers ? i : layers + 1];
      const double norm = Norm(std::span(state).last(hidden));
      EXPECT_NEAR(norm, golden.hidden_norms[i], 2e-5 * golden.hidden_norms[i]) << "state " << i;
    }
  }
}

std::vector<int> Prefix(const std::vector<int>& tokens, size_t size) {
  return {tokens.begin(), tokens.begin() + std::min(size, tokens.size())};
}

TEST_F(TransformerTest, GreedyContinuationsAreTheReferences) {
  for (const goldens::Generation& golden : goldens_) {
    const auto results = Run({{.prompt = golden.prompt, .max_tokens = 24}}, kWhole);
    ASSERT_EQ(results[0].tokens.size(), 24u);
    const size_t steps = golden.arg_max_steps;
    EXPECT_EQ(Prefix(results[0].tokens, steps), Prefix(golden.greedy, steps))
        << "prompt of " << golden.prompt.size();
  }
}

// Fed with the reference's own continuation, whatever was chosen in it.
TEST_F(TransformerTest, EveryStepOfTheReferencesContinuationHasItsMargin) {
  const int64_t vocab = harness_->config().vocab_size;
  for (const goldens::Generation& golden : goldens_) {
    SCOPED_TRACE(testing::Message() << "prompt of " << golden.prompt.size());
    std::vector<int> tokens = golden.prompt;
    tokens.insert(tokens.end(), golden.greedy.begin(), golden.greedy.end() - 1);
    const auto logits = TraceLogits(*harness_, {tokens}, kWhole);
    ASSERT_TRUE(logits.ok()) << logits.status();
    for (size_t step = 0; step < golden.greedy.size(); ++step) {
      const int64_t at = static_cast<int64_t>(golden.prompt.size() - 1 + step) * vocab;
      const std::vector<float> row((*logits)[0].begin() + at, (*logits)[0].begin() + at + vocab);
      std::vector<float> sorted = row;
      std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
      EXPECT_NEAR(sorted[0] - sorted[1], golden.greedy_margin[step], 1e-4) << "step " << step;
      const float chosen = row[golden.greedy[step]];
      if (step < golden.arg_max_steps) {
        EXPECT_EQ(chosen, sorted[0]) << "step " << step;
      } else if (step == golden.arg_max_steps) {
        EXPECT_LT(chosen, sorted[0] - 0.1) << "the arg_max_steps of this case are out of date";
      }
    }
  }
}

TEST_F(TransformerTest, GreedyContinuationsDoNotDependOnChunksOrOnTheBatch) {
  std::vector<TestRequest> requests;
  std::vector<std::vector<int>> alone;
  for (const goldens::Generation& golden : goldens_) {
    requests.push_back({.prompt = golden.prompt, .max_tokens = 24});
    alone.push_back(Run({requests.back()}, kWhole)[0].tokens);
    ASSERT_EQ(alone.back().size(), 24u);
  }
  for (int chunk : {1, 7, 64, kWhole}) {
    const auto results = Run(requests, chunk);
    for (size_t i = 0; i < goldens_.size(); ++i) {
      EXPECT_EQ(results[i].tokens, alone[i]) << "chunk " << chunk << " case " << i;
    }
  }
}

TEST_F(TransformerTest, LogitsHaveTheSameBitsInAnyChunkingAndBatch) {
  std::vector<std::vector<int>> prompts;
  std::vector<std::vector<float>> alone;
  for (const goldens::Generation& golden : goldens_) {
    prompts.push_back(golden.prompt);
    const auto logits = TraceLogits(*harness_, {golden.prompt}, kWhole);
    ASSERT_TRUE(logits.ok()) << logits.status();
    alone.push_back((*logits)[0]);
    ASSERT_EQ(alone.back().size(), golden.prompt.size() * harness_->config().vocab_size);
  }
  for (int chunk : {1, 7, 64, kWhole}) {
    const auto together = TraceLogits(*harness_, prompts, chunk);
    ASSERT_TRUE(together.ok()) << together.status();
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_TRUE((*together)[i] == alone[i]) << "chunk " << chunk << " case " << i;
    }
  }
}

TEST_F(TransformerTest, SequenceHeadLogitsAreThoseOfTheReference) {
  for (const goldens::Classification& golden : goldens::LoadSequenceClassifications()) {
    const auto results = Run({{.prompt = golden.ids, .head = 0}}, 7);
    const size_t labels = golden.logits[0].size();
    ASSERT_EQ(results[0].head_logits.size(), golden.ids.size() * labels);
    const auto last = std::span(results[0].head_logits).last(labels);
    for (size_t i = 0; i < labels; ++i) EXPECT_NEAR(last[i], golden.logits[0][i], 1e-4);
  }
}

TEST_F(TransformerTest, TokenHeadLogitsAreThoseOfTheReference) {
  for (const goldens::Classification& golden : goldens::LoadTokenClassifications()) {
    const auto results = Run({{.prompt = golden.ids, .head = 1}}, 7);
    const size_t labels = golden.logits[0].size();
    ASSERT_EQ(golden.logits.size(), golden.ids.size());
    ASSERT_EQ(results[0].head_logits.size(), golden.ids.size() * labels);
    for (size_t at = 0; at < golden.ids.size(); ++at) {
      for (size_t i = 0; i < labels; ++i) {
        EXPECT_NEAR(results[0].head_logits[at * labels + i], golden.logits[at][i], 1e-4);
      }
    }
  }
}

TEST_F(TransformerTest, GenerationAndBothHeadsShareAStep) {
  const goldens::Generation& generation = goldens_[2];
  const goldens::Classification sequence = goldens::LoadSequenceClassifications()[0];
  const goldens::Classification token = goldens::LoadTokenClassifications()[0];
  const auto together = Run({{.prompt = generation.prompt, .max_tokens = 24},
                             {.prompt = sequence.ids, .head = 0},
                             {.prompt = token.ids, .head = 1}},
                            7);
  EXPECT_EQ(together[0].tokens, generation.greedy);
  EXPECT_EQ(together[1].head_logits, Run({{.prompt = sequence.ids, .head = 0}}, 7)[0].head_logits);
  EXPECT_EQ(together[2].head_logits, Run({{.prompt = token.ids, .head = 1}}, 7)[0].head_logits);
}

TEST_F(TransformerTest, LogProbabilitiesAreThoseOfTheReferenceLogits) {
  for (const goldens::Generation& golden : goldens_) {
    TestRequest request = {.prompt = golden.prompt, .max_tokens = 1};
    request.sampling.set_logprobs(5);
    const auto results = Run({request}, kWhole);
    ASSERT_EQ(results[0].top[0].size(), 5u);
    const double all = LogSumExp(golden.last_logits);
    EXPECT_NEAR(results[0].logprobs[0], golden.last_logits[golden.greedy[0]] - all, 1e-4);
    for (size_t i = 0; i < 5; ++i) {
      const auto [id, logprob] = results[0].top[0][i];
      EXPECT_NEAR(logprob, golden.last_logits[id] - all, 1e-4);
      if (i > 0) {
        EXPECT_LE(logprob, results[0].top[0][i - 1].second);
      }
    }
    EXPECT_EQ(results[0].top[0][0].first, golden.greedy[0]);
  }
}

TEST_F(TransformerTest, PromptLogProbabilitiesAreOfEachNextTokenInAnyChunking) {
  const size_t vocab = harness_->config().vocab_size;
  for (const goldens::Generation& golden : goldens_) {
    if (golden.prompt.size() < 2) continue;
    const Transformer::Trace trace = TracePrompt(golden.prompt);
    const auto whole = Run({{.prompt = golden.prompt, .max_tokens = 1, .prompt_logprobs = 2}}, 256);
    ASSERT_EQ(whole[0].prompt_logprobs.size(), golden.prompt.size() - 1);
    ASSERT_EQ(whole[0].prompt_top.size(), 2 * (golden.prompt.size() - 1));
    for (size_t at = 0; at + 1 < golden.prompt.size(); ++at) {
      const float logit = trace.logits[at * vocab + golden.prompt[at + 1]];
      EXPECT_NEAR(whole[0].prompt_logprobs[at], logit - golden.logsumexp[at], 2e-4) << at;
      EXPECT_EQ(whole[0].prompt_top[2 * at], golden.argmax[at]) << at;
    }
    for (int chunk : {1, 7}) {
      const auto parts =
          Run({{.prompt = golden.prompt, .max_tokens = 1, .prompt_logprobs = 2}}, chunk);
      EXPECT_EQ(parts[0].prompt_logprobs, whole[0].prompt_logprobs) << chunk;
      EXPECT_EQ(parts[0].prompt_top, whole[0].prompt_top) << chunk;
      EXPECT_EQ(parts[0].tokens, whole[0].tokens) << chunk;
    }
  }
}

// Each token is the largest of the model's logits, changed by a count made here. The model never
// repeats a token by itself, so they favour what was seen.
TEST_F(TransformerTest, PenaltiesCountThePromptAndWhatWasGenerated) {
  const std::vector<int>& prompt = goldens_[2].prompt;
  const size_t vocab = harness_->config().vocab_size;
  TestRequest request = {.prompt = prompt, .max_tokens = 24};
  constexpr float kRepetition = 0.7f;
  constexpr float kPresence = -0.5f;
  constexpr float kFrequency = 0.25f;
  request.sampling.set_repetition_penalty(kRepetition);
  request.sampling.set_presence_penalty(kPresence);
  request.sampling.set_frequency_penalty(kFrequency);
  request.sampling.set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
  const std::vector<int> tokens = Run({request}, 7)[0].tokens;
  ASSERT_EQ(tokens.size(), 24u);
  EXPECT_NE(tokens, goldens_[2].greedy);

  std::vector<int> all = prompt;
  all.insert(all.end(), tokens.begin(), tokens.end() - 1);
  const auto logits = TraceLogits(*harness_, {all}, kWhole);
  ASSERT_TRUE(logits.ok()) << logits.status();
  for (size_t step = 0; step < tokens.size(); ++step) {
    const size_t end = prompt.size() + step;
    std::vector<float> row((*logits)[0].begin() + (end - 1) * vocab,
                           (*logits)[0].begin() + end * vocab);
    for (size_t id = 0; id < vocab; ++id) {
      const auto generated = std::count(all.begin() + prompt.size(), all.begin() + end, id);
      if (generated == 0 && std::count(prompt.begin(), prompt.end(), id) == 0) continue;
      row[id] = row[id] > 0 ? row[id] / kRepetition : row[id] * kRepetition;
      row[id] -= kFrequency * static_cast<float>(generated) + (generated > 0 ? kPresence : 0.0f);
    }
    ASSERT_EQ(tokens[step], std::max_element(row.begin(), row.end()) - row.begin()) << step;
  }

  // As after a preemption: what was generated comes with the prompt, and still counts as such.
  TestRequest back = request;
  back.prompt.insert(back.prompt.end(), tokens.begin(), tokens.begin() + 10);
  back.max_tokens = 14;
  EXPECT_EQ(Run({back}, 64)[0].tokens, std::vector<int>(tokens.begin() + 10, tokens.end()));
}

TEST_F(TransformerTest, NoEndTokenIsDrawnBeforeItMayBe) {
  TestRequest request = {.prompt = goldens_[1].prompt, .max_tokens = 24};
  const auto prompt = static_cast<uint32_t>(request.prompt.size());
  request.sampling.set_temperature(1);
  request.sampling.set_seed(3);
  for (uint32_t id = 0; id < 500; ++id) request.sampling.add_end_tokens(id);
  request.sampling.set_first_end_position(prompt + 10);
  const std::vector<int> tokens = Run({request}, kWhole)[0].tokens;
  ASSERT_EQ(tokens.size(), 24u);
  EXPECT_THAT(std::span(tokens).first(10), testing::Each(testing::Ge(500)));
  EXPECT_THAT(std::span(tokens).last(14), testing::Contains(testing::Lt(500)));
}

TEST_F(TransformerTest, SlidingBlocksStayConstantPastTheWindow) {
  GroupDriver driver(harness_->config(), harness_->options(), 1);
  driver.Add({.prompt = goldens_[3].prompt, .max_tokens = 24});
  for (bool done = false; !done;) {
    done = driver.Done();  // the last plan only frees
    const auto outputs = harness_->Step({driver.Next()}, kMode, 0);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    driver.Absorb((*outputs)[0]);
  }
  const auto whole = Run({{.prompt = goldens_[3].prompt, .max_tokens = 24}}, kWhole);
  EXPECT_EQ(driver.results()[0].tokens, whole[0].tokens);
  EXPECT_EQ(driver.most_sliding_blocks(), 2) << "a window of 16 lies in at most two blocks";
}

TEST_F(TransformerTest, CacheBytesAreThoseOfItsBlocks) {
  const model::Config& config = harness_->config();
  const int64_t token = 2 * int64_t{config.num_kv_heads} * config.head_dim * sizeof(float);
  EXPECT_EQ(harness_->transformer(0).kv_bytes(), 4 * 128 * 16 * token) << "4 layers, 128 blocks";
}

TEST_F(TransformerTest, AnAbortEndsAStepBetweenItsLayers) {
  int layers = 0;
  auto harness = TransformerHarness::Create(
      {.model_dir = goldens::TinyModelDir(), .aborted = [&] { return ++layers > 2; }});
  ASSERT_TRUE(harness.ok()) << harness.status();
  GroupDriver driver((*harness)->config(), (*harness)->options(), 64);
  driver.Add({.prompt = goldens_[0].prompt, .max_tokens = 1});
  const auto outputs = (*harness)->Step({driver.Next()}, kMode, 0);
  EXPECT_EQ(outputs.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(layers, 3);
}

TEST_F(TransformerTest, ATraceCanGiveEachLayerItsInput) {
  const model::Config& config = harness_->config();
  GroupDriver driver(config, harness_->options(), kWhole);
  driver.Add({.prompt = goldens_[2].prompt});
  ResolvedStep step;
  const auto own = harness_->Trace(driver.Next(), step);
  ASSERT_TRUE(own.ok()) << own.status();
  ASSERT_EQ(own->expert_ids.size(), static_cast<size_t>(config.num_layers));
  ASSERT_EQ(own->normed.size(), own->expert_ids.size());
  for (size_t layer = 0; layer < own->expert_ids.size(); ++layer) {
    EXPECT_EQ(own->normed[layer].size(), step.token_ids.size() * config.hidden_size);
    EXPECT_EQ(own->expert_ids[layer].size(), step.token_ids.size() * config.experts_per_token);
    EXPECT_EQ(own->expert_weights[layer].size(), own->expert_ids[layer].size());
  }

  std::vector<std::vector<float>> inputs(own->hidden.begin(), own->hidden.end() - 2);
  const auto same = harness_->transformer(0).TraceStep(step, inputs);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->hidden, own->hidden);
  EXPECT_EQ(same->logits, own->logits);

  for (float& value : inputs[1]) value *= 2;
  const auto changed = harness_->transformer(0).TraceStep(step, inputs);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->hidden[1], own->hidden[1]);
  EXPECT_NE(changed->hidden[2], own->hidden[2]) << "layer 1 read something else";
  EXPECT_EQ(changed->hidden[3], own->hidden[3]) << "layer 2 did not";
}

// Experts of every position and layer: `ids` rotated by position and layer.
std::vector<uint32_t> ForcedIds(const model::Config& config, int positions, bool reversed) {
  std::vector<uint32_t> out;
  for (int position = 0; position < positions; ++position) {
    for (int layer = 0; layer < config.num_layers; ++layer) {
      for (int j = 0; j < config.experts_per_token; ++j) {
        const int choice = reversed ? config.experts_per_token - 1 - j : j;
        out.push_back((position * 5 + layer * 3 + choice * 4) % config.num_experts);
      }
    }
  }
  return out;
}

TEST_F(TransformerTest, ForcedRoutingReachesEachLayerAndEndsWithItsPositions) {
  const std::vector<int>& prompt = goldens_[2].prompt;
  const int positions = static_cast<int>(prompt.size());
  const auto forced = [&](bool reversed) {
    return TestRequest{.prompt = prompt,
                       .max_tokens = 12,
                       .forced_expert_ids = ForcedIds(harness_->config(), positions, reversed)};
  };
  const std::vector<uint64_t> before = harness_->transformer(0).ExpertLoad();
  const auto straight = Run({forced(false)}, 7);
  std::vector<uint64_t> load = harness_->transformer(0).ExpertLoad();
  const int experts = harness_->config().num_experts;
  std::vector<uint64_t> want(load.size());
  const std::vector<uint32_t> ids = ForcedIds(harness_->config(), positions, false);
  const int k = harness_->config().experts_per_token;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t layer = i / k % harness_->config().num_layers;
    ++want[layer * experts + ids[i]];
  }
  uint64_t decoded = 0;  // by the router, on top of the forced ones
  for (size_t i = 0; i < load.size(); ++i) {
    ASSERT_GE(load[i] - before[i], want[i]) << i;
    decoded += load[i] - before[i] - want[i];
  }
  EXPECT_EQ(decoded, 11u * k * harness_->config().num_layers);
  EXPECT_NE(straight[0].tokens, Run({{.prompt = prompt, .max_tokens = 12}}, 7)[0].tokens);
  EXPECT_EQ(straight[0].tokens, Run({forced(true)}, 64)[0].tokens) << "the order is of no account";
}

TEST_F(TransformerTest, ATraceOfMoreRowsThanAgreedIsInternal) {
  ResolvedStep step;
  step.token_ids.assign(harness_->options().max_step_tokens + 1, 0);
  const auto output = harness_->transformer(0).Step(step, kMode, 0);
  EXPECT_EQ(output.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(output.status().message()), testing::HasSubstr("257 rows, at most 256"));
}

}  // namespace
}  // namespace conclave::worker
