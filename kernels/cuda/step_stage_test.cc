#include "kernels/cuda/step_stage.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "kernels/cuda/device_test.h"

namespace conclave::kernels::cuda {
namespace {

constexpr StepLimits kLimits = {
    .max_rows = 64, .max_runs = 8, .max_samples = 8, .max_blocks = 200, .argument_bytes = 1024};

// A step with different numbers for every `salt`.
struct Step {
  explicit Step(int salt) {
    int row = 0;
    for (int i = 0; i < 1 + salt % 4; ++i) {
      SequenceRun run;
      run.slot = salt + i;
      run.first_row = row;
      run.rows = 1 + (salt + i) % 5;
      run.start_position = 16 * i + salt;
      run.sliding_first = i;
      for (int b = 0; b < 3 + i; ++b) full[i].push_back(100 * salt + 10 * i + b);
      for (int b = 0; b < i; ++b) sliding[i].push_back(-100 * salt - 10 * i - b);
      run.full_blocks = full[i];
      run.sliding_blocks = sliding[i];
      for (int j = 0; j < run.rows; ++j) {
        ids.push_back(salt * 1000 + row + j);
        positions.push_back(run.start_position + j);
      }
      row += run.rows;
      runs.push_back(run);
    }
  }
  StepBatch batch() const { return {ids, positions, runs, sample_rows, params, slots}; }
  std::vector<int32_t> sample_rows = {0, 2};
  std::vector<SampleParams> params = {{.temperature = 0.5f, .seed = 7, .position = 3},
                                      {.top_k = 4, .logprobs = 2}};
  std::vector<int32_t> slots = {3, 1};
  std::vector<int32_t> ids, positions, full[4], sliding[4];
  std::vector<SequenceRun> runs;
};

template <typename T>
std::vector<T> FromDevice(const T* device, int64_t size) {
  std::vector<T> out(size);
  EXPECT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_CUDA_OK(cudaMemcpy(out.data(), device, size * sizeof(T), cudaMemcpyDefault));
  return out;
}

void ExpectView(const Step& step, const StepView& view) {
  ASSERT_EQ(view.rows, static_cast<int>(step.ids.size()));
  ASSERT_EQ(view.runs, static_cast<int>(step.runs.size()));
  EXPECT_EQ(FromDevice(view.token_ids, view.rows), step.ids);
  EXPECT_EQ(FromDevice(view.positions, view.rows), step.positions);
  const std::vector<int32_t> run_of_row = FromDevice(view.run_of_row, view.rows);
  const std::vector<RunView> runs = FromDevice(view.run, view.runs);
  int max_context = 0;
  int max_run_rows = 0;
  for (int i = 0; i < view.runs; ++i) {
    const SequenceRun& run = step.runs[i];
    EXPECT_EQ(runs[i].slot, run.slot);
    EXPECT_EQ(runs[i].first_row, run.first_row);
    EXPECT_EQ(runs[i].rows, run.rows);
    EXPECT_EQ(runs[i].start_position, run.start_position);
    EXPECT_EQ(runs[i].sliding_first, run.sliding_first);
    EXPECT_EQ(FromDevice(view.blocks + runs[i].full_offset, step.full[i].size()), step.full[i]);
    EXPECT_EQ(FromDevice(view.blocks + runs[i].sliding_offset, step.sliding[i].size()),
              step.sliding[i]);
    for (int row = run.first_row; row < run.first_row + run.rows; ++row) {
      EXPECT_EQ(run_of_row[row], i);
    }
    max_context = std::max(max_context, run.start_position + run.rows);
    max_run_rows = std::max(max_run_rows, run.rows);
  }
  EXPECT_EQ(view.max_context, max_context);
  EXPECT_EQ(view.max_run_rows, max_run_rows);
}

class StepStageTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    absl::StatusOr<std::unique_ptr<StepStage>> made = StepStage::Create(kLimits);
    ASSERT_TRUE(made.ok()) << made.status();
    stage_ = *std::move(made);
  }
  std::unique_ptr<StepStage> stage_;
};

TEST_F(StepStageTest, EveryStepIsThere) {
  for (int salt = 1; salt < 8; ++salt) {
    const Step step(salt);
    ExpectView(step, stage_->Begin(step.batch(), ShapeOf(step.batch()), nullptr));
  }
}

TEST_F(StepStageTest, PaddingBelongsToNoRunAndNoSlot) {
  const Step step(2);
  StepShape shape = ShapeOf(step.batch());
  const int rows = shape.rows;
  const int runs = shape.runs;
  shape.rows += 3;
  shape.runs += 2;
  shape.samples += 1;
  shape.max_context += 100;
  stage_->Begin(Step(7).batch(), ShapeOf(Step(7).batch()), nullptr);  // leaves its own behind
  stage_->Begin(Step(7).batch(), ShapeOf(Step(7).batch()), nullptr);
  const StepView view = stage_->Begin(step.batch(), shape, nullptr);
  EXPECT_EQ(view.rows, rows + 3);
  EXPECT_EQ(view.runs, runs + 2);
  EXPECT_EQ(view.max_context, shape.max_context);
  const std::vector<int32_t> run_of_row = FromDevice(view.run_of_row, view.rows);
  const std::vector<int32_t> ids = FromDevice(view.token_ids, view.rows);
  for (int row = rows; row < view.rows; ++row) {
    EXPECT_EQ(run_of_row[row], -1);
    EXPECT_EQ(ids[row], 0);
  }
  const std::vector<RunView> views = FromDevice(view.run, view.runs);
  for (int run = runs; run < view.runs; ++run) EXPECT_EQ(views[run].rows, 0);
  EXPECT_EQ(FromDevice(view.sample_slots, 3), (std::vector<int32_t>{3, 1, -1}));
  EXPECT_EQ(FromDevice(view.sample_rows, 3), (std::vector<int32_t>{0, 2, 0}));
  const std::vector<SampleRow> params = FromDevice(view.sample_params, 3);
  EXPECT_EQ(params[0].temperature, 0.5f);
  EXPECT_EQ(params[0].seed, 7u);
  EXPECT_EQ(params[0].position, 3);
  EXPECT_EQ(params[1].top_k, 4);
  EXPECT_EQ(params[1].logprobs, 2);
  EXPECT_EQ(params[2].temperature, 0);
}

TEST_F(StepStageTest, TheNextStepWaitsForItsTurnOnTheDevice) {
  // Copies of step n's ids are enqueued before step n + 1 begins, and run in order with it.
  std::vector<DeviceArray<int32_t>> seen;
  for (int salt = 0; salt < 6; ++salt) seen.emplace_back(int64_t{kLimits.max_rows});
  for (int salt = 0; salt < 6; ++salt) {
    const Step step(salt + 1);
    const StepView view = stage_->Begin(step.batch(), ShapeOf(step.batch()), nullptr);
    EXPECT_CUDA_OK(cudaMemcpyAsync(seen[salt].data(), view.token_ids, view.rows * sizeof(int32_t),
                                   cudaMemcpyDeviceToDevice, nullptr));
  }
  for (int salt = 0; salt < 6; ++salt) {
    std::vector<int32_t> ids = seen[salt].Download();
    const Step step(salt + 1);
    ids.resize(step.ids.size());
    EXPECT_EQ(ids, step.ids);
  }
}

TEST_F(StepStageTest, ArgumentsBeyondTheirRoomWaitAndAreRight) {
  const Step step(1);
  stage_->Begin(step.batch(), ShapeOf(step.batch()), nullptr);
  for (int i = 0; i < 20; ++i) {  // 20 x 400 bytes in 1,024
    const std::vector<int32_t> values(100, i);
    const auto* device = static_cast<const int32_t*>(stage_->Put(values.data(), 400, nullptr));
    EXPECT_EQ(FromDevice(device, 100), values);
  }
  EXPECT_EQ(stage_->Put(nullptr, 0, nullptr), nullptr);
}

TEST_F(StepStageTest, AStepWithoutRows) {
  const StepView view = stage_->Begin({}, StepShape{}, nullptr);
  EXPECT_EQ(view.rows, 0);
  EXPECT_EQ(view.runs, 0);
}

}  // namespace
}  // namespace conclave::kernels::cuda
