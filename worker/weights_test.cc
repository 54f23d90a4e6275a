#include "worker/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "model/memory_plan.h"
#include "tests/goldens/goldens.h"

namespace conclave::worker {
namespace {

using testing::HasSubstr;

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override { Open(goldens::TinyModelDir()); }

  void Open(const std::string& dir) {
    dir_ = dir;
    auto config = model::LoadConfig(dir);
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *std::move(config);
    auto checkpoint = model::Checkpoint::Open(dir, config_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }

  // A copy of the checkpoint whose files may be changed.
  std::string CopyModel() {
    const std::filesystem::path copy = std::filesystem::path(testing::TempDir()) / "model_copy";
    std::filesystem::remove_all(copy);
    std::filesystem::create_directories(copy);
    for (const auto& entry : std::filesystem::directory_iterator(goldens::TinyModelDir())) {
      if (!entry.is_regular_file()) continue;
      const std::filesystem::path to = copy / entry.path().filename();
      std::filesystem::copy_file(entry.path(), to);
      std::filesystem::permissions(to, std::filesystem::perms::owner_all);
    }
    return copy.string();
  }

  absl::StatusOr<RankWeights> Load(
      const model::ParallelShape& shape, int rank,
      std::vector<std::pair<std::string, std::string>> heads = {},
      const std::function<bool(int64_t, int64_t)>& progress = [](int64_t, int64_t) {
        return true;
      }) {
    placement_ = model::BalancedPlacement(config_, shape.world());
    const model::Range kv_heads = model::KvHeadRange(config_, shape.tp, shape.tp_rank(rank));
    ops_ = kernels::MakeCpuOps(config_, kv_heads.size(), {});
    WeightsRequest request;
    request.shape = shape;
    request.rank = rank;
    request.placement = &placement_;
    request.heads = std::move(heads);
    return LoadRankWeights(config_, checkpoint_, request, *ops_, progress);
  }

  std::string dir_;
  model::Config config_;
  std::shared_ptr<const model::Checkpoint> checkpoint_;
  model::Placement placement_;
  std::unique_ptr<kernels::Ops> ops_;
};

TEST_F(WeightsTest, EachRankHoldsItsShareAndNothingElse) {
  for (const model::ParallelShape shape :
       {model::ParallelShape{1, 1}, {2, 1}, {3, 1}, {1, 2}, {2, 2}}) {
    for (int rank = 0; rank < shape.world(); ++rank) {
      const auto weights = Load(shape, rank);
      ASSERT_TRUE(weights.ok()) << weights.status();
      const auto plan = model::PlanWeights(config_, *checkpoint_, shape, placement_);
      EXPECT_EQ(weights->bytes, plan[rank].total()) << shape.dp << " x " << shape.tp << " " << rank;
      const bool first = shape.tp_rank(rank) == 0;
      const model::Range vocab = model::VocabRange(config_, shape.tp, shape.tp_rank(rank));
      EXPECT_EQ(weights->vocab_begin, vocab.begin);
      EXPECT_EQ(weights->embedding.rows, vocab.size());
      EXPECT_EQ(weights->lm_head.rows, vocab.size());
      for (int layer = 0; layer < config_.num_layers; ++layer) {
        const LayerWeights& own = weights->layers[layer];
        EXPECT_EQ(own.local_experts, placement_.layers[layer].ExpertsOf(rank));
        EXPECT_EQ(own.experts->num_local(), static_cast<int>(own.local_experts.size()));
        EXPECT_EQ(own.experts->format(), "mxfp4");
        EXPECT_EQ(own.attention.q.rows * shape.tp, config_.num_heads * config_.head_dim);
        EXPECT_EQ(own.attention.k.rows * shape.tp, config_.num_kv_heads * config_.head_dim);
        EXPECT_EQ(own.attention.o.cols * shape.tp, config_.num_heads * config_.head_dim);
        EXPECT_EQ(own.attention.o.rows, config_.hidden_size);
        EXPECT_EQ(own.attention.sinks.size * shape.tp, config_.num_heads);
        EXPECT_EQ(own.attention.o_bias.data != nullptr, first);
      }
    }
  }
}

// The file holds [H, heads * D]; rank 1 of 2 has the right half of every row.
TEST_F(WeightsTest, OutputProjectionIsCutByColumnsInPlace) {
  const auto whole = Load({1, 1}, 0);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const auto right = Load({1, 2}, 1);
  ASSERT_TRUE(right.ok()) << right.status();
  const kernels::DenseWeight& all = whole->layers[2].attention.o;
  const kernels::DenseWeight& half = right->layers[2].attention.o;
  for (int64_t row : {int64_t{0}, int64_t{1}, all.rows - 1}) {
    const auto* a = static_cast<const uint16_t*>(all.data) + row * all.row_stride + all.cols / 2;
    const auto* b = static_cast<const uint16_t*>(half.data) + row * half.row_stride;
    EXPECT_EQ(std::vector<uint16_t>(a, a + half.cols), std::vector<uint16_t>(b, b + half.cols));
  }
}

TEST_F(WeightsTest, ProgressRisesToTheTotal) {
  std::vector<int64_t> seen;
  std::set<int64_t> totals;
  const auto weights = Load({2, 1}, 1, {}, [&](int64_t loaded, int64_t total) {
    seen.push_back(loaded);
    totals.insert(total);
    return true;
  });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), weights->bytes);
  EXPECT_EQ(totals, std::set<int64_t>{weights->bytes});
}

TEST_F(WeightsTest, ProgressCancels) {
  const auto weights = Load({1, 1}, 0, {}, [](int64_t, int64_t) { return false; });
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(WeightsTest, HeadsComeInTheOrderAskedFor) {
  const auto weights =
      Load({1, 1}, 0, {{"b", dir_ + "/head_token"}, {"a", dir_ + "/head_sequence"}});
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->heads.size(), 2u);
  EXPECT_EQ(weights->heads[0].name, "b");
  EXPECT_EQ(weights->heads[0].weight.rows, 5);
  EXPECT_EQ(weights->heads[0].bias.size, 5);
  EXPECT_EQ(weights->heads[1].config.labels[2], "positive");
  EXPECT_EQ(weights->heads[1].bias.data, nullptr) << "sequence heads have no bias";
}

TEST_F(WeightsTest, TheOwnHeadOfALanguageModelIsRefused) {
  const auto weights = Load({1, 1}, 0, {{"own", ""}});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("own"));
}

TEST_F(WeightsTest, AFileTruncatedAfterOpeningIsAnErrorWithItsName) {
  Open(CopyModel());
  const std::string shard = checkpoint_->tensors().layers[0].down_blocks.file;
  std::filesystem::resize_file(shard, 8192);
  const auto weights = Load({1, 1}, 0);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kDataLoss) << weights.status();
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr(shard));
}

TEST_F(WeightsTest, AScaleBeyondFloatIsRefusedWithItsExpert) {
  const std::string copy = CopyModel();
  Open(copy);
  const model::TensorView& scales = checkpoint_->tensors().layers[1].down_scales;
  // The tensor's place in the file, by the bytes it holds.
  std::ifstream in(scales.file, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(in)), {});
  const std::string bytes(reinterpret_cast<const char*>(scales.bytes.data()), scales.bytes.size());
  const size_t at = content.find(bytes);
  ASSERT_NE(at, std::string::npos);
  std::fstream out(scales.file, std::ios::binary | std::ios::in | std::ios::out);
  out.seekp(static_cast<std::streamoff>(at + bytes.size() - 1));  // of the last expert
  out.put(static_cast<char>(253));
  out.close();
  const auto weights = Load({1, 1}, 0);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument) << weights.status();
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("of expert 15"));
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("253"));
}

}  // namespace
}  // namespace conclave::worker
