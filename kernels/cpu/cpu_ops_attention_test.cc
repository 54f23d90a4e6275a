// The attention half of a layer through Ops, against float64.

#include <cstring>
#include <limits>
#include <numeric>

#include "gtest/gtest.h"
#include "kernels/cpu/ops_fixture.h"
#include "kernels/ops.h"
#include "kernels/reference/random_data.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels {
namespace {

using reference::kFloat32Error;
using reference::RandomData;
using reference::Vector;

constexpr int kHidden = 96;
constexpr int kHeads = 8;
constexpr int kKvHeads = 4;
constexpr int kHeadDim = 36;  // neither hidden / heads nor a multiple of a vector
constexpr int kWindow = 24;
constexpr int kBlockTokens = 16;
constexpr int kGroup = kHeads / kKvHeads;
constexpr int kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;

model::Config AttentionConfig() {
  model::Config config = SmallConfig();
  config.hidden_size = kHidden;
  config.num_heads = kHeads;
  config.num_kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  config.sliding_window = kWindow;
  return config;
}

// Weights of a whole layer.
struct LayerData {
  explicit LayerData(RandomData& random)
      : norm(random.Bf16(kHidden, 1)),
        qkv(random.Bf16(kQkv * kHidden, 0.1)),
        qkv_bias(random.Bf16(kQkv, 0.5)),
        o(random.Bf16(kHidden * kHeads * kHeadDim, 0.1)),
        o_bias(random.Bf16(kHidden, 0.5)),
        sinks(random.Bf16(kHeads, 2)) {}

  // The share of KV heads [first, first + count); the bias of o goes with the first head.
  AttentionWeights Share(Ops& ops, int first, int count) const {
    AttentionWeights out;
    out.input_norm = *ops.LoadVector(norm);
    const auto part = [&](int head, int heads, DenseWeight& weight, VectorWeight& bias) {
      weight = *ops.LoadDense(
          {qkv.data() + head * kHeadDim * kHidden, heads * kHeadDim, kHidden, kHidden});
      bias = *ops.LoadVector(
          std::span(qkv_bias).subspan(head * kHeadDim, static_cast<size_t>(heads) * kHeadDim));
    };
    part(first * kGroup, count * kGroup, out.q, out.q_bias);
    part(kHeads + first, count, out.k, out.k_bias);
    part(kHeads + kKvHeads + first, count, out.v, out.v_bias);
    out.o = *ops.LoadDense({o.data() + first * kGroup * kHeadDim, kHidden,
                            count * kGroup * kHeadDim, kHeads * kHeadDim});
    if (first == 0) out.o_bias = *ops.LoadVector(o_bias);
    out.sinks = *ops.LoadVector(
        std::span(sinks).subspan(first * kGroup, static_cast<size_t>(count) * kGroup));
    return out;
  }

  std::vector<uint16_t> norm, qkv, qkv_bias, o, o_bias, sinks;
};

// One tp rank's layer: prefills tokens in chunks and keeps its cache.
class Rank {
 public:
  Rank(const LayerData& data, int first_kv_head, int kv_heads, model::LayerType type, int threads)
      : kv_heads_(kv_heads),
        ops_(MakeCpuOps(AttentionConfig(), kv_heads,
                        {.threads = threads, .max_sequences = 1, .block_tokens = kBlockTokens})),
        weights_(data.Share(*ops_, first_kv_head, kv_heads)) {
    const int64_t rows = int64_t{kBlocks} * kv_heads * kBlockTokens;
    keys_.assign(rows * kHeadDim, std::numeric_limits<float>::quiet_NaN());
    values_ = keys_;
    layer_ = {{keys_.data(), DType::kF32, rows, kHeadDim},
              {values_.data(), DType::kF32, rows, kHeadDim},
              type};
  }

  // x [count, H] from `position` on. Fills attention [count, heads * D] and partial [count, H].
  void Run(std::vector<float> x, int position, int count) {
    std::vector<int32_t> tokens(count), positions(count);
    std::iota(positions.begin(), positions.end(), position);
    // Blocks in no order, the sliding table starting late.
    const std::vector<int32_t> blocks = {7, 2, 5, 0, 3, 6, 1, 4};
    SequenceRun run;
    run.rows = count;
    run.start_position = position;
    run.sliding_first = std::max(0, position - kWindow + 1) / kBlockTokens;
    run.full_blocks = blocks;
    run.sliding_blocks = std::span(blocks).subspan(run.sliding_first);
    if (layer_.type == model::LayerType::kFull) run.sliding_blocks = {};
    if (layer_.type == model::LayerType::kSliding) run.full_blocks = {};
    ops_->BeginStep({tokens, positions, {&run, 1}});
    qkv.assign(int64_t{count} * (kGroup + 2) * kv_heads_ * kHeadDim, 0);
    const int64_t width = int64_t{kGroup} * kv_heads_ * kHeadDim;
    attention.assign(count * width, 0);
    partial.assign(int64_t{count} * kHidden, 0);
    const Tensor x_tensor = AsTensor(x, kHidden);
    const Tensor qkv_tensor = AsTensor(qkv, (kGroup + 2) * kv_heads_ * kHeadDim);
    const Tensor attention_tensor = AsTensor(attention, width);
    ops_->NormQkv(weights_, x_tensor, qkv_tensor);
    ops_->RopeAndCacheWrite(layer_, qkv_tensor);
    ops_->Attention(layer_, weights_.sinks, qkv_tensor, attention_tensor);
    ops_->OutputProjection(weights_, attention_tensor, AsTensor(partial, kHidden));
    ASSERT_TRUE(ops_->Finish().ok());
  }

  std::vector<float> qkv, attention;
  std::vector<double> partial;

 private:
  static constexpr int kBlocks = 8;
  const int kv_heads_;
  const std::unique_ptr<Ops> ops_;
  const AttentionWeights weights_;
  std::vector<float> keys_, values_;
  KvLayer layer_;
};

// Partial sums and attention of all tokens, in float64.
struct Expected {
  Expected(const LayerData& data, const std::vector<float>& x, int tokens, int window) {
    const model::Config config = AttentionConfig();
    const std::vector<float> frequencies = model::RopeInverseFrequencies(config.rope, kHeadDim);
    std::vector<std::vector<Vector>> heads(tokens);  // [token][head], q and k rotated
    for (int t = 0; t < tokens; ++t) {
      const Vector normed =
          reference::RmsNorm(reference::ToVector(x.data() + t * kHidden, kHidden),
                             reference::Bf16ToVector(data.norm), config.rms_norm_eps);
      const Vector row = reference::Linear(
          kQkv,
          [&](int64_t r, int64_t c) { return reference::FromBf16(data.qkv[r * kHidden + c]); },
          reference::Bf16ToVector(data.qkv_bias), normed);
      for (int h = 0; h < kHeads + 2 * kKvHeads; ++h) {
        const Vector head(row.begin() + h * kHeadDim, row.begin() + (h + 1) * kHeadDim);
        heads[t].push_back(h < kHeads + kKvHeads ? reference::Rotate(head, t, frequencies,
                                                                     config.rope.attention_factor)
                                                 : head);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      Vector joined;
      for (int h = 0; h < kHeads; ++h) {
        std::vector<Vector> keys, values;
        for (int j = std::max(0, t - window + 1); j <= t; ++j) {
          keys.push_back(heads[j][kHeads + h / kGroup]);
          values.push_back(heads[j][kHeads + kKvHeads + h / kGroup]);
        }
        const Vector out =
            reference::Attend(heads[t][h], keys, values, reference::FromBf16(data.sinks[h]));
        joined.insert(joined.end(), out.begin(), out.end());
      }
      attention.insert(attention.end(), joined.begin(), joined.end());
      const Vector projected = reference::Linear(
          kHidden,
          [&](int64_t r, int64_t c) {
            return reference::FromBf16(data.o[r * kHeads * kHeadDim + c]);
          },
          reference::Bf16ToVector(data.o_bias), joined);
      partial.insert(partial.end(), projected.begin(), projected.end());
    }
  }
  Vector attention, partial;
};

constexpr int kTokens = 90;  // past the window and several blocks

class AttentionOpsTest : public testing::TestWithParam<model::LayerType> {
 protected:
  AttentionOpsTest() : random_(1), data_(random_), x_(random_.Floats(kTokens * kHidden, 1)) {}
  std::vector<float> Rows(int first, int count) const {
    return {x_.begin() + first * kHidden, x_.begin() + (first + count) * kHidden};
  }
  RandomData random_;
  LayerData data_;
  std::vector<float> x_;
};

TEST_P(AttentionOpsTest, AgreeWithFloat64) {
  const bool full = GetParam() == model::LayerType::kFull;
  Rank rank(data_, 0, kKvHeads, GetParam(), 2);
  rank.Run(x_, 0, kTokens);
  const Expected expected(data_, x_, kTokens, full ? kTokens : kWindow);
  // Logits of a few units pass the rounding of their sums on to the probabilities.
  EXPECT_LT(reference::RelativeError(rank.attention.data(), expected.attention), 5e-6);
  EXPECT_LT(reference::RelativeError(rank.partial.data(), expected.partial), 5e-6);
  // The comparison is sharp enough to see a window that is off by one.
  const Expected wider(data_, x_, kTokens, full ? kTokens - 1 : kWindow + 1);
  EXPECT_GT(reference::RelativeError(rank.attention.data(), wider.attention), 1e-4);
}

TEST_P(AttentionOpsTest, ChunksAndThreadsDoNotChangeABit) {
  Rank whole(data_, 0, kKvHeads, GetParam(), 1);
  whole.Run(x_, 0, kTokens);
  for (const int chunk : {1, 7, 64}) {
    Rank rank(data_, 0, kKvHeads, GetParam(), 3);
    for (int first = 0; first < kTokens; first += chunk) {
      const int count = std::min(chunk, kTokens - first);
      rank.Run(Rows(first, count), first, count);
      ASSERT_EQ(std::memcmp(rank.attention.data(),
                            whole.attention.data() + int64_t{first} * kHeads * kHeadDim,
                            rank.attention.size() * sizeof(float)),
                0);
      ASSERT_EQ(std::memcmp(rank.partial.data(), whole.partial.data() + int64_t{first} * kHidden,
                            rank.partial.size() * sizeof(double)),
                0);
    }
  }
}

TEST_P(AttentionOpsTest, SplitOverRanksAddsUpToTheSameRoundedSum) {
  Rank whole(data_, 0, kKvHeads, GetParam(), 1);
  whole.Run(x_, 0, kTokens);
  for (const int tp : {2, 4}) {
    std::vector<double> sum(whole.partial.size());
    for (int r = 0; r < tp; ++r) {
      const int share = kKvHeads / tp;
      Rank rank(data_, r * share, share, GetParam(), 1);
      rank.Run(x_, 0, kTokens);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += rank.partial[i];
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      ASSERT_EQ(static_cast<float>(x_[i] + sum[i]), static_cast<float>(x_[i] + whole.partial[i]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, AttentionOpsTest,
                         testing::Values(model::LayerType::kFull, model::LayerType::kSliding));

}  // namespace
}  // namespace conclave::kernels
