#include "kernels/cuda/rope.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/cuda/attention_fixture.h"
#include "kernels/cuda/device_test.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels::cuda {
namespace {

constexpr double kFactor = 1.3465735902799727;
// One rounding to bf16.
constexpr double kLimit = 0.0025;

std::vector<float> Frequencies(int half) {
  std::vector<float> out;
  for (int i = 0; i < half; ++i) {
    out.push_back(static_cast<float>(std::pow(150000.0, -static_cast<double>(i) / half)));
  }
  return out;
}

class RopeTest : public DeviceTest {
 protected:
  void Check(const AttentionShape& shape, const std::vector<RunSpec>& runs);
  void CheckCache(const AttentionShape& shape, const HostStep& step, bool sliding,
                  const std::vector<__nv_bfloat16>& qkv, const std::vector<__nv_bfloat16>& cache,
                  int first_value);
};

// The rows' keys or values, bit by bit, and NaN everywhere else.
void RopeTest::CheckCache(const AttentionShape& shape, const HostStep& step, bool sliding,
                          const std::vector<__nv_bfloat16>& qkv,
                          const std::vector<__nv_bfloat16>& cache, int first_value) {
  std::vector<__nv_bfloat16> expected(cache.size());
  std::memset(static_cast<void*>(expected.data()), 0xFF, expected.size() * sizeof(__nv_bfloat16));
  for (size_t row = 0; row < step.positions.size(); ++row) {
    if (step.run_of_row[row] < 0) continue;
    const RunView& run = step.run[step.run_of_row[row]];
    const int block = step.positions[row] / kKvBlockTokens;
    const int64_t id = step.blocks[sliding ? run.sliding_offset + block - run.sliding_first
                                           : run.full_offset + block];
    for (int head = 0; head < shape.kv_heads; ++head) {
      const int64_t to =
          ((id * shape.kv_heads + head) * kKvBlockTokens + step.positions[row] % kKvBlockTokens) *
          shape.head_dim;
      std::copy_n(qkv.begin() + row * shape.row_values() + first_value + head * shape.head_dim,
                  shape.head_dim, expected.begin() + to);
    }
  }
  EXPECT_TRUE(SameBits(cache, expected));
}

void RopeTest::Check(const AttentionShape& shape, const std::vector<RunSpec>& runs) {
  const HostStep step = MakeHostStep(runs, shape.window, 2, 1, 3);
  const auto rows = static_cast<int64_t>(step.positions.size());
  const int half = shape.head_dim / 2;
  const std::vector<float> frequencies = Frequencies(half);
  const DeviceArray<float> device_frequencies(frequencies);
  const DeviceArray<char> table_memory(RopeTableBytes(step.max_context, shape.head_dim));
  const RopeTable table = {reinterpret_cast<float2*>(table_memory.data()), step.max_context, half};
  FillRopeTable(device_frequencies.data(), static_cast<float>(kFactor), table, nullptr);
  const DeviceArray<int32_t> positions(step.positions);
  const DeviceArray<int32_t> run_of_row(step.run_of_row);
  const DeviceArray<RunView> run(step.run);
  const DeviceArray<int32_t> blocks(step.blocks);
  const StepView view = {.rows = static_cast<int>(rows),
                         .runs = static_cast<int>(step.run.size()),
                         .max_context = step.max_context,
                         .max_run_rows = step.max_run_rows,
                         .token_ids = nullptr,
                         .positions = positions.data(),
                         .run_of_row = run_of_row.data(),
                         .run = run.data(),
                         .blocks = blocks.data()};
  for (const bool sliding : {false, true}) {
    const int cache_blocks = sliding ? step.sliding_blocks : step.full_blocks;
    const int64_t size = int64_t{cache_blocks} * shape.kv_heads * kKvBlockTokens * shape.head_dim;
    const Bf16Array keys(size);
    const Bf16Array values(size);
    const Bf16Array qkv = RandomBf16(rows * shape.row_values(), 4, 1);
    const std::vector<__nv_bfloat16> before = qkv.Download();
    RopeAndCacheWrite(view, shape, table, {keys.data(), values.data(), cache_blocks, sliding},
                      qkv.data(), nullptr);
    EXPECT_CUDA_OK(cudaGetLastError());
    const std::vector<__nv_bfloat16> after = qkv.Download();

    reference::Vector expected;
    std::vector<__nv_bfloat16> rotated;
    const int rotated_heads = shape.heads + shape.kv_heads;
    for (int64_t row = 0; row < rows; ++row) {
      const auto first = row * shape.row_values();
      for (int head = 0; head < rotated_heads + shape.kv_heads; ++head) {
        reference::Vector values_before;
        for (int d = 0; d < shape.head_dim; ++d) {
          const int64_t at = first + head * shape.head_dim + d;
          values_before.push_back(AsDouble(before[at]));
          rotated.push_back(after[at]);
        }
        const bool rotates = head < rotated_heads && step.run_of_row[row] >= 0;
        // The float32 product is the angle: what a rotation by it, exact otherwise, gives.
        for (int i = 0; rotates && i < half; ++i) {
          const double angle = static_cast<float>(step.positions[row]) * frequencies[i];
          const double c = std::cos(angle) * kFactor;
          const double s = std::sin(angle) * kFactor;
          const double a = values_before[i];
          const double b = values_before[i + half];
          values_before[i] = a * c - b * s;
          values_before[i + half] = b * c + a * s;
        }
        expected.insert(expected.end(), values_before.begin(), values_before.end());
      }
    }
    EXPECT_LT(RelativeRms(rotated, expected), kLimit);
    CheckCache(shape, step, sliding, after, keys.Download(), shape.heads * shape.head_dim);
    CheckCache(shape, step, sliding, after, values.Download(), rotated_heads * shape.head_dim);
  }
}

TEST_F(RopeTest, RotatesAndWritesTheCache) {
  Check({.heads = 64, .kv_heads = 8, .head_dim = 64, .window = 128},
        {{1, 0}, {1, 131071}, {37, 5}, {1, 128}, {300, 4000}});
}

TEST_F(RopeTest, AnyHeadSize) {
  for (const int head_dim : {16, 6, 80, 128}) {
    Check({.heads = 6, .kv_heads = 2, .head_dim = head_dim, .window = 16}, {{1, 40}, {20, 9}});
  }
}

}  // namespace
}  // namespace conclave::kernels::cuda
