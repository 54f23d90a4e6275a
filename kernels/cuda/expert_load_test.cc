// Totals of many steps against counting on the host.

#include "kernels/cuda/expert_load.h"

#include "gtest/gtest.h"
#include "kernels/cuda/device_test.h"
#include "kernels/reference/random_data.h"

namespace conclave::kernels::cuda {
namespace {

using reference::RandomData;

constexpr int kSteps = 5;

struct Shape {
  int sources, slots, k, experts, local;
};

class ExpertLoadTest : public DeviceTest {};

// Slots as the exchange receives them: a block of a header and `slots` copies for each source. What
// lies behind a source's count is an expert of ours, to be noticed if it is counted.
void Check(const Shape& shape, bool count_copies) {
  SCOPED_TRACE(fmt::format("{} sources of up to {}, {} of {} experts, {} here", shape.sources,
                           shape.slots, shape.k, shape.experts, shape.local));
  RandomData random(static_cast<uint32_t>(shape.sources * 100 + shape.slots));
  std::vector<int32_t> local_index(shape.experts, -1);
  for (int local = 0; local < shape.local; ++local) {
    local_index[local * shape.experts / shape.local] = local;
  }
  const DeviceArray<int32_t> index(local_index);
  const DeviceArray<uint64_t> pairs(std::vector<uint64_t>(shape.local, 0));
  const DeviceArray<uint64_t> copies(std::vector<uint64_t>(shape.sources, 0));
  std::vector<uint64_t> want_pairs(shape.local, 0);
  std::vector<uint64_t> want_copies(shape.sources, 0);
  for (int step = 0; step < kSteps; ++step) {
    const int block = 1 + shape.slots;
    std::vector<int32_t> ids(int64_t{shape.sources} * block * shape.k, 0);
    std::vector<int32_t> counts;
    TokenArgs tokens = {};
    for (int source = 0; source < shape.sources; ++source) {
      counts.push_back(random.Below(shape.slots + 1));
      tokens.first_slot[source] = source * block + 1;
      tokens.first_output[source] = source * shape.slots;
      want_copies[source] += counts.back();
      for (int i = 0; i < counts.back() * shape.k; ++i) {
        const int32_t id = random.Below(shape.experts + 1) - 1;  // -1: another rank's
        ids[tokens.first_slot[source] * shape.k + i] = id;
        if (id >= 0 && local_index[id] >= 0) ++want_pairs[local_index[id]];
      }
    }
    const DeviceArray<int32_t> device_ids(ids);
    const DeviceArray<int32_t> device_counts(counts);
    tokens.num_sources = shape.sources;
    tokens.max_copies = shape.sources * shape.slots;
    tokens.k = shape.k;
    tokens.num_experts = shape.experts;
    tokens.num_local = shape.local;
    tokens.counts = reinterpret_cast<const std::byte*>(device_counts.data());
    tokens.counts_stride = sizeof(int32_t);
    tokens.expert_ids = reinterpret_cast<const std::byte*>(device_ids.data());
    tokens.expert_ids_stride = shape.k * static_cast<int64_t>(sizeof(int32_t));
    tokens.local_index = index.data();
    CountExpertLoad(tokens, {pairs.data(), count_copies ? copies.data() : nullptr}, nullptr);
    EXPECT_CUDA_OK(cudaGetLastError());
    EXPECT_CUDA_OK(cudaDeviceSynchronize());
  }
  EXPECT_EQ(pairs.Download(), want_pairs);
  if (!count_copies) want_copies.assign(shape.sources, 0);
  EXPECT_EQ(copies.Download(), want_copies);
}

TEST_F(ExpertLoadTest, TotalsAreThoseOfTheValidCopies) {
  for (const bool copies : {false, true}) {
    Check({.sources = 1, .slots = 1, .k = 4, .experts = 16, .local = 16}, copies);
    Check({.sources = 3, .slots = 7, .k = 4, .experts = 16, .local = 5}, copies);
    Check({.sources = 8, .slots = 256, .k = 4, .experts = 128, .local = 16}, copies);
    Check({.sources = 33, .slots = 20, .k = 4, .experts = 128, .local = 4}, copies);
    Check({.sources = 1, .slots = 2048, .k = 4, .experts = 128, .local = 128}, copies);
  }
}

TEST_F(ExpertLoadTest, ARankWithoutExpertsCountsItsCopies) {
  Check({.sources = 2, .slots = 5, .k = 4, .experts = 16, .local = 0}, true);
}

}  // namespace
}  // namespace conclave::kernels::cuda
