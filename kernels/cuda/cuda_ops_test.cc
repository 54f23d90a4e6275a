// The CUDA backend through Ops: memory, weights, the ops' glue, failures. The numbers of each
// kernel are tested beside it.

#include "kernels/cuda/cuda_ops.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "base/device_lost.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_test.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels::cuda {
namespace {

using reference::RandomData;
using ::testing::HasSubstr;
using ::testing::StartsWith;

model::Config TinyConfig() {
  model::Config config;
  config.num_layers = 2;
  config.num_experts = 16;
  config.experts_per_token = 4;
  config.hidden_size = 128;
  config.intermediate_size = 96;
  config.num_heads = 8;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.vocab_size = 512;
  config.sliding_window = 16;
  config.context_length = 256;
  config.layer_types = {model::LayerType::kSliding, model::LayerType::kFull};
  return config;
}

constexpr CudaOptions kOptions = {.max_sequences = 8, .max_step_tokens = 160};

TEST(CudaProbeTest, ADeviceThatIsNotThereIsNoGpu) {
  const CudaProbe probe = ProbeCuda(1000);
  EXPECT_EQ(probe.reason, "no_gpu");
  EXPECT_FALSE(probe.message.empty());
  EXPECT_TRUE(DescribeCuda(1000).device_name.empty());
  CudaOptions options = kOptions;
  options.device = 1000;
  const auto ops = MakeCudaOps(TinyConfig(), 2, options);
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ops.status().message()), StartsWith("no_gpu: "));
}

TEST(CudaStatusTest, ErrorsThatEndTheProcessAreToldFromOthers) {
  EXPECT_TRUE(base::IsDeviceLost(ToStatus(cudaErrorIllegalAddress, "a step")));
  EXPECT_FALSE(base::IsDeviceLost(ToStatus(cudaErrorInvalidValue, "a step")));
  const absl::Status memory = ToStatus(cudaErrorMemoryAllocation, "a step");
  EXPECT_EQ(memory.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(base::IsDeviceLost(memory));
}

// A kernel writes where nothing is; then nothing goes any more.
void LoseTheDevice() {
  FillRandom(static_cast<float*>(nullptr), 32, 1, 1);
  const bool lost = base::IsDeviceLost(ToStatus(cudaDeviceSynchronize(), "a step"));
  _exit(lost && base::IsDeviceLost(AllocateDevice(1).status()) ? 0 : 1);
}

class CudaDeathTest : public DeviceTest {};

TEST_F(CudaDeathTest, AKernelThatFaultsLosesTheDevice) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(LoseTheDevice(), testing::ExitedWithCode(0), "");
}

class CudaOpsTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    auto made = MakeCudaOps(TinyConfig(), 2, kOptions);
    ASSERT_TRUE(made.ok()) << made.status();
    ops_ = *std::move(made);
  }

  template <typename T>
  std::vector<T> ReadAll(const Tensor& tensor) {
    std::vector<T> out(tensor.rows * tensor.cols);
    ops_->Read(tensor, out.data());
    return out;
  }
  Tensor NewTensor(DType dtype, int64_t rows, int64_t cols) {
    absl::StatusOr<Buffer> buffer = ops_->Allocate(rows * cols * SizeOf(dtype));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    memory_.push_back(*buffer);
    return memory_.back().AsTensor(dtype, rows, cols);
  }
  DenseWeight Load(const std::vector<uint16_t>& values, int64_t rows, int64_t cols) {
    auto weight = ops_->LoadDense({values.data(), rows, cols, cols});
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *weight;
  }
  void BeginStep(const std::vector<int32_t>& ids) {
    positions_.assign(ids.size(), 0);
    std::iota(positions_.begin(), positions_.end(), 0);
    blocks_.assign(ids.size() / 16 + 1, 0);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    run_ = {
        .rows = static_cast<int>(ids.size()), .full_blocks = blocks_, .sliding_blocks = blocks_};
    ops_->BeginStep({ids, positions_, {&run_, 1}});
  }

  // A prompt of as many rows as are sampled.
  void BeginSampling(const std::vector<SampleParams>& params, const std::vector<int32_t>& slots) {
    positions_.assign(params.size(), 0);
    std::iota(positions_.begin(), positions_.end(), 0);
    blocks_.assign(params.size() / 16 + 1, 0);
    run_ = {
        .rows = static_cast<int>(params.size()), .full_blocks = blocks_, .sliding_blocks = blocks_};
    ops_->BeginStep({.token_ids = positions_,
                     .positions = positions_,
                     .runs = {&run_, 1},
                     .sample_rows = positions_,
                     .sample_params = params,
                     .sample_slots = slots});
  }

  std::unique_ptr<Ops> ops_;
  std::vector<Buffer> memory_;
  std::vector<int32_t> positions_, blocks_;
  SequenceRun run_;
};

TEST_F(CudaOpsTest, SaysWhatRuns) {
  EXPECT_EQ(ops_->info().device, "cuda");
  EXPECT_EQ(ops_->info().instruction_set, "sm_90a");
  EXPECT_FALSE(ops_->info().device_name.empty());
  EXPECT_EQ(ops_->activation_dtype(), DType::kBf16);
  EXPECT_EQ(ops_->partial_dtype(), DType::kF32);
  EXPECT_EQ(ProbeCuda(0).compute_capability, "9.0");
}

TEST_F(CudaOpsTest, MemoryIsZeroAndItsAbsenceANumber) {
  const Tensor tensor = NewTensor(DType::kI32, 300, 7);
  EXPECT_EQ(ReadAll<int32_t>(tensor), std::vector<int32_t>(2100, 0));
  constexpr int64_t kPetabyte = int64_t{1} << 50;
  const auto refused = ops_->Allocate(kPetabyte);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("1125899906842624"));
  EXPECT_TRUE(ops_->Finish().ok());  // and nothing else is broken
  EXPECT_TRUE(ops_->Allocate(0).ok());
}

TEST_F(CudaOpsTest, WritesAndReadsAnySize) {
  RandomData random(1);
  for (const int64_t size : {1, 1000, 16384, 16385, 300000}) {
    const std::vector<float> values = random.Floats(size, 1);
    const Tensor tensor = NewTensor(DType::kF32, 1, size);
    ops_->Write(tensor, values.data());
    EXPECT_EQ(ReadAll<float>(tensor), values);
  }
}

TEST_F(CudaOpsTest, LoadsRowsColumnsAndVectors) {
  RandomData random(2);
  // More than one piece of the upload, and a slice of columns.
  const std::vector<uint16_t> large = random.Bf16(int64_t{3000} * 2000, 1);
  const DenseWeight whole = Load(large, 3000, 2000);
  EXPECT_EQ(ReadAll<uint16_t>({const_cast<void*>(whole.data), DType::kBf16, 3000, 2000}), large);
  const auto slice = ops_->LoadDense({large.data() + 100, 3000, 1600, 2000});
  ASSERT_TRUE(slice.ok());
  EXPECT_EQ(slice->row_stride, 1600);
  std::vector<uint16_t> expected;
  for (int64_t row = 0; row < 3000; ++row) {
    expected.insert(expected.end(), large.begin() + row * 2000 + 100,
                    large.begin() + row * 2000 + 1700);
  }
  EXPECT_EQ(ReadAll<uint16_t>({const_cast<void*>(slice->data), DType::kBf16, 3000, 1600}),
            expected);

  const std::vector<uint16_t> values = random.Bf16(4096, 1);
  const auto vector = ops_->LoadVector(values);
  ASSERT_TRUE(vector.ok());
  EXPECT_EQ(ReadAll<uint16_t>({const_cast<void*>(vector->data), DType::kBf16, 1, 4096}), values);
  const std::vector<float> wide =
      ReadAll<float>({const_cast<float*>(WeightMemory::Float32(*vector)), DType::kF32, 1, 4096});
  for (int i = 0; i < 4096; ++i) EXPECT_EQ(wide[i], reference::FromBf16(values[i]));
  EXPECT_EQ(ops_->LoadVector({})->data, nullptr);
}

TEST_F(CudaOpsTest, ALayersProjectionsLieSideBySide) {
  RandomData random(3);
  const std::vector<uint16_t> values = random.Bf16(512 * 128, 1);
  for (int layer = 0; layer < 200; ++layer) {  // past the first slab
    const DenseWeight q = Load(values, 512, 128);
    const DenseWeight k = Load(values, 128, 128);
    const DenseWeight v = Load(values, 128, 128);
    Load(values, 128, 512);
    ASSERT_EQ(static_cast<const std::byte*>(q.data) + 512 * 128 * 2, k.data);
    ASSERT_EQ(static_cast<const std::byte*>(k.data) + 128 * 128 * 2, v.data);
  }
}

TEST_F(CudaOpsTest, PenaltiesOfASlotFollowItsTokensFromStepToStep) {
  const std::vector<float> row = [] {
    std::vector<float> logits(512, -5);
    logits[1] = 5;
    logits[2] = 2;
    logits[3] = 3;
    return logits;
  }();
  std::vector<float> logits = row;
  logits.insert(logits.end(), row.begin(), row.end());
  const Tensor device_logits = NewTensor(DType::kF32, 2, 512);
  ops_->Write(device_logits, logits.data());
  const SampleOutput output = {NewTensor(DType::kI32, 2, 1), NewTensor(DType::kF32, 2, 1),
                               NewTensor(DType::kI32, 2, kMaxLogprobs),
                               NewTensor(DType::kF32, 2, kMaxLogprobs)};
  const std::vector<int32_t> history = {0};
  ops_->SetSlotSampling(3, {.counted = true, .history = history, .prompt_tokens = 1});
  std::vector<int32_t> drawn;
  for (int step = 0; step < 4; ++step) {
    BeginSampling({{.temperature = 0, .counted = true, .frequency_penalty = 1.5f},
                   {.temperature = 0, .logprobs = 1}},
                  {3, 0});
    ops_->Sample(device_logits, 0, output);
    ops_->StoreSampled(output.tokens);
    const std::vector<int32_t> tokens = ReadAll<int32_t>(output.tokens);
    drawn.push_back(tokens[0]);
    EXPECT_EQ(tokens[1], 1);  // the slot beside it knows nothing of it
  }
  EXPECT_EQ(drawn, (std::vector<int32_t>{1, 1, 3, 1}));
  const std::vector<int32_t> targets = {2, 1};
  ops_->TargetLogprobs(device_logits, targets, 1, output);
  const std::vector<float> logprobs = ReadAll<float>(output.logprobs);
  EXPECT_NEAR(logprobs[0], logprobs[1] - 3, 1e-5);
  EXPECT_EQ(ReadAll<int32_t>(output.top_tokens)[0], 1);
  EXPECT_TRUE(ops_->Finish().ok());
}

// Recorded steps find what a slot was told since they were recorded.
TEST_F(CudaOpsTest, RecordedStepsFollowTheSlotsOptions) {
  std::vector<float> row(512, -5);
  for (int id = 1; id < 6; ++id) row[id] = 10.0f - static_cast<float>(id);
  const Tensor logits = NewTensor(DType::kF32, 1, 512);
  ops_->Write(logits, row.data());
  const SampleOutput output = {NewTensor(DType::kI32, 1, 1), NewTensor(DType::kF32, 1, 1),
                               NewTensor(DType::kI32, 1, kMaxLogprobs),
                               NewTensor(DType::kF32, 1, kMaxLogprobs)};
  const std::vector<int32_t> ids = {7}, rows = {0}, blocks = {0};
  int replayed = 0;
  const auto draw = [&](int slot, const SampleParams& params) {
    const std::vector<int32_t> positions = {5}, slots = {slot};
    const SequenceRun run = {.slot = slot,
                             .rows = 1,
                             .start_position = 5,
                             .full_blocks = blocks,
                             .sliding_blocks = blocks};
    const StepLaunch launch =
        ops_->BeginStep({ids, positions, {&run, 1}, rows, {&params, 1}, slots, 9});
    replayed += launch.replayed ? 1 : 0;
    if (!launch.replayed) {
      ops_->Sample(logits, 0, output);
      ops_->StoreSampled(output.tokens);
    }
    ops_->Submit();
    return ReadAll<int32_t>(output.tokens)[0];
  };
  const SampleParams plain = {.temperature = 0};
  const SampleParams penalized = {.temperature = 0, .counted = true, .presence_penalty = 100};
  ops_->SetSlotSampling(2, {.counted = true});
  std::vector<int32_t> drawn;
  for (int step = 0; step < 5; ++step) {
    EXPECT_EQ(draw(2, plain), 1);
    drawn.push_back(draw(2, penalized));
  }
  EXPECT_EQ(drawn, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  // Another sequence in the slot, and a slot that was never used.
  ops_->SetSlotSampling(2, {.counted = true});
  EXPECT_EQ(draw(2, penalized), 1);
  EXPECT_EQ(draw(2, penalized), 2);
  const std::vector<int32_t> tokens = {5};
  const std::vector<float> biases = {50};
  ops_->SetSlotSampling(6, {.bias_tokens = tokens, .biases = biases});
  EXPECT_EQ(draw(6, {.temperature = 0, .biased = true}), 5);
  EXPECT_EQ(replayed, 2 * 3 + 3) << "of either kind the third step and on";
  EXPECT_TRUE(ops_->Finish().ok());
}

TEST_F(CudaOpsTest, EmbedsIdsAndTokensSampledBefore) {
  RandomData random(4);
  const std::vector<uint16_t> table = random.Bf16(512 * 128, 1);
  const std::vector<uint16_t> half(table.begin() + 200 * 128, table.begin() + 456 * 128);
  const DenseWeight shard = Load(half, 256, 128);  // ids 200 to 455
  const Tensor tokens = NewTensor(DType::kI32, 3, 1);
  const std::array<int32_t, 3> sampled = {211, 455, 7};
  ops_->Write(tokens, sampled.data());
  BeginSampling(std::vector<SampleParams>(3), {5, 0, 7});
  ops_->StoreSampled(tokens);
  const std::vector<int32_t> ids = {200, -1, 455, 199, 456, -6, 300, -8};
  const std::vector<int32_t> meant = {200, 455, 455, -1, -1, 211, 300, -1};
  BeginStep(ids);
  const Tensor x = NewTensor(DType::kBf16, 8, 128);
  ops_->Embed(shard, 200, x);
  const std::vector<uint16_t> rows = ReadAll<uint16_t>(x);
  for (int row = 0; row < 8; ++row) {
    for (int i = 0; i < 128; ++i) {
      ASSERT_EQ(rows[row * 128 + i], meant[row] < 0 ? 0 : table[meant[row] * 128 + i]) << row;
    }
  }
  EXPECT_TRUE(ops_->Finish().ok());
}

TEST_F(CudaOpsTest, LogitsOfTheRowsAskedFor) {
  RandomData random(5);
  constexpr int kVocab = 500;
  const std::vector<uint16_t> head = random.Bf16(kVocab * 128, 0.1);
  const DenseWeight weight = Load(head, kVocab, 128);
  const VectorWeight norm = *ops_->LoadVector(random.Bf16(128, 1));
  const VectorWeight bias = *ops_->LoadVector(random.Bf16(kVocab, 1));
  const Tensor x = NewTensor(DType::kBf16, 160, 128);
  const std::vector<uint16_t> hidden = random.Bf16(160 * 128, 1);
  ops_->Write(x, hidden.data());
  const auto expect = [&](const std::vector<int32_t>& rows, bool with_bias) {
    const Tensor logits = NewTensor(DType::kF32, static_cast<int64_t>(rows.size()), kVocab);
    if (with_bias) {
      ops_->HeadLogits(norm, weight, bias, x, rows, logits);
    } else {
      ops_->Logits(norm, weight, x, rows, logits);
    }
    const std::vector<float> actual = ReadAll<float>(logits);
    const DeviceArray<int32_t> gather(rows);
    Bf16Array normed(static_cast<int64_t>(rows.size()) * 128);
    ReferenceNorm(x.as<__nv_bfloat16>(), gather.data(),
                  static_cast<const __nv_bfloat16*>(norm.data), 1e-5,
                  static_cast<int64_t>(rows.size()), 128, normed.data());
    DeviceArray<double> expected(static_cast<int64_t>(rows.size()) * kVocab);
    ReferenceProduct(normed.data(), static_cast<const __nv_bfloat16*>(weight.data),
                     with_bias ? static_cast<const __nv_bfloat16*>(bias.data) : nullptr,
                     static_cast<int64_t>(rows.size()), kVocab, 128, expected.data());
    EXPECT_LE(RelativeRms(actual, expected.Download()), 2e-4) << rows.size();
  };
  expect({159}, false);
  expect({3, 1, 4, 1, 5, 9, 2, 6}, true);
  std::vector<int32_t> many(150);
  for (int i = 0; i < 150; ++i) many[i] = 159 - i;
  expect(many, false);
  expect(many, true);
  EXPECT_TRUE(ops_->Finish().ok());
}

TEST_F(CudaOpsTest, JoinsColumns) {
  const std::array<int64_t, 3> widths = {5, 1, 10};
  std::vector<Tensor> blocks;
  std::vector<float> expected(4 * 16);
  int64_t first = 0;
  for (const int64_t width : widths) {
    std::vector<float> values(4 * width);
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        values[row * width + i] = expected[row * 16 + first + i] =
            static_cast<float>(100 * row + first + i);
      }
    }
    blocks.push_back(NewTensor(DType::kF32, 4, width));
    ops_->Write(blocks.back(), values.data());
    first += width;
  }
  const Tensor out = NewTensor(DType::kF32, 4, 16);
  ops_->JoinColumns(blocks, out);
  EXPECT_EQ(ReadAll<float>(out), expected);
}

TEST_F(CudaOpsTest, SamplesTheLargestAtTemperatureZero) {
  RandomData random(6);
  std::vector<float> values = random.Floats(3 * 512, 1);
  const std::array<int32_t, 3> best = {17, 0, 511};
  for (int row = 0; row < 3; ++row) values[row * 512 + best[row]] = 10;
  values[2 * 512 + 300] = 10;  // the lower id of a tie
  const Tensor logits = NewTensor(DType::kF32, 3, 512);
  ops_->Write(logits, values.data());
  const SampleOutput out = {NewTensor(DType::kI32, 3, 1), NewTensor(DType::kF32, 3, 1),
                            NewTensor(DType::kI32, 3, kMaxLogprobs),
                            NewTensor(DType::kF32, 3, kMaxLogprobs)};
  BeginSampling(std::vector<SampleParams>(3, {.temperature = 0}), {0, 1, 2});
  ops_->Sample(logits, 0, out);
  EXPECT_EQ(ReadAll<int32_t>(out.tokens), (std::vector<int32_t>{17, 0, 300}));
  EXPECT_TRUE(ops_->Finish().ok());
}

TEST_F(CudaOpsTest, AFailureIsKeptUntilFinishAndNamed) {
  const Tensor good = NewTensor(DType::kF32, 1, 4);
  const Tensor nowhere = {nullptr, DType::kF32, 1, 4};
  std::vector<float> values = {1, 2, 3, 4};
  ops_->Write(nowhere, values.data());
  ops_->Write(good, values.data());  // a no-op now
  std::vector<float> read(4, 9);
  ops_->Read(good, read.data());
  EXPECT_EQ(read, std::vector<float>(4, 0));
  const absl::Status status = ops_->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("Write"));
  EXPECT_TRUE(ops_->Finish().ok());
  EXPECT_EQ(ReadAll<float>(good), std::vector<float>(4, 0));
}

TEST_F(CudaOpsTest, RefusesShapesWithoutKernels) {
  model::Config config = TinyConfig();
  config.hidden_size = 100;
  const auto ops = MakeCudaOps(config, 2, kOptions);
  ASSERT_FALSE(ops.ok());
  EXPECT_THAT(std::string(ops.status().message()), StartsWith("shape_unsupported: "));
}

// Each reads what its own step made, though the next one has been enqueued.
TEST_F(CudaOpsTest, ReadsOfStepsInAdvanceBringWhatEachStepMade) {
  ASSERT_TRUE(ops_->runs_ahead());
  ASSERT_EQ(kMaxStepsAhead, 2);
  const std::vector<uint16_t> table = RandomData(1).Bf16(512 * 128, 1);
  const DenseWeight embedding = Load(table, 512, 128);
  const Tensor x = NewTensor(DType::kBf16, 3, 128);
  const Tensor other = NewTensor(DType::kI32, 1, 1);
  const std::array<std::vector<int32_t>, 3> ids = {
      std::vector<int32_t>{1, 2, 3}, {500, 7, 40}, {9, 9, 9}};
  const auto start = [&](int step) {
    BeginStep(ids[step]);
    ops_->Embed(embedding, 0, x);
    ops_->Submit();
    const std::array<Tensor, 2> sources = {x, other};
    ops_->StartReads(sources);
  };
  const auto expect = [&](int step) {
    std::vector<uint16_t> rows(3 * 128);
    int32_t nothing = -1;
    const std::array<void*, 2> places = {rows.data(), &nothing};
    EXPECT_EQ(ops_->FinishReads(places), absl::OkStatus());
    EXPECT_EQ(nothing, 0);
    for (int row = 0; row < 3; ++row) {
      const auto from = table.begin() + ids[step][row] * 128;
      EXPECT_TRUE(std::equal(from, from + 128, rows.begin() + row * 128)) << step << " " << row;
    }
  };
  start(0);
  start(1);
  expect(0);
  start(2);
  expect(1);
  while (!ops_->ReadsDone()) {
  }
  expect(2);
}

TEST_F(CudaOpsTest, AStepWithoutRowsDoesNothing) {
  BeginStep({});
  const Tensor x = NewTensor(DType::kBf16, 0, 128);
  ops_->Embed(DenseWeight{}, 0, x);
  ops_->AddResidual(NewTensor(DType::kF32, 0, 128), x);
  EXPECT_TRUE(ops_->Finish().ok());
}

}  // namespace
}  // namespace conclave::kernels::cuda
