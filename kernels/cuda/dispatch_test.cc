// The exchange's send buffer, byte for byte, and the sum of what comes back, in worlds of 1 to 8.

#include "kernels/cuda/dispatch.h"

#include <algorithm>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/residual.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels::cuda {
namespace {

using reference::RandomData;

constexpr int kRows[] = {0, 1, 2, 3, 7, 16, 17, 64, 129, 1024, 2048};
constexpr int kChoices = 4;

class DispatchTest : public DeviceTest {};

struct Step {
  Step(RandomData& random, int num_rows, int64_t hidden_size, int experts)
      : rows(num_rows), hidden(hidden_size) {
    for (int64_t i = 0; i < rows * hidden; ++i) normed.push_back(Bf16Of(random.Normal(1)));
    for (int row = 0; row < rows; ++row) {
      const int first = random.Below(experts);
      const int stride = 1 + random.Below(3);  // k different experts, sometimes close together
      for (int j = 0; j < kChoices; ++j) {
        ids.push_back((first + j * stride) % experts);
        weights.push_back(static_cast<float>(random.Normal(1)));
      }
    }
  }
  int rows;
  int64_t hidden;
  std::vector<__nv_bfloat16> normed;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

struct Packed {
  std::vector<std::byte> send;
  std::vector<int32_t> send_index;
  std::vector<int32_t> counts;
};

// The definition, row by row. What is not written stays 0xFF.
Packed PackReference(const Step& step, const std::vector<int32_t>& rank_of_expert, int world,
                     const SlotLayout& layout, int64_t block_slots) {
  Packed out;
  out.send.assign(world * block_slots * layout.slot_bytes, std::byte{0xFF});
  out.send_index.assign(int64_t{step.rows} * world, -1);
  out.counts.assign(world, 0);
  const auto slot = [&](int destination, int64_t index) {
    return out.send.data() + (destination * block_slots + index) * layout.slot_bytes;
  };
  for (int row = 0; row < step.rows; ++row) {
    for (int d = 0; d < world; ++d) {
      int32_t ids[kChoices];
      bool goes = false;
      for (int j = 0; j < kChoices; ++j) {
        const int32_t id = step.ids[row * kChoices + j];
        ids[j] = rank_of_expert[id] == d ? id : -1;
        goes = goes || ids[j] >= 0;
      }
      if (!goes) continue;
      const int32_t index = out.counts[d]++;
      out.send_index[int64_t{row} * world + d] = index;
      std::byte* to = slot(d, 1 + index);
      std::memset(to, 0, layout.slot_bytes);
      std::memcpy(to + layout.hidden_offset, step.normed.data() + row * step.hidden,
                  step.hidden * 2);
      std::memcpy(to + layout.expert_ids_offset, ids, sizeof(ids));
      std::memcpy(to + layout.weights_offset, step.weights.data() + row * kChoices, sizeof(ids));
    }
  }
  for (int d = 0; d < world; ++d) {
    std::memset(slot(d, 0), 0, layout.slot_bytes);
    std::memcpy(slot(d, 0), &out.counts[d], sizeof(int32_t));
  }
  return out;
}

void ExpectPacked(RandomData& random, int rows, int64_t hidden, int experts, int world) {
  SCOPED_TRACE(fmt::format("{} rows, hidden {}, world {}", rows, hidden, world));
  const Step step(random, rows, hidden, experts);
  std::vector<int32_t> rank_of_expert;
  for (int e = 0; e < experts; ++e) rank_of_expert.push_back(e * world / experts);
  const SlotLayout layout = MakeSlotLayout(DType::kBf16, static_cast<int>(hidden), kChoices);
  const int64_t block_slots = rows + 1 + random.Below(3);
  const Packed expected = PackReference(step, rank_of_expert, world, layout, block_slots);

  const DeviceArray<int32_t> ranks(rank_of_expert);
  const Bf16Array normed(step.normed);
  const DeviceArray<int32_t> ids(step.ids);
  const DeviceArray<float> weights(step.weights);
  const DeviceArray<uint64_t> totals(std::vector<uint64_t>(world, 0));
  std::vector<uint64_t> expected_totals(world, 0);
  for (int repeat = 0; repeat < 2; ++repeat) {
    DeviceArray<std::byte> send(static_cast<int64_t>(expected.send.size()));
    DeviceArray<int32_t> send_index(static_cast<int64_t>(expected.send_index.size()));
    DeviceArray<int32_t> counts(world);
    PackArguments a;
    a.tables = {world, ranks.data()};
    a.layout = layout;
    a.normed = normed.data();
    a.expert_ids = ids.data();
    a.weights = weights.data();
    a.rows = rows;
    a.hidden = hidden;
    a.k = kChoices;
    a.block_slots = block_slots;
    a.send = send.data();
    a.send_index = send_index.data();
    a.counts = counts.data();
    a.tables.copies = totals.data();
    PackDispatch(a, nullptr);
    EXPECT_CUDA_OK(cudaGetLastError());
    EXPECT_EQ(counts.Download(), expected.counts);
    for (int d = 0; d < world; ++d) expected_totals[d] += expected.counts[d];
    EXPECT_EQ(totals.Download(), expected_totals);
    EXPECT_TRUE(SameBits(send_index.Download(), expected.send_index));
    EXPECT_TRUE(SameBits(send.Download(), expected.send));
  }
}

TEST_F(DispatchTest, PacksOneCopyForEveryDestination) {
  RandomData random(21);
  for (int world = 1; world <= 8; ++world) {
    for (const int rows : kRows) ExpectPacked(random, rows, 64, 16, world);
  }
}

TEST_F(DispatchTest, PacksTheModels) {
  RandomData random(22);
  for (const int rows : {1, 17, 129}) ExpectPacked(random, rows, 2880, 128, 8);
}

// Partials lie by rank, each rank's from first_row[d]; ranks out of order in memory.
void ExpectCombined(RandomData& random, int rows, int64_t hidden, int world) {
  SCOPED_TRACE(fmt::format("{} rows, hidden {}, world {}", rows, hidden, world));
  FirstRows first = {};
  std::vector<int32_t> index(int64_t{rows} * world, -1);
  int64_t partial_rows = 0;
  for (int d = world - 1; d >= 0; --d) {
    first.row[d] = static_cast<int32_t>(partial_rows);
    int32_t count = 0;
    for (int row = 0; row < rows; ++row) {
      if (random.Below(2) == 0) index[int64_t{row} * world + d] = count++;
    }
    partial_rows += count;
  }
  const std::vector<float> partials = random.Floats(std::max<int64_t>(partial_rows, 1) * hidden, 1);
  std::vector<__nv_bfloat16> x;
  for (int64_t i = 0; i < rows * hidden; ++i) x.push_back(Bf16Of(random.Normal(2)));
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < hidden; ++i) {
      float sum = 0;  // float32, ascending rank, rounded once into x
      for (int d = 0; d < world; ++d) {
        const int32_t at = index[int64_t{row} * world + d];
        if (at >= 0) sum += partials[(first.row[d] + int64_t{at}) * hidden + i];
      }
      const float total = static_cast<float>(AsDouble(x[row * hidden + i])) + sum;
      expected.push_back(reference::FromBf16(reference::ToBf16(total)));
    }
  }
  const DeviceArray<float> device_partials(partials);
  const DeviceArray<int32_t> device_index(index);
  const Bf16Array device_x(x);
  CombineResidual(device_partials.data(), first, device_index.data(), world, rows, hidden,
                  device_x.data(), nullptr);
  EXPECT_CUDA_OK(cudaGetLastError());
  const std::vector<__nv_bfloat16> actual = device_x.Download();
  int wrong = 0;
  for (size_t i = 0; i < expected.size(); ++i) wrong += AsDouble(actual[i]) == expected[i] ? 0 : 1;
  EXPECT_EQ(wrong, 0);
}

TEST_F(DispatchTest, CombinesInAscendingRank) {
  RandomData random(23);
  for (int world = 1; world <= 8; ++world) {
    for (const int rows : {1, 2, 3, 7, 16, 17, 64, 129}) ExpectCombined(random, rows, 128, world);
  }
  ExpectCombined(random, 129, 2880, 8);
  ExpectCombined(random, 1024, 96, 3);
}

}  // namespace
}  // namespace conclave::kernels::cuda
