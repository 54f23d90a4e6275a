// Embedding, logits, sampling and memory through Ops.

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/ops_fixture.h"
#include "kernels/ops.h"
#include "kernels/reference/random_data.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels {
namespace {

using reference::RandomData;
using reference::Vector;
using ::testing::Each;
using ::testing::HasSubstr;

class OutputOpsTest : public testing::Test {
 protected:
  OutputOpsTest()
      : config_(SmallConfig()),
        ops_(MakeCpuOps(config_, 2, {.threads = 2, .max_sequences = 4})),
        random_(1),
        hidden_(config_.hidden_size),
        table_(random_.Bf16(config_.vocab_size * hidden_, 1)),
        norm_(random_.Bf16(hidden_, 1)) {}

  void Begin(std::span<const int32_t> tokens) {
    positions_.assign(tokens.size(), 0);
    run_.rows = static_cast<int>(tokens.size());
    ops_->BeginStep({tokens, positions_, {&run_, 1}});
  }
  // A step of as many rows as are sampled, in order.
  void BeginSampling(std::vector<SampleParams> params, std::vector<int32_t> slots) {
    slots_ = std::move(slots);
    params_ = std::move(params);
    params_.resize(slots_.size());
    sample_rows_.resize(slots_.size());
    std::iota(sample_rows_.begin(), sample_rows_.end(), 0);
    positions_.assign(slots_.size(), 0);
    run_.rows = static_cast<int>(slots_.size());
    ops_->BeginStep({.token_ids = positions_,
                     .positions = positions_,
                     .runs = {&run_, 1},
                     .sample_rows = sample_rows_,
                     .sample_params = params_,
                     .sample_slots = slots_});
  }
  DenseWeight Shard(int first, int rows) {
    return *ops_->LoadDense({table_.data() + first * hidden_, rows, hidden_, hidden_});
  }

  const model::Config config_;
  const std::unique_ptr<Ops> ops_;
  RandomData random_;
  const int64_t hidden_;
  const std::vector<uint16_t> table_, norm_;
  std::vector<int32_t> positions_, sample_rows_, slots_;
  std::vector<SampleParams> params_;
  SequenceRun run_;
};

TEST_F(OutputOpsTest, EmbeddingShardsAddUpAndReadTheTokenSampledLast) {
  std::vector<int32_t> sampled = {299, 7};
  BeginSampling({}, {2, 0});
  ops_->StoreSampled(AsTensor(sampled, 1));
  const std::vector<int32_t> tokens = {5, -1 - 2, -1 - 0, 150, 149};
  const std::vector<int32_t> resolved = {5, 299, 7, 150, 149};
  Begin(tokens);
  std::vector<float> low(5 * hidden_, -1), high(5 * hidden_, -1);
  ops_->Embed(Shard(0, 150), 0, AsTensor(low, hidden_));
  ops_->Embed(Shard(150, 150), 150, AsTensor(high, hidden_));
  for (size_t row = 0; row < tokens.size(); ++row) {
    for (int64_t i = 0; i < hidden_; ++i) {
      ASSERT_EQ(low[row * hidden_ + i] + high[row * hidden_ + i],
                reference::FromBf16(table_[resolved[row] * hidden_ + i]));
    }
  }
}

TEST_F(OutputOpsTest, LogitsAreOfNormalizedRowsInTheOrderAsked) {
  std::vector<float> x = random_.Floats(4 * hidden_, 1);
  const std::vector<int32_t> rows = {3, 0, 3};
  const auto norm = *ops_->LoadVector(norm_);
  std::vector<float> whole(3 * 300), low(3 * 140), high(3 * 160), joined(3 * 300);
  ops_->Logits(norm, Shard(0, 300), AsTensor(x, hidden_), rows, AsTensor(whole, 300));
  for (size_t i = 0; i < rows.size(); ++i) {
    const Vector normed =
        reference::RmsNorm(reference::ToVector(x.data() + rows[i] * hidden_, hidden_),
                           reference::Bf16ToVector(norm_), config_.rms_norm_eps);
    const Vector expected = reference::Linear(
        300, [&](int64_t r, int64_t c) { return reference::FromBf16(table_[r * hidden_ + c]); }, {},
        normed);
    EXPECT_LT(reference::RelativeError(whole.data() + i * 300, expected), reference::kFloat32Error);
  }
  // The step's sampled rows, from the second on.
  BeginSampling({}, {0, 1, 2, 3});
  std::vector<float> sampled(2 * 300);
  ops_->SampledLogits(norm, Shard(0, 300), AsTensor(x, hidden_), 2, AsTensor(sampled, 300));
  const std::vector<float> row3(sampled.begin() + 300, sampled.end());
  EXPECT_EQ(row3, std::vector<float>(whole.begin(), whole.begin() + 300));
  // A vocabulary split over two ranks gives the same bits.
  ops_->Logits(norm, Shard(0, 140), AsTensor(x, hidden_), rows, AsTensor(low, 140));
  ops_->Logits(norm, Shard(140, 160), AsTensor(x, hidden_), rows, AsTensor(high, 160));
  const Tensor blocks[] = {AsTensor(low, 140), AsTensor(high, 160)};
  ops_->JoinColumns(blocks, AsTensor(joined, 300));
  EXPECT_EQ(joined, whole);
}

TEST_F(OutputOpsTest, HeadLogitsAddTheBias) {
  std::vector<float> x = random_.Floats(2 * hidden_, 1);
  const std::vector<uint16_t> bias = random_.Bf16(3, 1);
  const std::vector<int32_t> rows = {1};
  const auto norm = *ops_->LoadVector(norm_);
  std::vector<float> with(3), without(3);
  ops_->HeadLogits(norm, Shard(0, 3), *ops_->LoadVector(bias), AsTensor(x, hidden_), rows,
                   AsTensor(with, 3));
  ops_->HeadLogits(norm, Shard(0, 3), VectorWeight{}, AsTensor(x, hidden_), rows,
                   AsTensor(without, 3));
  for (int label = 0; label < 3; ++label) {
    EXPECT_EQ(with[label], without[label] + static_cast<float>(reference::FromBf16(bias[label])));
  }
}

TEST_F(OutputOpsTest, SampleWritesEveryOutputOfARow) {
  std::vector<float> logits = random_.Floats(2 * 6, 1);
  std::vector<int32_t> tokens(2, -9), top_tokens(2 * kMaxLogprobs, -9);
  std::vector<float> logprobs(2, -9), top_logprobs(2 * kMaxLogprobs, -9);
  BeginSampling({{.temperature = 0, .logprobs = kMaxLogprobs}, {.temperature = 0}}, {0, 1});
  ops_->Sample(AsTensor(logits, 6), 0,
               {AsTensor(tokens, 1), AsTensor(logprobs, 1), AsTensor(top_tokens, kMaxLogprobs),
                AsTensor(top_logprobs, kMaxLogprobs)});
  EXPECT_EQ(tokens[0], top_tokens[0]);
  EXPECT_EQ(logprobs[0], top_logprobs[0]);
  double sum = 0;
  for (int i = 0; i < 6; ++i) sum += std::exp(double{top_logprobs[i]});
  EXPECT_NEAR(sum, 1, 1e-6);  // all six, each once
  EXPECT_THAT(std::span(top_tokens).subspan(6), Each(-1));
}

TEST_F(OutputOpsTest, SlotsChangeWhatIsDrawnAndLogprobsStayTheModelsOwn) {
  std::vector<float> logits = {1, 5, 2, 3, 1, 5, 2, 3};
  std::vector<int32_t> tokens(2, -9), top_tokens(2 * kMaxLogprobs);
  std::vector<float> logprobs(2, -9), top_logprobs(2 * kMaxLogprobs);
  const SampleOutput output = {AsTensor(tokens, 1), AsTensor(logprobs, 1),
                               AsTensor(top_tokens, kMaxLogprobs),
                               AsTensor(top_logprobs, kMaxLogprobs)};
  const std::vector<int32_t> history = {0};
  ops_->SetSlotSampling(3, {.counted = true, .history = history, .prompt_tokens = 1});
  const SampleParams penalized = {
      .temperature = 0, .logprobs = 1, .counted = true, .frequency_penalty = 1.5f};
  std::vector<int32_t> drawn;
  for (int step = 0; step < 4; ++step) {
    BeginSampling({penalized, {.temperature = 0, .logprobs = 1}}, {3, 0});
    ops_->Sample(AsTensor(logits, 4), 0, output);
    ops_->StoreSampled(AsTensor(tokens, 1));
    drawn.push_back(tokens[0]);
    EXPECT_EQ(tokens[1], 1);  // the slot beside it knows nothing of it
    EXPECT_EQ(top_tokens[0], 1);
    EXPECT_EQ(top_logprobs[0], top_logprobs[kMaxLogprobs]);
    EXPECT_NEAR(logprobs[0], top_logprobs[0] + logits[tokens[0]] - 5, 1e-6);
  }
  EXPECT_THAT(drawn, testing::ElementsAre(1, 1, 3, 1));  // 5, 3.5, then 2 and 3; then 2 and 1.5
  // A new sequence in the slot starts anew.
  ops_->SetSlotSampling(3, {.counted = true});
  BeginSampling({penalized}, {3});
  std::vector<float> row(logits.begin(), logits.begin() + 4);
  ops_->Sample(AsTensor(row, 4), 0, output);
  EXPECT_EQ(tokens[0], 1);
}

TEST_F(OutputOpsTest, TargetLogprobsAreOfTheGivenTokens) {
  std::vector<float> logits = random_.Floats(3 * 6, 1);
  std::vector<float> logprobs(3), top_logprobs(3 * kMaxLogprobs);
  std::vector<int32_t> top_tokens(3 * kMaxLogprobs);
  const std::vector<int32_t> targets = {5, 0, 2};
  for (const int top : {0, 2}) {
    ops_->TargetLogprobs(AsTensor(logits, 6), targets, top,
                         {{},
                          AsTensor(logprobs, 1),
                          AsTensor(top_tokens, kMaxLogprobs),
                          AsTensor(top_logprobs, kMaxLogprobs)});
    for (int row = 0; row < 3; ++row) {
      const float* mine = logits.data() + row * 6;
      double sum = 0;
      for (int i = 0; i < 6; ++i) sum += std::exp(double{mine[i]});
      EXPECT_NEAR(logprobs[row], mine[targets[row]] - std::log(sum), 1e-6);
      const int best = static_cast<int>(std::max_element(mine, mine + 6) - mine);
      EXPECT_EQ(top_tokens[row * kMaxLogprobs], top > 0 ? best : -1);
      EXPECT_EQ(top_tokens[row * kMaxLogprobs + 2], -1);
    }
  }
}

TEST_F(OutputOpsTest, AllocateGivesZerosOrSaysHowMuchIsFree) {
  const Buffer buffer = *ops_->Allocate(100000);
  EXPECT_THAT(std::span(static_cast<const uint8_t*>(buffer.memory.get()), 100000), Each(0));
  EXPECT_TRUE(ops_->Allocate(0).ok());
  const absl::Status status = ops_->Allocate(int64_t{1} << 55).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("36028797018963968 bytes"));
}

TEST_F(OutputOpsTest, DescribesWhatRuns) {
  const KernelInfo& info = ops_->info();
  EXPECT_EQ(info.device, "cpu");
  EXPECT_THAT(info.kernel, HasSubstr("cpu_mxfp4_"));
  EXPECT_EQ(info.kernel, DescribeCpu().kernel);
  EXPECT_FALSE(info.device_name.empty());
  EXPECT_FALSE(info.instruction_set.empty());
}

}  // namespace
}  // namespace conclave::kernels
