#include "kernels/cuda/step_graphs.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/device_test.h"
#include "model/row_bucket.h"

namespace conclave::kernels::cuda {
namespace {

using Use = StepGraphs::Use;

// `rows` sequences, one token each at `position`, all sampled.
struct Decode {
  explicit Decode(int rows, int position = 5, uint64_t record_key = 1)
      : ids(rows),
        positions(rows, position),
        runs(rows),
        sample_rows(rows),
        params(rows),
        key(record_key) {
    std::iota(sample_rows.begin(), sample_rows.end(), 0);
    for (int i = 0; i < rows; ++i) {
      runs[i].slot = i;
      runs[i].first_row = i;
      runs[i].rows = 1;
      runs[i].start_position = position;
    }
  }
  StepBatch batch() const { return {ids, positions, runs, sample_rows, params, sample_rows, key}; }
  std::vector<int32_t> ids, positions;
  std::vector<SequenceRun> runs;
  std::vector<int32_t> sample_rows;
  std::vector<SampleParams> params;
  uint64_t key;
};

TEST(StepGraphsBucketTest, NeverLessThanTheRowsAndFew) {
  int buckets = 0;
  for (int rows = 1; rows <= kMaxRecordedRows; ++rows) {
    EXPECT_GE(model::RowBucket(rows), rows);
    EXPECT_LE(model::RowBucket(rows), rows + rows / 2 + 8);
    EXPECT_EQ(model::RowBucket(model::RowBucket(rows)), model::RowBucket(rows));
    if (model::RowBucket(rows) == rows) ++buckets;
  }
  EXPECT_EQ(buckets, 8 + 7 + 4 + 4 + 4);
}

// Of the same rows, but with another kernel that samples.
TEST(StepGraphsBucketTest, StepsThatChangeLogitsAreRecordedApart) {
  StepGraphs graphs(64, true);
  Decode adjusted(4);
  adjusted.params[2].counted = true;
  graphs.Begin(Decode(4).batch());
  EXPECT_TRUE(graphs.Begin(adjusted.batch()).adjusts);
  EXPECT_EQ(graphs.use(), Use::kEager) << "the first of its kind";
  EXPECT_FALSE(graphs.Begin(Decode(4).batch()).adjusts);
  EXPECT_EQ(graphs.use(), Use::kRecord) << "the second of its kind";
}

TEST(StepGraphsBucketTest, OnlyStepsOfOneSampledTokenForEachRunAreRoundedUp) {
  StepGraphs graphs(64, true);
  EXPECT_EQ(graphs.Begin(Decode(9).batch()).rows, 16);
  EXPECT_EQ(graphs.Begin(Decode(9, 5, 0).batch()).rows, 9);  // no key
  Decode prefill(9);
  prefill.runs.resize(1);
  prefill.runs[0].rows = 9;
  EXPECT_EQ(graphs.Begin(prefill.batch()).rows, 9);
  Decode unsampled(9);
  unsampled.sample_rows.pop_back();
  unsampled.params.pop_back();
  EXPECT_EQ(graphs.Begin(unsampled.batch()).rows, 9);
  Decode reversed(9);
  std::swap(reversed.sample_rows[0], reversed.sample_rows[1]);
  EXPECT_EQ(graphs.Begin(reversed.batch()).rows, 9);
  EXPECT_EQ(graphs.Begin(Decode(0).batch()).rows, 0);
  EXPECT_EQ(graphs.Begin(Decode(0).batch()).runs, 0);
  EXPECT_EQ(graphs.Begin(Decode(60).batch()).rows, 64);
  EXPECT_EQ(StepGraphs(62, true).Begin(Decode(60).batch()).rows, 62);
}

class StepGraphsTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    EXPECT_CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  // One step that copies `from` to `to`; returns how it ran.
  Use Step(StepGraphs& graphs, const Decode& decode, const DeviceArray<int>& from,
           DeviceArray<int>& to) {
    graphs.Begin(decode.batch());
    const Use use = graphs.use();
    if (use == Use::kRecord) {
      EXPECT_TRUE(graphs.StartCapture(stream_).ok());
    }
    if (use != Use::kReplay) {
      EXPECT_CUDA_OK(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(int),
                                     cudaMemcpyDeviceToDevice, stream_));
    }
    if (use == Use::kReplay) {
      EXPECT_EQ(graphs.launches(), 77u);
    }
    EXPECT_TRUE(graphs.Submit(stream_, 77).ok());
    EXPECT_CUDA_OK(cudaStreamSynchronize(stream_));
    return use;
  }

  cudaStream_t stream_ = nullptr;
};

TEST_F(StepGraphsTest, TheSecondStepOfABucketIsRecordedAndTheThirdReplaysIt) {
  StepGraphs graphs(64, true);
  DeviceArray<int> from(std::vector<int>{1, 2, 3});
  DeviceArray<int> to(std::vector<int>{0, 0, 0});
  EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(10), from, to), Use::kRecord);
  EXPECT_EQ(to.Download(), from.Download());
  for (int i = 0; i < 3; ++i) {
    const std::vector<int> values = {i, i + 1, i + 2};
    EXPECT_CUDA_OK(cudaMemcpy(from.data(), values.data(), 12, cudaMemcpyHostToDevice));
    EXPECT_EQ(Step(graphs, Decode(11 + i), from, to), Use::kReplay);
    EXPECT_EQ(to.Download(), values);
  }
  // Another bucket, key or context is another graph.
  EXPECT_EQ(Step(graphs, Decode(17), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(9, 5, 2), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(9, 1024), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(9, 1023), from, to), Use::kReplay);
}

TEST_F(StepGraphsTest, WithoutRecordingEveryStepIsEager) {
  StepGraphs graphs(64, false);
  DeviceArray<int> from(std::vector<int>{1});
  DeviceArray<int> to(std::vector<int>{0});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kEager);
}

TEST_F(StepGraphsTest, AStepThatEndsEarlyLeavesTheStreamUsable) {
  StepGraphs graphs(64, true);
  DeviceArray<int> from(std::vector<int>{1});
  DeviceArray<int> to(std::vector<int>{0});
  Step(graphs, Decode(9), from, to);
  graphs.Begin(Decode(9).batch());
  ASSERT_EQ(graphs.use(), Use::kRecord);
  ASSERT_TRUE(graphs.StartCapture(stream_).ok());
  graphs.Abandon(stream_);
  EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kRecord);
  EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kReplay);
}

TEST_F(StepGraphsTest, AfterClearNothingIsReplayed) {
  StepGraphs graphs(64, true);
  DeviceArray<int> from(std::vector<int>{1});
  DeviceArray<int> to(std::vector<int>{0});
  for (int i = 0; i < 3; ++i) Step(graphs, Decode(9), from, to);
  graphs.Clear();
  EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(9), from, to), Use::kRecord);
  // An idle rank's steps are recorded too.
  EXPECT_EQ(Step(graphs, Decode(0), from, to), Use::kEager);
  EXPECT_EQ(Step(graphs, Decode(0), from, to), Use::kRecord);
  EXPECT_EQ(Step(graphs, Decode(0), from, to), Use::kReplay);
}

TEST_F(StepGraphsTest, TheGraphNotUsedForLongestGoes) {
  StepGraphs graphs(64, true);
  DeviceArray<int> from(std::vector<int>{1});
  DeviceArray<int> to(std::vector<int>{0});
  for (uint64_t key = 1; key <= kMaxGraphs + 1; ++key) {
    Step(graphs, Decode(9, 5, key), from, to);
    EXPECT_EQ(Step(graphs, Decode(9, 5, key), from, to), Use::kRecord);
  }
  EXPECT_EQ(Step(graphs, Decode(9, 5, 2), from, to), Use::kReplay);
  EXPECT_EQ(Step(graphs, Decode(9, 5, 1), from, to), Use::kRecord);
}

}  // namespace
}  // namespace conclave::kernels::cuda
