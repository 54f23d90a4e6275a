#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_PRODUCER_CUH_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_PRODUCER_CUH_

// The fetching warp of a prefill block. Private to attention_prefill.cu.

#include "kernels/cuda/attention_prefill_shared.cuh"

namespace conclave::kernels::cuda::prefill {

class Producer {
 public:
  __device__ Producer(const PrefillParams& p, PrefillShared& shared)
      : p_(p), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    const AttentionParams& a = p_.attention;
    const AttentionList list = a.cache.sliding ? kPrefillSliding : kPrefillFull;
    const int items = a.workspace.counts[list];
    const int total = items * a.shape.kv_heads;
    int32_t* tickets = a.workspace.tickets + 2 * list;
    int ticket = TakeTicket(tickets);
    for (int round = 0;; ++round) {
      const int slot = round % 2;
      const uint32_t parity = round / 2 % 2;
      BarrierWait(&shared_.work_empty[slot], parity ^ 1);
      Work& work = shared_.work[slot];
      if (ticket >= total) {
        if (lane_ == 0) {
          work.kv_head = -1;
          BarrierArrive(&shared_.work_full[slot]);
          ReturnTickets(tickets);
        }
        return;
      }
      const int kv_head = ticket / items;
      const AttentionItem item = LoadItem(a.workspace.items[list] + ticket % items);
      ticket = TakeTicket(tickets);  // on its way while this item is fetched
      if (lane_ == 0) {
        work = {item, kv_head};
        BarrierArrive(&shared_.work_full[slot]);
      }
      FetchQueries(item, kv_head, slot, parity);
      FetchKeysAndValues(item, kv_head);
    }
  }

 private:
  __device__ int TakeTicket(int32_t* tickets) {
    int ticket = 0;
    if (lane_ == 0) ticket = atomicAdd(tickets, 1);
    return __shfl_sync(kAllLanes, ticket, 0);
  }

  // The last block to find no more items leaves the tickets at 0.
  __device__ void ReturnTickets(int32_t* tickets) {
    if (atomicAdd(tickets + 1, 1) != static_cast<int>(gridDim.x) - 1) return;
    tickets[0] = 0;
    tickets[1] = 0;
  }

  __device__ void FetchQueries(const AttentionItem& item, int kv_head, int slot, uint32_t parity) {
    BarrierWait(&shared_.queries_empty[slot], parity ^ 1);
    if (lane_ == 0) {
      BarrierArriveExpect(&shared_.queries_full[slot], kConsumers * kQueryBytes);
      const int tokens = kGroupRows >> p_.group_shift;
      for (int i = 0; i < kConsumers; ++i) {
        FetchBox(shared_.queries[slot][i], &p_.queries, &shared_.queries_full[slot], 0,
                 kv_head << p_.group_shift, item.row + i * tokens);
      }
    }
    __syncwarp();
  }

  __device__ void FetchKeysAndValues(const AttentionItem& item, int kv_head) {
    const AttentionParams& a = p_.attention;
    const int first = item.key_begin / kKvBlockTokens;
    const int blocks = (item.key_end + kKvBlockTokens - 1) / kKvBlockTokens - first;
    const int32_t* table = a.view.blocks + item.table + first;
    int next = lane_ < min(blocks, kBlocksPerStep) ? table[lane_] : 0;
    for (int begin = 0; begin < blocks; begin += kBlocksPerStep, stage_.Advance()) {
      const int count = min(blocks - begin, kBlocksPerStep);
      const int row = (next * a.shape.kv_heads + kv_head) * kKvBlockTokens;
      const int ahead = begin + kBlocksPerStep + lane_;
      if (lane_ < kBlocksPerStep && ahead < blocks) next = table[ahead];
      BarrierWait(&shared_.empty[stage_.index], stage_.parity ^ 1);
      uint64_t* keys_full = &shared_.keys_full[stage_.index];
      uint64_t* values_full = &shared_.values_full[stage_.index];
      if (lane_ == 0) {
        BarrierArriveExpect(keys_full, count * kBlockBytes);
        BarrierArriveExpect(values_full, count * kBlockBytes);
      }
      __syncwarp();
      if (lane_ < count) {
        FetchBox(shared_.keys[stage_.index] + lane_ * kBlockBytes, &p_.keys, keys_full, 0, row);
        FetchBox(shared_.values[stage_.index] + lane_ * kBlockBytes, &p_.values, values_full, 0,
                 row);
      }
    }
  }

  const PrefillParams& p_;
  PrefillShared& shared_;
  const int lane_;
  Stage stage_;
};

}  // namespace conclave::kernels::cuda::prefill

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_PRODUCER_CUH_
