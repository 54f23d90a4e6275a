#include "kernels/cpu/dispatch.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/parallel.h"

namespace conclave::kernels {
namespace {

// One copy: the row's hidden state, the ids that `destination` computes (-1 for others), weights.
void FillSlot(const DispatchTables& tables, const SlotLayout& layout, const float* hidden,
              int64_t hidden_size, const int32_t* ids, const float* weights, int64_t k,
              int destination, std::byte* slot) {
  std::memcpy(slot + layout.hidden_offset, hidden, hidden_size * sizeof(float));
  auto* slot_ids = reinterpret_cast<int32_t*>(slot + layout.expert_ids_offset);
  for (int64_t j = 0; j < k; ++j) {
    slot_ids[j] = tables.rank_of_expert[ids[j]] == destination ? ids[j] : -1;
  }
  std::memcpy(slot + layout.weights_offset, weights, k * sizeof(float));
  // The bytes up to the next slot go over the wire too.
  const int64_t used = layout.weights_offset + k * static_cast<int64_t>(sizeof(float));
  std::memset(slot + used, 0, layout.slot_bytes - used);
}

}  // namespace

void PackCopies(const DispatchTables& tables, const SlotLayout& layout, const Tensor& normed,
                const Routing& routing, int64_t block_slots, const Tensor& send,
                const Tensor& send_index, const Tensor& counts) {
  const int64_t k = routing.expert_ids.cols;
  const int64_t block_bytes = block_slots * layout.slot_bytes;
  CONCLAVE_CHECK(send.bytes() >= tables.world * block_bytes);
  auto* count = counts.as<int32_t>();
  std::fill(count, count + tables.world, 0);
  for (int64_t row = 0; row < normed.rows; ++row) {
    const int32_t* ids = routing.expert_ids.as<int32_t>() + row * k;
    int32_t* index = send_index.as<int32_t>() + row * tables.world;
    std::fill(index, index + tables.world, -1);
    for (int64_t j = 0; j < k; ++j) {
      const int destination = tables.rank_of_expert[ids[j]];
      if (index[destination] >= 0) continue;
      index[destination] = count[destination]++;
      CONCLAVE_CHECK(count[destination] < block_slots);
      std::byte* slot = send.as<std::byte>() + destination * block_bytes +
                        (1 + int64_t{index[destination]}) * layout.slot_bytes;
      FillSlot(tables, layout, normed.as<float>() + row * normed.cols, normed.cols, ids,
               routing.weights.as<float>() + row * k, k, destination, slot);
    }
  }
  for (int d = 0; d < tables.world; ++d) {
    std::byte* header = send.as<std::byte>() + d * block_bytes;
    std::memset(header, 0, layout.slot_bytes);
    std::memcpy(header, &count[d], sizeof(int32_t));
    if (tables.copies != nullptr) tables.copies[d] += static_cast<uint64_t>(count[d]);
  }
}

void AddPartials(const Tensor& partials, const int32_t* first_row, const Tensor& send_index,
                 base::ThreadPool& pool, const Tensor& x) {
  const int64_t world = send_index.cols;
  pool.ParallelFor(x.rows, GrainOf(x.cols * world), [&](int64_t begin, int64_t end) {
    std::vector<double> sum(x.cols);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t d = 0; d < world; ++d) {
        const int32_t index = send_index.as<int32_t>()[row * world + d];
        if (index < 0) continue;
        const double* from = partials.as<double>() + (first_row[d] + index) * partials.cols;
        for (int64_t i = 0; i < x.cols; ++i) sum[i] += from[i];
      }
      float* to = x.as<float>() + row * x.cols;
      for (int64_t i = 0; i < x.cols; ++i) to[i] = static_cast<float>(double{to[i]} + sum[i]);
    }
  });
}

}  // namespace conclave::kernels
