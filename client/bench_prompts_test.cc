#include "client/bench_prompts.h"

#include <algorithm>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::Each;
using ::testing::Lt;

std::vector<uint32_t> Prompt(const RequestShape& shape, uint64_t index) {
  const v1::GenerateRequest request = MakeBenchRequest(shape, index);
  const auto& ids = request.prompt().tokens().ids();
  return {ids.begin(), ids.end()};
}

uint32_t Limit(uint32_t vocab_size, const std::vector<uint32_t>& ends) {
  v1::GetModelResponse model;
  model.set_vocab_size(vocab_size);
  for (const uint32_t id : ends) model.add_eos_token_ids(id);
  return PromptIdLimit(model);
}

TEST(BenchPromptsTest, IdsStayBelowTheSpecialTokens) {
  EXPECT_EQ(Limit(201'088, {200'002, 199'999, 200'012}), 199'999u);
  EXPECT_EQ(Limit(512, {}), 512u);
  EXPECT_EQ(Limit(512, {2}), 512u);      // another layout of vocabulary
  EXPECT_EQ(Limit(512, {9'999}), 512u);  // an end token the model does not have
  EXPECT_EQ(Limit(1, {0}), 1u);          // never none
}

TEST(BenchPromptsTest, PromptsHaveTheirLengthAndTheirIds) {
  const RequestShape shape = {.id_limit = 50, .input_len = 1000, .output_len = 7};
  const std::vector<uint32_t> ids = Prompt(shape, 0);
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_THAT(ids, Each(Lt(50u)));
  EXPECT_EQ(*std::max_element(ids.begin(), ids.end()), 49u);
}

TEST(BenchPromptsTest, SeedAndIndexDecideThePrompt) {
  const RequestShape shape = {.id_limit = 500, .input_len = 32, .seed = 3};
  RequestShape other = shape;
  other.seed = 4;
  RequestShape high = shape;
  high.seed = (uint64_t{1} << 40) + 3;
  EXPECT_EQ(Prompt(shape, 5), Prompt(shape, 5));
  EXPECT_NE(Prompt(shape, 5), Prompt(shape, 6));
  EXPECT_NE(Prompt(shape, 5), Prompt(other, 5));
  EXPECT_NE(Prompt(shape, 5), Prompt(high, 5));
}

TEST(BenchPromptsTest, TheLengthOfTheOutputIsExact) {
  const v1::GenerateRequest request =
      MakeBenchRequest({.id_limit = 5, .output_len = 7, .temperature = 0, .seed = 10}, 2);
  EXPECT_EQ(request.stop().max_tokens(), 7u);
  EXPECT_TRUE(request.stop().ignore_eos());
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_EQ(request.sampling().seed(), 12u);
}

}  // namespace
}  // namespace conclave::client
