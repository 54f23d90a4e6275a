// Router and experts through Ops, against float64, and the traps of gpt-oss's experts.

#include <cmath>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/ops_fixture.h"
#include "kernels/ops.h"
#include "kernels/reference/random_data.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels {
namespace {

using reference::kFloat32Error;
using reference::RandomData;
using reference::Vector;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// MXFP4 experts. To hold a whole layer of the largest model they may share memory: expert e starts
// `step` rows after expert e - 1.
struct ExpertData {
  ExpertData(RandomData& random, const model::Config& model_config, int step_rows)
      : config(model_config), step(step_rows) {
    const int64_t rows = 2 * I() + int64_t{step} * config.num_experts;
    gate_up_blocks = random.Bytes(rows * H() / 2, 0, 256);
    gate_up_scales = random.Bytes(rows * H() / 32, 118, 5);
    gate_up_bias = random.Bf16(rows, 1);
    const int64_t down_rows = H() + int64_t{step} * config.num_experts;
    down_blocks = random.Bytes(down_rows * I() / 2, 0, 256);
    down_scales = random.Bytes(down_rows * I() / 32, 118, 5);
    down_bias = random.Bf16(down_rows, 1);
  }

  int64_t H() const { return config.hidden_size; }
  int64_t I() const { return config.intermediate_size; }
  HostExpert Mxfp4(int expert) const {
    const int64_t row = int64_t{expert} * step;
    HostExpert out;
    out.gate_up_blocks = gate_up_blocks.data() + row * H() / 2;
    out.gate_up_scales = gate_up_scales.data() + row * H() / 32;
    out.gate_up_bias = gate_up_bias.data() + row;
    out.down_blocks = down_blocks.data() + row * I() / 2;
    out.down_scales = down_scales.data() + row * I() / 32;
    out.down_bias = down_bias.data() + row;
    return out;
  }
  std::vector<HostExpert> Mxfp4(const std::vector<int>& ids) const {
    std::vector<HostExpert> out;
    for (const int id : ids) out.push_back(Mxfp4(id));
    return out;
  }

  Vector Activation(int expert, const Vector& x) const {
    const HostExpert e = Mxfp4(expert);
    const Vector u = reference::Linear(
        2 * I(),
        [&](int64_t r, int64_t c) {
          return reference::Mxfp4Value(e.gate_up_blocks + r * H() / 2,
                                       e.gate_up_scales + r * H() / 32, c);
        },
        reference::Bf16ToVector({e.gate_up_bias, static_cast<size_t>(2 * I())}), x);
    Vector out;
    for (int64_t j = 0; j < I(); ++j) {
      out.push_back(
          reference::SwiGlu(u[2 * j], u[2 * j + 1], config.swiglu_limit, config.swiglu_alpha));
    }
    return out;
  }
  Vector Output(int expert, const Vector& activation) const {
    const HostExpert e = Mxfp4(expert);
    return reference::Linear(
        H(),
        [&](int64_t r, int64_t c) {
          return reference::Mxfp4Value(e.down_blocks + r * I() / 2, e.down_scales + r * I() / 32,
                                       c);
        },
        reference::Bf16ToVector({e.down_bias, static_cast<size_t>(H())}), activation);
  }

  const model::Config config;
  const int step;
  std::vector<uint8_t> gate_up_blocks, gate_up_scales, down_blocks, down_scales;
  std::vector<uint16_t> gate_up_bias, down_bias;
};

// Rows of a step with routing, as one source.
struct StepTokens {
  StepTokens(RandomData& random, const model::Config& config, int count)
      : rows(count), k(config.experts_per_token), hidden_size(config.hidden_size) {
    hidden = random.Floats(int64_t{rows} * hidden_size, 1);
    for (int row = 0; row < rows; ++row) {
      // k different experts, in no order.
      const int first = random.Below(config.num_experts);
      for (int j = 0; j < k; ++j) {
        ids.push_back((first + (k - j) * 3) % config.num_experts);
        weights.push_back(static_cast<float>(0.1 + 0.2 * j));
      }
    }
    counts = {rows};
  }

  ExpertTokens Tokens(const std::vector<int32_t>& local_index) const {
    static constexpr int32_t kZero = 0;
    ExpertTokens out;
    out.max_copies = rows;
    out.counts = counts.data();
    out.first_slot = out.first_output = &kZero;
    out.hidden = reinterpret_cast<const std::byte*>(hidden.data());
    out.hidden_stride = hidden_size * sizeof(float);
    out.expert_ids = reinterpret_cast<const std::byte*>(ids.data());
    out.expert_ids_stride = k * sizeof(int32_t);
    out.weights = reinterpret_cast<const std::byte*>(weights.data());
    out.weights_stride = k * sizeof(float);
    out.local_index = local_index.data();
    return out;
  }

  int rows, k, hidden_size;
  std::vector<float> hidden, weights;
  std::vector<int32_t> ids, counts;
};

std::vector<int> AllIds(int experts) {
  std::vector<int> out;
  for (int id = 0; id < experts; ++id) out.push_back(id);
  return out;
}

std::vector<int32_t> LocalIndex(const std::vector<int>& local, int experts) {
  std::vector<int32_t> out(experts, -1);
  for (size_t i = 0; i < local.size(); ++i) out[local[i]] = static_cast<int32_t>(i);
  return out;
}

struct Result {
  std::vector<float> activations;
  std::vector<double> partial;
};

Result RunExperts(Ops& ops, const ExpertWeights& experts, const ExpertTokens& tokens,
                  const model::Config& config, int64_t rows) {
  Result out;
  out.activations.assign(rows * config.experts_per_token * config.intermediate_size, kNan);
  out.partial.assign(rows * config.hidden_size, kNan);
  const Tensor activations = AsTensor(out.activations, config.intermediate_size);
  ops.ExpertGateUp(experts, tokens, activations);
  ops.ExpertDown(experts, tokens, activations, AsTensor(out.partial, config.hidden_size));
  return out;
}

void ExpectAgreesWithFloat64(const ExpertData& data, const StepTokens& step, const Result& result,
                             int row) {
  const Vector x =
      reference::ToVector(step.hidden.data() + int64_t{row} * step.hidden_size, step.hidden_size);
  Vector sum(data.H());
  for (int j = 0; j < step.k; ++j) {
    const int at = row * step.k + j;
    const Vector activation = data.Activation(step.ids[at], x);
    EXPECT_LT(reference::RelativeError(result.activations.data() + at * data.I(), activation),
              5e-6);
    const Vector y = data.Output(step.ids[at], activation);
    for (int64_t i = 0; i < data.H(); ++i) sum[i] += double{step.weights[at]} * y[i];
  }
  EXPECT_LT(reference::RelativeError(result.partial.data() + row * data.H(), sum), 5e-6);
}

// The limits that random weights do not reach: the gate has an upper one only.
TEST(ExpertOpsTest, SwiGluClampsTheGateAboveAndUpOnBothSides) {
  constexpr SwiGlu kSwiGlu = {.limit = 7, .alpha = 1.702f};
  for (const float gate : {-80.0f, -9.0f, -7.0f, -1.0f, 0.0f, 2.0f, 7.0f, 9.0f}) {
    for (const float up : {-9.0f, -7.0f, -1.0f, 0.0f, 3.0f, 7.0f, 9.0f}) {
      const double expected = reference::SwiGlu(gate, up, 7, 1.702);
      EXPECT_NEAR(ClampedSwiGlu(gate, up, kSwiGlu), expected, 1e-30 + 5e-6 * std::abs(expected))
          << gate << ", " << up;
    }
  }
}

TEST(ExpertOpsTest, AgreeWithFloat64) {
  RandomData random(1);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  const StepTokens step(random, config, 13);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const auto experts = *ops->LoadExperts(data.Mxfp4(AllIds(16)));
  EXPECT_EQ(experts->format(), "mxfp4");
  EXPECT_EQ(experts->num_local(), 16);
  const std::vector<int32_t> index = LocalIndex(AllIds(16), 16);
  const Result result = RunExperts(*ops, *experts, step.Tokens(index), config, step.rows);
  for (int row = 0; row < step.rows; ++row) ExpectAgreesWithFloat64(data, step, result, row);
}

// One layer of the largest released shape: 128 experts, H = I = 2880.
TEST(ExpertOpsTest, AgreeWithFloat64AtTheShapeOf120b) {
  RandomData random(2);
  model::Config config = SmallConfig();
  config.hidden_size = config.intermediate_size = 2880;
  config.num_experts = 128;
  const ExpertData data(random, config, 8);
  const StepTokens step(random, config, 6);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const auto experts = *ops->LoadExperts(data.Mxfp4(AllIds(128)));
  const std::vector<int32_t> index = LocalIndex(AllIds(128), 128);
  const Result result = RunExperts(*ops, *experts, step.Tokens(index), config, step.rows);
  ExpectAgreesWithFloat64(data, step, result, 0);
}

TEST(ExpertOpsTest, ARowsBitsDependOnNeitherBatchNorThreads) {
  RandomData random(3);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  const StepTokens step(random, config, 40);
  const std::vector<int32_t> index = LocalIndex(AllIds(16), 16);
  const auto ops = MakeCpuOps(config, 2, {.threads = 3});
  const auto experts = *ops->LoadExperts(data.Mxfp4(AllIds(16)));
  const Result all = RunExperts(*ops, *experts, step.Tokens(index), config, step.rows);
  const auto single = MakeCpuOps(config, 2, {.threads = 1});
  for (int row = 0; row < step.rows; ++row) {
    StepTokens one = step;
    one.rows = 1;
    one.counts = {1};
    one.hidden.erase(one.hidden.begin(), one.hidden.begin() + int64_t{row} * step.hidden_size);
    one.ids.erase(one.ids.begin(), one.ids.begin() + row * step.k);
    one.weights.erase(one.weights.begin(), one.weights.begin() + row * step.k);
    const Result alone = RunExperts(*single, *experts, one.Tokens(index), config, 1);
    ASSERT_EQ(std::memcmp(alone.partial.data(), all.partial.data() + row * data.H(),
                          alone.partial.size() * sizeof(double)),
              0);
  }
}

TEST(ExpertOpsTest, PartialsOfAnyPlacementAddUpToTheSameRoundedSum) {
  RandomData random(4);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  const StepTokens step(random, config, 9);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const auto run = [&](const std::vector<int>& local) {
    const auto experts = *ops->LoadExperts(data.Mxfp4(local));
    const std::vector<int32_t> index = LocalIndex(local, 16);
    return RunExperts(*ops, *experts, step.Tokens(index), config, step.rows).partial;
  };
  const std::vector<double> whole = run(AllIds(16));
  const std::vector<double> a = run({0, 3, 5, 9, 15}), b = run({1, 2, 4, 6, 14}),
                            c = run({7, 8, 10, 11, 12, 13});
  for (size_t i = 0; i < whole.size(); ++i) {
    ASSERT_EQ(static_cast<float>(whole[i]), static_cast<float>(a[i] + b[i] + c[i]));
  }
}

// bf16 [inputs, outputs] of [outputs, inputs] MXFP4.
std::vector<uint16_t> Dense(const uint8_t* blocks, const uint8_t* scales, int64_t outputs,
                            int64_t inputs) {
  std::vector<uint16_t> out(outputs * inputs);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < inputs; ++i) {
      out[i * outputs + o] = reference::ToBf16(
          reference::Mxfp4Value(blocks + o * inputs / 2, scales + o * inputs / 32, i));
    }
  }
  return out;
}

TEST(ExpertOpsTest, TheTransposedBf16LayoutGivesTheBitsOfMxfp4) {
  RandomData random(5);
  model::Config config = SmallConfig();
  config.intermediate_size = config.hidden_size;  // a wrong transpose of `down` fits the shapes
  const ExpertData data(random, config, 2 * config.intermediate_size);
  std::vector<std::vector<uint16_t>> memory;
  std::vector<HostExpert> dense;
  for (int id = 0; id < 16; ++id) {
    const HostExpert e = data.Mxfp4(id);
    HostExpert out;
    memory.push_back(Dense(e.gate_up_blocks, e.gate_up_scales, 2 * data.I(), data.H()));
    out.gate_up_dense = memory.back().data();
    memory.push_back(Dense(e.down_blocks, e.down_scales, data.H(), data.I()));
    out.down_dense = memory.back().data();
    out.gate_up_bias = e.gate_up_bias;
    out.down_bias = e.down_bias;
    dense.push_back(out);
  }
  const StepTokens step(random, config, 7);
  const std::vector<int32_t> index = LocalIndex(AllIds(16), 16);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const auto from_dense = *ops->LoadExperts(dense);
  EXPECT_EQ(from_dense->format(), "bf16");
  const auto from_mxfp4 = *ops->LoadExperts(data.Mxfp4(AllIds(16)));
  const ExpertTokens tokens = step.Tokens(index);
  EXPECT_EQ(RunExperts(*ops, *from_dense, tokens, config, step.rows).partial,
            RunExperts(*ops, *from_mxfp4, tokens, config, step.rows).partial);

  // A kept expert is not copied out of its file again: this one would be wrong.
  std::swap(dense[3].gate_up_dense, dense[4].gate_up_dense);
  std::vector<int> kept = AllIds(16);
  kept[8] = -1;
  const auto moved = *ops->LoadExperts(dense, {.from = from_dense.get(), .index = kept});
  EXPECT_EQ(RunExperts(*ops, *moved, tokens, config, step.rows).partial,
            RunExperts(*ops, *from_dense, tokens, config, step.rows).partial);
}

TEST(ExpertOpsTest, AScaleThatCanOverflowIsRefusedByExpertAndRow) {
  RandomData random(6);
  const model::Config config = SmallConfig();
  ExpertData data(random, config, 2 * config.intermediate_size);
  const auto ops = MakeCpuOps(config, 2, {});
  data.gate_up_scales[0] = 252;
  EXPECT_TRUE(ops->LoadExperts(data.Mxfp4({2, 3})).ok());
  const int64_t row = 3 * data.step + 17;
  data.down_scales[row * data.I() / 32 + 1] = 253;
  const absl::Status status = ops->LoadExperts(data.Mxfp4({2, 3})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("expert 1, down row 17, block 1: MXFP4 scale byte 253"));
}

TEST(ExpertOpsTest, PaddingIsNeitherReadNorWritten) {
  RandomData random(7);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  const StepTokens step(random, config, 5);
  const std::vector<int32_t> index = LocalIndex(AllIds(16), 16);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const auto experts = *ops->LoadExperts(data.Mxfp4(AllIds(16)));
  const Result plain = RunExperts(*ops, *experts, step.Tokens(index), config, step.rows);

  // The same copies as three sources of 2, 0 and 3 with room for four each, behind a header slot;
  // everything else is poison: NaN, and expert ids far out of range.
  constexpr int kSources = 3;
  constexpr int kRoom = 4;
  const SlotLayout layout = MakeSlotLayout(DType::kF32, step.hidden_size, step.k);
  std::vector<uint32_t> memory(kSources * (1 + kRoom) * layout.slot_bytes / 4, 0x7FC0DEAD);
  auto* bytes = reinterpret_cast<std::byte*>(memory.data());
  const int32_t counts[kSources] = {2, 0, 3};
  const int32_t first_slot[kSources] = {1, 6, 11};
  const int32_t first_output[kSources] = {0, 4, 8};
  int row = 0;
  std::vector<int> output_row;
  for (int s = 0; s < kSources; ++s) {
    std::memcpy(bytes + s * (1 + kRoom) * layout.slot_bytes, &counts[s], sizeof(int32_t));
    for (int i = 0; i < counts[s]; ++i, ++row) {
      std::byte* slot = bytes + (first_slot[s] + i) * layout.slot_bytes;
      std::memcpy(slot + layout.hidden_offset, step.hidden.data() + row * step.hidden_size,
                  step.hidden_size * sizeof(float));
      std::memcpy(slot + layout.expert_ids_offset, step.ids.data() + row * step.k, 4 * step.k);
      std::memcpy(slot + layout.weights_offset, step.weights.data() + row * step.k, 4 * step.k);
      output_row.push_back(first_output[s] + i);
    }
  }
  ExpertTokens tokens;
  tokens.num_sources = kSources;
  tokens.max_copies = kSources * kRoom;
  tokens.counts = reinterpret_cast<const int32_t*>(bytes);
  tokens.counts_stride = (1 + kRoom) * layout.slot_bytes;
  tokens.first_slot = first_slot;
  tokens.first_output = first_output;
  tokens.hidden = bytes + layout.hidden_offset;
  tokens.expert_ids = bytes + layout.expert_ids_offset;
  tokens.weights = bytes + layout.weights_offset;
  tokens.hidden_stride = tokens.expert_ids_stride = tokens.weights_stride = layout.slot_bytes;
  tokens.local_index = index.data();
  const std::vector<uint32_t> before = memory;
  const Result padded = RunExperts(*ops, *experts, tokens, config, kSources * kRoom);
  EXPECT_EQ(memory, before);
  for (int out = 0; out < kSources * kRoom; ++out) {
    const auto at = std::find(output_row.begin(), output_row.end(), out);
    const double* partial = padded.partial.data() + out * data.H();
    if (at == output_row.end()) {
      for (int64_t i = 0; i < data.H(); ++i) ASSERT_TRUE(std::isnan(partial[i])) << out;
      continue;
    }
    const auto source_row = at - output_row.begin();
    ASSERT_EQ(std::memcmp(partial, plain.partial.data() + source_row * data.H(),
                          data.H() * sizeof(double)),
              0);
  }
}

TEST(ExpertOpsTest, KeptExpertsGiveTheSameBitsAndThePairsOfEachAreCounted) {
  RandomData random(18);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  const StepTokens step(random, config, 9);
  const auto ops = MakeCpuOps(config, 2, {.threads = 2});
  const std::vector<int> local = {2, 5, 9, 11};
  const std::vector<int32_t> index = LocalIndex(local, 16);
  const auto before = *ops->LoadExperts(data.Mxfp4({5, 7, 11}));
  const auto fresh = *ops->LoadExperts(data.Mxfp4(local));
  const std::vector<int> kept = {-1, 0, -1, 2};
  const auto moved = *ops->LoadExperts(data.Mxfp4(local), {.from = before.get(), .index = kept});
  ExpertTokens tokens = step.Tokens(index);
  const Result expected = RunExperts(*ops, *fresh, tokens, config, step.rows);
  std::vector<uint64_t> load(local.size(), 100);
  tokens.load = load.data();
  const Result result = RunExperts(*ops, *moved, tokens, config, step.rows);
  EXPECT_EQ(std::memcmp(result.partial.data(), expected.partial.data(),
                        expected.partial.size() * sizeof(double)),
            0);
  for (size_t i = 0; i < local.size(); ++i) {
    const auto pairs = std::count(step.ids.begin(), step.ids.end(), local[i]);
    EXPECT_EQ(load[i], 100 + static_cast<uint64_t>(pairs)) << local[i];
  }
}

TEST(ExpertOpsTest, ChoicesOfOtherRanksAreLeftAlone) {
  RandomData random(8);
  const model::Config config = SmallConfig();
  const ExpertData data(random, config, 2 * config.intermediate_size);
  StepTokens step(random, config, 3);
  step.ids[1] = -1;                              // sent to another rank
  const std::vector<int> local = {step.ids[0]};  // everything else is not held here
  const std::vector<int32_t> index = LocalIndex(local, 16);
  const auto ops = MakeCpuOps(config, 2, {});
  const auto experts = *ops->LoadExperts(data.Mxfp4(local));
  const Result result = RunExperts(*ops, *experts, step.Tokens(index), config, step.rows);
  for (int at = 0; at < step.rows * step.k; ++at) {
    EXPECT_EQ(std::isnan(result.activations[at * data.I()]), step.ids[at] != local[0]) << at;
  }
  // A valid copy without an expert here has a sum of zero.
  for (int row = 0; row < step.rows; ++row) {
    const bool here =
        std::find(step.ids.begin() + row * step.k, step.ids.begin() + (row + 1) * step.k,
                  local[0]) != step.ids.begin() + (row + 1) * step.k;
    EXPECT_EQ(result.partial[row * data.H()] != 0, here);
  }
}

class RouteTest : public testing::Test {
 protected:
  RouteTest()
      : config_(SmallConfig()),
        random_(9),
        norm_(random_.Bf16(config_.hidden_size, 1)),
        weight_(random_.Bf16(int64_t{16} * config_.hidden_size, 0.1)),
        bias_(random_.Bf16(16, 1)),
        x_(random_.Floats(int64_t{kRows} * config_.hidden_size, 1)) {
    for (int64_t i = 0; i < kRows * config_.hidden_size; ++i) partial_.push_back(random_.Normal(1));
  }

  // Returns x after the residual.
  std::vector<float> Route(const int32_t* forced) {
    const auto ops = MakeCpuOps(config_, 2, {.threads = 2});
    RouterWeights weights;
    weights.norm = *ops->LoadVector(norm_);
    weights.weight =
        *ops->LoadDense({weight_.data(), 16, config_.hidden_size, config_.hidden_size});
    weights.bias = *ops->LoadVector(bias_);
    std::vector<float> x = x_;
    ids_.assign(kRows * 4, -7);
    gates_.assign(kRows * 4, kNan);
    normed_.assign(x.size(), kNan);
    ops->ResidualNormRoute(
        weights, 0, AsTensor(partial_, config_.hidden_size), AsTensor(x, config_.hidden_size),
        forced, AsTensor(normed_, config_.hidden_size), {AsTensor(ids_, 4), AsTensor(gates_, 4)});
    return x;
  }

  static constexpr int kRows = 5;
  model::Config config_;
  RandomData random_;
  std::vector<uint16_t> norm_, weight_, bias_;
  std::vector<float> x_;
  std::vector<double> partial_;
  std::vector<int32_t> ids_;
  std::vector<float> gates_, normed_;
};

TEST_F(RouteTest, AddsNormalizesAndTakesTheTopFourBeforeTheSoftmax) {
  const std::vector<float> x = Route(nullptr);
  const int64_t hidden = config_.hidden_size;
  for (int row = 0; row < kRows; ++row) {
    Vector expected_x;
    for (int64_t i = row * hidden; i < (row + 1) * hidden; ++i) {
      ASSERT_EQ(x[i], static_cast<float>(double{x_[i]} + partial_[i]));  // one rounding
      expected_x.push_back(x[i]);
    }
    const Vector normed =
        reference::RmsNorm(expected_x, reference::Bf16ToVector(norm_), config_.rms_norm_eps);
    EXPECT_LT(reference::RelativeError(normed_.data() + row * hidden, normed), kFloat32Error);
    const Vector logits = reference::Linear(
        16, [&](int64_t r, int64_t c) { return reference::FromBf16(weight_[r * hidden + c]); },
        reference::Bf16ToVector(bias_), normed);
    const std::vector<reference::Choice> choices = reference::Route(logits, 4);
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(ids_[row * 4 + j], choices[j].expert);
      EXPECT_NEAR(gates_[row * 4 + j], choices[j].weight, 1e-5);
    }
  }
}

TEST_F(RouteTest, TiesGoToTheLowerExpert) {
  std::fill(weight_.begin(), weight_.end(), uint16_t{0});
  std::fill(bias_.begin(), bias_.end(), reference::ToBf16(1));
  bias_[9] = reference::ToBf16(2);
  Route(nullptr);
  EXPECT_THAT(std::vector<int>(ids_.begin(), ids_.begin() + 4), testing::ElementsAre(9, 0, 1, 2));
}

TEST_F(RouteTest, ForcedIdsReplaceTheChoiceAndKeepTheirOwnLogits) {
  Route(nullptr);
  const std::vector<int32_t> free_ids = ids_;
  std::vector<int32_t> forced(kRows * 4, -1);
  for (int j = 0; j < 4; ++j) forced[4 + j] = free_ids[4 + 3 - j];  // row 1 in reverse
  const std::vector<float> free_gates = gates_;
  Route(forced.data());
  for (int row = 0; row < kRows; ++row) {
    for (int j = 0; j < 4; ++j) {
      const int from = row == 1 ? 3 - j : j;
      EXPECT_EQ(ids_[row * 4 + j], free_ids[row * 4 + from]);
      EXPECT_NEAR(gates_[row * 4 + j], free_gates[row * 4 + from], 1e-6);
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
