#include "worker/sequence_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace conclave::worker {
namespace {

using internal::v1::Chunk;
using internal::v1::NewSequence;
using internal::v1::StepPlan;
using testing::ElementsAre;
using testing::HasSubstr;

// 4 slots, 8 + 8 blocks of 16 tokens, window 16, 2 layers, 2 of 4 experts, 2 heads.
SequenceTable MakeTable() {
  SequenceTable::Limits limits;
  limits.max_sequences = 4;
  limits.max_step_tokens = 64;
  limits.vocab_size = 100;
  limits.context_length = 96;
  limits.num_layers = 2;
  limits.experts_per_token = 2;
  limits.num_experts = 4;
  limits.sliding_window = 16;
  limits.full_blocks = 8;
  limits.sliding_blocks = 8;
  limits.head_labels = {3, 5};
  return SequenceTable(limits);
}

NewSequence& AddSequence(StepPlan& plan, int slot) {
  NewSequence& added = *plan.add_new_sequences();
  added.set_slot(slot);
  added.mutable_sampling()->set_logprobs(-1);
  return added;
}

// `tokens` ids counting up from 10; 0: continues with the sampled token.
Chunk& AddChunk(StepPlan& plan, int slot, int start, int tokens, std::vector<int> full,
                std::vector<int> sliding) {
  Chunk& chunk = *plan.add_chunks();
  chunk.set_slot(slot);
  chunk.set_start_position(start);
  for (int i = 0; i < tokens; ++i) chunk.add_tokens(10 + i);
  for (int block : full) chunk.add_new_full_blocks(block);
  for (int block : sliding) chunk.add_new_sliding_blocks(block);
  return chunk;
}

// A sequence in slot 1 that has prefilled 20 tokens and sampled one.
StepPlan FirstPlan() {
  StepPlan plan;
  NewSequence& added = AddSequence(plan, 1);
  added.mutable_sampling()->set_temperature(0.5f);
  added.mutable_sampling()->set_seed(7);
  added.mutable_sampling()->set_top_k(1000);
  added.mutable_sampling()->set_logprobs(5);
  AddChunk(plan, 1, 0, 20, {3, 4}, {5, 6}).set_sample(true);
  return plan;
}

TEST(SequenceTableTest, RowsCarryTokensPositionsAndBlockTables) {
  SequenceTable table = MakeTable();
  StepPlan plan = FirstPlan();
  AddSequence(plan, 0);
  AddChunk(plan, 0, 0, 3, {0}, {1});
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->token_ids.size(), 23u);
  EXPECT_EQ(step->token_ids[19], 29);
  EXPECT_EQ(step->token_ids[20], 10);
  EXPECT_EQ(step->positions[19], 19);
  EXPECT_EQ(step->positions[20], 0);
  ASSERT_EQ(step->runs.size(), 2u);
  EXPECT_EQ(step->runs[0].slot, 1);
  EXPECT_EQ(step->runs[0].rows, 20);
  EXPECT_THAT(step->runs[0].full_blocks, ElementsAre(3, 4));
  EXPECT_THAT(step->runs[0].sliding_blocks, ElementsAre(5, 6));
  EXPECT_EQ(step->runs[1].first_row, 20);
  EXPECT_THAT(step->runs[1].full_blocks, ElementsAre(0));
  EXPECT_TRUE(step->forced.empty());
}

TEST(SequenceTableTest, SampledRowsCarryTheirParametersAndThePositionOfTheDraw) {
  SequenceTable table = MakeTable();
  const auto step = table.Apply(FirstPlan());
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_THAT(step->sample_rows, ElementsAre(19));
  EXPECT_THAT(step->sample_slots, ElementsAre(1));
  ASSERT_EQ(step->sample_params.size(), 1u);
  const kernels::SampleParams& params = step->sample_params[0];
  EXPECT_EQ(params.position, 20);
  EXPECT_EQ(params.temperature, 0.5f);
  EXPECT_EQ(params.seed, 7u);
  EXPECT_EQ(params.top_k, 100) << "clamped to the vocabulary";
  EXPECT_EQ(params.logprobs, 5);
}

StepPlan PlanWithOptions() {
  StepPlan plan;
  NewSequence& added = AddSequence(plan, 2);
  internal::v1::Sampling& sampling = *added.mutable_sampling();
  sampling.add_bias_tokens(4);
  sampling.add_biases(-1.5f);
  sampling.add_end_tokens(9);
  sampling.set_first_end_position(5);
  sampling.set_frequency_penalty(0.5f);
  sampling.set_prompt_tokens(3);
  for (int token : {10, 11, 12}) added.add_history(token);
  AddChunk(plan, 2, 0, 3, {0}, {0}).set_sample(true);
  return plan;
}

TEST(SequenceTableTest, OptionsOfASlotAreToldOnceAndItsRowsSayWhichApply) {
  SequenceTable table = MakeTable();
  const auto step = table.Apply(PlanWithOptions());
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->new_slots.size(), 1u);
  const ResolvedStep::NewSlot& slot = step->new_slots[0];
  EXPECT_EQ(slot.slot, 2);
  EXPECT_THAT(slot.bias_tokens, ElementsAre(4));
  EXPECT_THAT(slot.biases, ElementsAre(-1.5f));
  EXPECT_THAT(slot.end_tokens, ElementsAre(9));
  EXPECT_THAT(slot.history, ElementsAre(10, 11, 12));
  EXPECT_EQ(slot.prompt_tokens, 3);
  for (int position = 3; position < 7; ++position) {
    SCOPED_TRACE(position);
    StepPlan plan;
    AddChunk(plan, 2, position, 0, {}, {}).set_sample(true);
    const auto decode = table.Apply(plan);
    ASSERT_TRUE(decode.ok()) << decode.status();
    EXPECT_TRUE(decode->new_slots.empty());
    const kernels::SampleParams& params = decode->sample_params[0];
    EXPECT_TRUE(params.biased);
    EXPECT_TRUE(params.counted);
    EXPECT_EQ(params.repetition_penalty, 1) << "0 is none";
    EXPECT_EQ(params.frequency_penalty, 0.5f);
    EXPECT_EQ(params.mask_ends, params.position < 5);
  }
}

TEST(SequenceTableTest, ASequenceWithoutOptionsCostsNothing) {
  SequenceTable table = MakeTable();
  const auto step = table.Apply(FirstPlan());
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_TRUE(step->new_slots.empty());
  EXPECT_FALSE(step->sample_params[0].adjusts());
}

TEST(SequenceTableTest, TargetsNameTheirRowsInTheStep) {
  SequenceTable table = MakeTable();
  StepPlan plan = FirstPlan();
  AddSequence(plan, 0);
  Chunk& chunk = AddChunk(plan, 0, 0, 4, {0}, {1});
  chunk.mutable_logprobs()->set_first(1);
  chunk.mutable_logprobs()->set_top(2);
  for (int target : {7, 8}) chunk.mutable_logprobs()->add_targets(target);
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->target_reads.size(), 1u);
  EXPECT_THAT(step->target_reads[0].rows, ElementsAre(21, 22));
  EXPECT_THAT(step->target_reads[0].targets, ElementsAre(7, 8));
  EXPECT_EQ(step->target_reads[0].first_position, 1);
  EXPECT_EQ(step->target_reads[0].top, 2);
}

TEST(SequenceTableTest, OptionsThatCannotBeAreInternal) {
  const std::vector<std::pair<std::string, std::function<void(StepPlan&)>>> cases = {
      {"1 biases for 2 tokens",
       [](StepPlan& plan) {
         plan.mutable_new_sequences(0)->mutable_sampling()->add_bias_tokens(5);
       }},
      {"token 100 of 100",
       [](StepPlan& plan) {
         plan.mutable_new_sequences(0)->mutable_sampling()->set_end_tokens(0, 100);
       }},
      {"token 4000000000 of 100",
       [](StepPlan& plan) { plan.mutable_new_sequences(0)->set_history(1, 4000000000u); }},
      {"at most 1024",
       [](StepPlan& plan) {
         for (int i = 0; i < 1025; ++i) {
           plan.mutable_new_sequences(0)->mutable_sampling()->add_end_tokens(1);
         }
       }},
      {"rows [2, 4) of 3",
       [](StepPlan& plan) {
         plan.mutable_chunks(0)->mutable_logprobs()->set_first(2);
         for (int i = 0; i < 2; ++i) plan.mutable_chunks(0)->mutable_logprobs()->add_targets(1);
       }},
      {"token 100 of 100",
       [](StepPlan& plan) { plan.mutable_chunks(0)->mutable_logprobs()->add_targets(100); }}};
  for (const auto& [message, spoil] : cases) {
    SequenceTable table = MakeTable();
    StepPlan plan = PlanWithOptions();
    spoil(plan);
    const auto step = table.Apply(plan);
    EXPECT_EQ(step.status().code(), absl::StatusCode::kInternal) << message;
    EXPECT_THAT(std::string(step.status().message()), HasSubstr(message));
  }
}

TEST(SequenceTableTest, DecodeNamesTheSlotInPlaceOfAToken) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan;
  AddChunk(plan, 1, 20, 0, {}, {}).set_sample(true);
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_THAT(step->token_ids, ElementsAre(-2));
  EXPECT_THAT(step->positions, ElementsAre(20));
  EXPECT_EQ(step->runs[0].start_position, 20);
}

TEST(SequenceTableTest, ReleasedSlidingBlocksLeaveTheFrontAndMayBeReusedAtOnce) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan;
  AddChunk(plan, 1, 20, 12, {}, {});
  ASSERT_TRUE(table.Apply(plan).ok());

  StepPlan release;  // position 32 sees 17..32: block 0 of the sequence is out of sight
  AddSequence(release, 2);
  AddChunk(release, 2, 0, 1, {7}, {5});
  AddChunk(release, 1, 32, 1, {5}, {7}).set_released_sliding_blocks(1);
  const auto step = table.Apply(release);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_THAT(step->runs[0].sliding_blocks, ElementsAre(5));
  EXPECT_THAT(step->runs[1].sliding_blocks, ElementsAre(6, 7));
  EXPECT_EQ(step->runs[1].sliding_first, 1);
  EXPECT_THAT(step->runs[1].full_blocks, ElementsAre(3, 4, 5));
}

TEST(SequenceTableTest, HeadReadsNameRowsOfTheStep) {
  SequenceTable table = MakeTable();
  StepPlan plan = FirstPlan();
  AddSequence(plan, 0);
  Chunk& chunk = AddChunk(plan, 0, 0, 6, {0}, {1});
  internal::v1::HeadWant& want = *chunk.add_heads();
  want.set_head(1);
  want.set_first(2);
  want.set_count(3);
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->head_reads.size(), 1u);
  EXPECT_EQ(step->head_reads[0].head, 1);
  EXPECT_EQ(step->head_reads[0].first_position, 2);
  EXPECT_THAT(step->head_reads[0].rows, ElementsAre(22, 23, 24));
}

TEST(SequenceTableTest, ForcedRoutingIsSortedByLayerAndEndsWithItsPositions) {
  SequenceTable table = MakeTable();
  StepPlan plan;
  NewSequence& added = AddSequence(plan, 0);
  for (uint32_t id : {0, 1, 2, 3, 1, 0, 3, 2}) added.add_forced_expert_ids(id);  // 2 positions
  AddChunk(plan, 0, 0, 1, {0}, {0});
  AddSequence(plan, 1);
  AddChunk(plan, 1, 0, 1, {1}, {1});
  auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->forced.size(), 2u);
  EXPECT_THAT(step->forced[0], ElementsAre(0, 1, -1, -1));
  EXPECT_THAT(step->forced[1], ElementsAre(2, 3, -1, -1));

  StepPlan next;
  AddChunk(next, 0, 1, 2, {}, {});
  step = table.Apply(next);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_THAT(step->forced[0], ElementsAre(1, 0, -1, -1));
  EXPECT_THAT(step->forced[1], ElementsAre(3, 2, -1, -1));
}

TEST(SequenceTableTest, AFreedSlotAndItsBlocksServeAnotherSequenceInTheSamePlan) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan = FirstPlan();
  plan.add_freed_slots(1);
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(step->positions[0], 0);
}

TEST(SequenceTableTest, AnEmptyPlanIsAnEmptyStep) {
  SequenceTable table = MakeTable();
  const auto step = table.Apply(StepPlan());
  ASSERT_TRUE(step.ok());
  EXPECT_EQ(step->batch().rows(), 0);
}

// What the two sides can disagree about, and what the error says.
struct Disagreement {
  const char* name;
  std::function<StepPlan()> plan;  // applied after FirstPlan
  const char* message;
};

class SequenceTableDisagreementTest : public testing::TestWithParam<Disagreement> {};

TEST_P(SequenceTableDisagreementTest, IsInternalWithTheNumbers) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  const auto step = table.Apply(GetParam().plan());
  EXPECT_EQ(step.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(step.status().message()), HasSubstr(GetParam().message));
}

StepPlan OneChunk(int slot, int start, int tokens, std::vector<int> full = {},
                  std::vector<int> sliding = {}) {
  StepPlan plan;
  AddChunk(plan, slot, start, tokens, std::move(full), std::move(sliding));
  return plan;
}

StepPlan NewIn(int slot, const std::function<void(NewSequence&)>& change) {
  StepPlan plan;
  change(AddSequence(plan, slot));
  return plan;
}

StepPlan FreeSlot(int slot) {
  StepPlan plan;
  plan.add_freed_slots(slot);
  return plan;
}

StepPlan Released(int start, int tokens, int blocks) {
  StepPlan plan = OneChunk(1, start, tokens);
  plan.mutable_chunks(0)->set_released_sliding_blocks(blocks);
  return plan;
}

// A new sequence in slot 0 whose first `tokens` positions are in the given blocks.
StepPlan Cached(int tokens, std::vector<uint32_t> full, std::vector<uint32_t> sliding,
                int first_sliding) {
  StepPlan plan;
  NewSequence& added = AddSequence(plan, 0);
  added.set_cached_tokens(tokens);
  added.mutable_full_blocks()->Add(full.begin(), full.end());
  added.mutable_sliding_blocks()->Add(sliding.begin(), sliding.end());
  added.set_first_sliding_block(first_sliding);
  return plan;
}

TEST(SequenceTableTest, ASequenceSharesCachedBlocksAndBeginsBehindThem) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan = Cached(16, {3}, {5}, 0);
  AddChunk(plan, 0, 16, 3, {0}, {1});
  const auto step = table.Apply(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_EQ(step->runs.size(), 1u);
  EXPECT_EQ(step->positions[0], 16);
  EXPECT_THAT(step->runs[0].full_blocks, ElementsAre(3, 0));
  EXPECT_THAT(step->runs[0].sliding_blocks, ElementsAre(5, 1));

  // The block stays as long as anybody has it, and its content longer than that.
  StepPlan next;
  next.add_freed_slots(1);
  next.add_freed_slots(0);
  NewSequence& again = AddSequence(next, 2);
  again.set_cached_tokens(16);
  again.add_full_blocks(3);
  again.add_sliding_blocks(5);
  AddChunk(next, 2, 16, 1, {4}, {6});
  EXPECT_TRUE(table.Apply(next).ok());
  StepPlan taken;
  AddSequence(taken, 0);
  AddChunk(taken, 0, 0, 1, {3}, {0});
  EXPECT_THAT(std::string(table.Apply(taken).status().message()), HasSubstr("which 1 hold"));
}

TEST(SequenceTableTest, ABlockThatWasTakenAnewNoLongerHoldsWhatItDid) {
  SequenceTable table = MakeTable();
  ASSERT_TRUE(table.Apply(FirstPlan()).ok());
  StepPlan plan;
  plan.add_freed_slots(1);
  AddSequence(plan, 2);
  AddChunk(plan, 2, 0, 1, {3}, {0});
  ASSERT_TRUE(table.Apply(plan).ok());
  EXPECT_THAT(std::string(table.Apply(Cached(16, {3}, {5}, 0)).status().message()),
              HasSubstr("shares full block 3 as number 0, it holds number -1"));
}

StepPlan HeadOf(int head, int first, int count) {
  StepPlan plan = OneChunk(1, 20, 4);
  internal::v1::HeadWant& want = *plan.mutable_chunks(0)->add_heads();
  want.set_head(head);
  want.set_first(first);
  want.set_count(count);
  return plan;
}

StepPlan BadToken() {
  StepPlan plan = OneChunk(1, 20, 1);
  plan.mutable_chunks(0)->set_tokens(0, 100);
  return plan;
}

StepPlan Twice() {
  StepPlan plan = OneChunk(1, 20, 1);
  AddChunk(plan, 1, 21, 1, {}, {});
  return plan;
}

StepPlan NothingSampled() {
  StepPlan plan;
  AddSequence(plan, 0);
  AddChunk(plan, 0, 0, 0, {0}, {0});
  return plan;
}

INSTANTIATE_TEST_SUITE_P(
    All, SequenceTableDisagreementTest,
    testing::Values(
        Disagreement{"FreeSlotOutOfRange", [] { return FreeSlot(4); }, "slot 4 of 4"},
        Disagreement{"FreeSlotTwice", [] { return FreeSlot(0); }, "slot 0, which is free"},
        Disagreement{"NewSlotOutOfRange", [] { return NewIn(9, [](NewSequence&) {}); },
                     "slot 9 of 4"},
        Disagreement{"NewSlotUsed", [] { return NewIn(1, [](NewSequence&) {}); },
                     "slot 1, which is used"},
        Disagreement{
            "TooManyLogprobs",
            [] { return NewIn(0, [](NewSequence& s) { s.mutable_sampling()->set_logprobs(21); }); },
            "21 log-probabilities, at most 20"},
        Disagreement{"CachedPartOfABlock",
                     [] {
                       return Cached(20, {3, 4}, {5, 6}, 0);
                     },
                     "slot 0 begins at position 20"},
        Disagreement{"CachedBlockNotWhole",
                     [] {
                       return Cached(32, {3, 4}, {5, 6}, 0);
                     },
                     "shares full block 4 as number 1, it holds number -1"},
        Disagreement{"CachedBlocksMissing", [] { return Cached(16, {}, {5}, 0); },
                     "begins at position 16 with 0 full and 1 sliding blocks"},
        Disagreement{"CachedWindowMissing", [] { return Cached(16, {3}, {}, 1); },
                     "begins at position 16 with 1 full and 0 sliding blocks"},
        Disagreement{"CachedBlockOutOfRange", [] { return Cached(16, {8}, {5}, 0); },
                     "shares full block 8 of 8"},
        Disagreement{"ForcedCount",
                     [] { return NewIn(0, [](NewSequence& s) { s.add_forced_expert_ids(0); }); },
                     "1 forced expert ids, not a multiple of 2 layers x 2"},
        Disagreement{"ForcedRange",
                     [] {
                       return NewIn(0, [](NewSequence& s) {
                         for (uint32_t id : {0, 1, 2, 4}) s.add_forced_expert_ids(id);
                       });
                     },
                     "forces expert 4 of 4"},
        Disagreement{"ForcedTwice",
                     [] {
                       return NewIn(0, [](NewSequence& s) {
                         for (uint32_t id : {0, 1, 2, 2}) s.add_forced_expert_ids(id);
                       });
                     },
                     "forces expert 2 twice"},
        Disagreement{"ChunkOfAFreeSlot", [] { return OneChunk(2, 0, 1); }, "slot 2, which is free"},
        Disagreement{"GapInPositions", [] { return OneChunk(1, 21, 1); },
                     "slot 1 is at position 20, the chunk starts at 21"},
        Disagreement{"PastTheContext", [] { return OneChunk(1, 20, 77); },
                     "reach position 97, the context is 96"},
        Disagreement{"TooManyRows",
                     [] {
                       return OneChunk(1, 20, 65, {0, 1, 2, 5}, {0, 1, 2, 3});
                     },
                     "more than 64 rows"},
        Disagreement{"TwoChunks", Twice, "slot 1 has two chunks"},
        Disagreement{"TokenOutOfRange", BadToken, "token 100 of 100"},
        Disagreement{"NothingSampled", NothingSampled,
                     "slot 0 continues at position 0, for which no token was sampled"},
        Disagreement{"MissingFullBlock", [] { return OneChunk(1, 20, 13, {}, {7}); },
                     "full blocks for 32 positions, the chunk ends at 33"},
        Disagreement{"MissingSlidingBlock", [] { return OneChunk(1, 20, 13, {7}, {}); },
                     "sliding blocks for 32 positions, the chunk ends at 33"},
        Disagreement{"BlockOutOfRange", [] { return OneChunk(1, 20, 13, {8}, {7}); },
                     "full block 8 of 8"},
        Disagreement{"BlockHeldByAnother", [] { return OneChunk(1, 20, 13, {0}, {5}); },
                     "sliding block 5, which 1 hold"},
        Disagreement{"ReleasedInSight", [] { return Released(20, 1, 1); },
                     "releases positions below 16, position 20 sees from 5"},
        Disagreement{"ReleasedTooMany", [] { return Released(20, 1, 3); },
                     "releases 3 sliding blocks of 2"},
        Disagreement{"UnknownHead", [] { return HeadOf(2, 0, 1); }, "head 2 of 2"},
        Disagreement{"HeadRowsPastTheChunk", [] { return HeadOf(0, 2, 3); },
                     "rows [2, 5) of a chunk of 4"},
        Disagreement{"NoHeadRows", [] { return HeadOf(0, 2, 0); }, "rows [2, 2) of a chunk of 4"}),
    [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace conclave::worker
