#include "coordinator/translate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "coordinator/list_tokenizer_testing.h"

namespace conclave::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ServingModel Model() {
  ServingModel model;
  model.config.architecture = model::Architecture::kCausalLm;
  model.config.vocab_size = 512;
  model.config.context_length = 16;
  model.config.num_layers = 2;
  model.config.num_experts = 8;
  model.config.experts_per_token = 2;
  model.config.eos_token_ids = {498, 497};
  return model;
}

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  for (uint32_t id : {1, 2, 3}) request.mutable_prompt()->mutable_tokens()->add_ids(id);
  request.mutable_stop()->set_max_tokens(4);
  return request;
}

std::string Refusal(const v1::GenerateRequest& request, const ServingModel& model = Model()) {
  const absl::StatusOr<Request> translated = TranslateGenerate(model, request, "");
  if (translated.ok()) return "accepted";
  EXPECT_EQ(translated.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(translated.status().message());
}

TEST(TranslateTest, FillsDefaults) {
  const absl::StatusOr<Request> request = TranslateGenerate(Model(), Good(), "");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->tokens, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(request->max_tokens, 4);
  EXPECT_EQ(request->sampling.temperature(), 1.0F);
  EXPECT_EQ(request->sampling.top_p(), 1.0F);
  EXPECT_EQ(request->sampling.logprobs(), -1);
}

TEST(TranslateTest, MaxTokensPastTheContextIsCutNotRefused) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->set_max_tokens(std::numeric_limits<uint32_t>::max());
  const absl::StatusOr<Request> translated = TranslateGenerate(Model(), request, "");
  ASSERT_TRUE(translated.ok());
  EXPECT_EQ(translated->max_tokens, 16);
}

TEST(TranslateTest, PromptMustHaveAToken) {
  v1::GenerateRequest request = Good();
  request.clear_prompt();
  EXPECT_THAT(Refusal(request), HasSubstr("prompt is empty"));
  request.mutable_prompt()->mutable_tokens();
  EXPECT_THAT(Refusal(request), HasSubstr("prompt is empty"));
}

TEST(TranslateTest, TokenIdOutOfRangeIsNamedWithItsIndex) {
  v1::GenerateRequest request = Good();
  request.mutable_prompt()->mutable_tokens()->add_ids(512);
  EXPECT_THAT(Refusal(request), AllOf(HasSubstr("prompt.tokens.ids[3]"), HasSubstr("512")));
}

TEST(TranslateTest, PromptThatFillsTheContextIsRefusedAndOneTokenLessIsNot) {
  v1::GenerateRequest request = Good();
  while (request.prompt().tokens().ids_size() < 15) {
    request.mutable_prompt()->mutable_tokens()->add_ids(7);
  }
  EXPECT_EQ(Refusal(request), "accepted");
  request.mutable_prompt()->mutable_tokens()->add_ids(7);
  EXPECT_THAT(Refusal(request), AllOf(HasSubstr("prompt has 16 tokens"), HasSubstr("15")));
}

TEST(TranslateTest, MaxTokensZeroIsRefused) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->set_max_tokens(0);
  EXPECT_THAT(Refusal(request), HasSubstr("stop.max_tokens is 0"));
}

TEST(TranslateTest, SamplingOutOfRangeIsNamed) {
  for (float bad : {-0.5F, 101.0F, std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    v1::GenerateRequest request = Good();
    request.mutable_sampling()->set_temperature(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.temperature")) << bad;
  }
  for (float bad : {0.0F, -0.1F, 1.1F, std::numeric_limits<float>::quiet_NaN()}) {
    v1::GenerateRequest request = Good();
    request.mutable_sampling()->set_top_p(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.top_p")) << bad;
  }
  for (float bad : {-0.1F, 1.1F, std::numeric_limits<float>::quiet_NaN()}) {
    v1::GenerateRequest request = Good();
    request.mutable_sampling()->set_min_p(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.min_p")) << bad;
  }
}

TEST(TranslateTest, PenaltiesOutOfRangeAreNamed) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (float bad : {0.0F, 0.009F, -1.0F, 100.5F, kNan}) {
    v1::GenerateRequest request = Good();
    request.mutable_sampling()->set_repetition_penalty(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.repetition_penalty is")) << bad;
  }
  for (float bad : {-2.1F, 2.1F, kNan}) {
    v1::GenerateRequest request = Good();
    request.mutable_sampling()->set_presence_penalty(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.presence_penalty is")) << bad;
    request = Good();
    request.mutable_sampling()->set_frequency_penalty(bad);
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.frequency_penalty is")) << bad;
  }
}

TEST(TranslateTest, ABiasOutOfRangeIsNamedWithItsToken) {
  for (float bad : {-100.5F, 101.0F, std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    v1::GenerateRequest request = Good();
    (*request.mutable_sampling()->mutable_logit_bias())[7] = bad;
    EXPECT_THAT(Refusal(request), HasSubstr("sampling.logit_bias[7] is")) << bad;
  }
  v1::GenerateRequest request = Good();
  (*request.mutable_sampling()->mutable_logit_bias())[512] = 1;
  EXPECT_THAT(Refusal(request), HasSubstr("sampling.logit_bias has an entry for token 512"));
  request = Good();
  for (uint32_t id = 0; id < 1025; ++id)
    (*request.mutable_sampling()->mutable_logit_bias())[id] = 1;
  EXPECT_THAT(Refusal(request), HasSubstr("sampling.logit_bias has 1025 entries: at most 1024"));
}

TEST(TranslateTest, StopStringsAndMinTokensOutOfRangeAreNamed) {
  ServingModel model = Model();
  model.tokenizer = std::make_shared<const ListTokenizer>(std::vector<std::string>(512, "a"));
  v1::GenerateRequest request = Good();
  request.mutable_stop()->add_stop_strings("ok");
  EXPECT_EQ(Refusal(request, model), "accepted");
  EXPECT_EQ(TranslateGenerate(Model(), request, "").status().code(),
            absl::StatusCode::kFailedPrecondition);
  request.mutable_stop()->add_stop_strings("");
  EXPECT_THAT(Refusal(request, model), HasSubstr("stop.stop_strings[1] has 0 bytes"));
  request.mutable_stop()->set_stop_strings(1, std::string(257, 'x'));
  EXPECT_THAT(Refusal(request, model), HasSubstr("stop.stop_strings[1] has 257 bytes"));
  request = Good();
  for (int i = 0; i < 65; ++i) request.mutable_stop()->add_stop_strings("x");
  EXPECT_THAT(Refusal(request, model), HasSubstr("stop.stop_strings has 65 strings"));
  request = Good();
  request.mutable_stop()->set_min_tokens(5);
  EXPECT_THAT(Refusal(request), HasSubstr("stop.min_tokens is 5: at most max_tokens, 4"));
}

TEST(TranslateTest, MinTokensNamesWhatWouldEndTheSequence) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->set_min_tokens(2);
  for (uint32_t id : {9, 498}) request.mutable_stop()->add_stop_token_ids(id);
  const auto with_eos = TranslateGenerate(Model(), request, "");
  ASSERT_TRUE(with_eos.ok()) << with_eos.status();
  EXPECT_THAT(with_eos->sampling.end_tokens(), testing::ElementsAre(9, 497, 498));
  EXPECT_EQ(with_eos->sampling.first_end_position(), 5u);
  request.mutable_stop()->set_ignore_eos(true);
  const auto without = TranslateGenerate(Model(), request, "");
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_THAT(without->sampling.end_tokens(), testing::ElementsAre(9, 498));
}

TEST(TranslateTest, OptionsThatAreNotGivenChangeNothing) {
  const absl::StatusOr<Request> request = TranslateGenerate(Model(), Good(), "");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.repetition_penalty(), 1.0F);
  EXPECT_EQ(request->sampling.presence_penalty(), 0.0F);
  EXPECT_EQ(request->sampling.frequency_penalty(), 0.0F);
  EXPECT_TRUE(request->sampling.bias_tokens().empty());
  EXPECT_EQ(request->sampling.first_end_position(), 0u);
  EXPECT_EQ(request->stop_strings, nullptr);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_FALSE(request->echo);
}

TEST(TranslateTest, LogprobsAndStopIdsOutOfRangeAreNamed) {
  v1::GenerateRequest request = Good();
  request.set_logprobs(21);
  EXPECT_THAT(Refusal(request), HasSubstr("logprobs is 21"));
  request = Good();
  request.set_prompt_logprobs(22);
  EXPECT_THAT(Refusal(request), HasSubstr("prompt_logprobs is 22"));
  request = Good();
  request.mutable_stop()->add_stop_token_ids(600);
  EXPECT_THAT(Refusal(request), HasSubstr("stop.stop_token_ids[0] is 600"));
}

TEST(TranslateTest, ForcedRoutingNeedsTheFlagAndValidExperts) {
  v1::GenerateRequest request = Good();
  for (uint32_t id : {0, 1, 2, 3}) request.mutable_forced_routing()->add_expert_ids(id);
  EXPECT_EQ(TranslateGenerate(Model(), request, "").status().code(),
            absl::StatusCode::kFailedPrecondition);
  ServingModel model = Model();
  model.allow_forced_routing = true;
  EXPECT_EQ(Refusal(request, model), "accepted");
  request.mutable_forced_routing()->set_expert_ids(1, 8);
  EXPECT_THAT(Refusal(request, model), HasSubstr("forced_routing.expert_ids[1] is 8"));
  request.mutable_forced_routing()->set_expert_ids(1, 0);
  EXPECT_THAT(Refusal(request, model), HasSubstr("twice"));
  request.mutable_forced_routing()->add_expert_ids(0);
  EXPECT_THAT(Refusal(request, model), HasSubstr("5 entries"));
}

TEST(TranslateTest, TooManyStopIdsAreRefused) {
  v1::GenerateRequest request = Good();
  for (uint32_t id = 0; id < 129; ++id) request.mutable_stop()->add_stop_token_ids(id);
  EXPECT_THAT(Refusal(request), HasSubstr("stop.stop_token_ids has 129 ids"));
}

TEST(TranslateTest, EmptyAndTooLargeBatchesAreRefusedWithTheirSize) {
  EXPECT_TRUE(CheckBatchSize("inputs", kMaxBatch).ok());
  EXPECT_EQ(CheckBatchSize("inputs", 0).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status large = CheckBatchSize("inputs", kMaxBatch + 1);
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(large.message()), HasSubstr("inputs has 16385 entries: at most 16384"));
}

TEST(TranslateTest, CompletionsDifferInTheirSeedsAlone) {
  v1::GenerateRequest request = Good();
  EXPECT_EQ(TranslateCompletions(Model(), request, "", "ipv4:10.0.0.1:77")->size(), 1u);
  request.set_n(3);
  request.mutable_sampling()->set_seed(std::numeric_limits<uint64_t>::max());
  const auto completions = TranslateCompletions(Model(), request, "", "ipv4:10.0.0.1:77");
  ASSERT_TRUE(completions.ok()) << completions.status();
  ASSERT_EQ(completions->size(), 3u);
  EXPECT_EQ(completions->at(0).sampling.seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(completions->at(2).sampling.seed(), 1u);
  EXPECT_EQ(completions->at(2).tokens, completions->at(0).tokens);
}

TEST(TranslateTest, WhoAsksIsTheUserOrElseTheHost) {
  v1::GenerateRequest request = Good();
  const auto user = [&](const std::string& peer) {
    return TranslateCompletions(Model(), request, "", peer)->front().user;
  };
  EXPECT_EQ(user("ipv4:10.0.0.1:77"), user("ipv4:10.0.0.1:78"));
  EXPECT_NE(user("ipv4:10.0.0.1:77"), user("ipv4:10.0.0.2:77"));
  request.set_user("alice");
  EXPECT_EQ(user("ipv4:10.0.0.1:77"), user("ipv4:10.0.0.2:77"));
}

TEST(TranslateTest, ClaimsOutOfRangeAreNamed) {
  const auto refusal = [](const v1::GenerateRequest& request) {
    const auto translated = TranslateCompletions(Model(), request, "requests[2].", "ipv4:::1:5");
    EXPECT_EQ(translated.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(translated.status().message());
  };
  v1::GenerateRequest request = Good();
  request.set_n(33);
  EXPECT_THAT(refusal(request), HasSubstr("requests[2].n is 33: at most 32"));
  request = Good();
  request.set_priority(-101);
  EXPECT_THAT(refusal(request), HasSubstr("requests[2].priority is -101"));
  request = Good();
  request.set_user(std::string(129, 'x'));
  EXPECT_THAT(refusal(request), HasSubstr("requests[2].user has 129 bytes"));
}

void AddHead(ServingModel& model, const std::string& name, model::Architecture kind) {
  Head head;
  head.name = name;
  head.config.kind = kind;
  model.heads.push_back(head);
}

TEST(FindHeadTest, ListsTheHeadsOfTheKind) {
  ServingModel model = Model();
  EXPECT_EQ(FindHead(model, model::Architecture::kSequenceClassification, "x").status().code(),
            absl::StatusCode::kFailedPrecondition);
  AddHead(model, "mood", model::Architecture::kSequenceClassification);
  AddHead(model, "topic", model::Architecture::kSequenceClassification);
  AddHead(model, "ner", model::Architecture::kTokenClassification);
  const auto missing = FindHead(model, model::Architecture::kSequenceClassification, "ner");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("mood (sequence), topic (sequence), ner (token)"));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("'ner' is not a sequence"));
  const auto unknown = FindHead(model, model::Architecture::kSequenceClassification, "nope");
  EXPECT_THAT(std::string(unknown.status().message()),
              HasSubstr("'nope' is not loaded; loaded: mood"));
  EXPECT_EQ(*FindHead(model, model::Architecture::kSequenceClassification, "topic"), 1);
  EXPECT_EQ(*FindHead(model, model::Architecture::kTokenClassification, ""), 2);
  EXPECT_FALSE(FindHead(model, model::Architecture::kSequenceClassification, "").ok());
}

}  // namespace
}  // namespace conclave::coordinator
