#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_CONSUMER_CUH_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_CONSUMER_CUH_

// A multiplying warpgroup of a prefill block. Private to attention_prefill.cu.

#include "kernels/cuda/attention_prefill_shared.cuh"

namespace conclave::kernels::cuda::prefill {

// A named barrier; true if `value` is in any of the threads.
__device__ inline bool NamedBarrierOr(int id, int threads, bool value) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred mine;\n"
      ".reg .pred any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;\n"
      "}\n"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(value))
      : "memory");
  return any != 0;
}

class Consumer {
 public:
  __device__ Consumer(const PrefillParams& p, PrefillShared& shared) : p_(p), shared_(shared) {}

  __device__ void Run() {
    for (int round = 0;; ++round) {
      const uint32_t parity = round / 2 % 2;
      slot_ = round % 2;
      BarrierWait(&shared_.work_full[slot_], parity);
      if (KvHead() < 0) return;
      BarrierWait(&shared_.queries_full[slot_], parity);
      if (FirstRow() < Rows()) {
        Begin();
        Attend();
        if (Item().pieces == 1) {
          StoreOutput();
        } else {
          StorePartial();
        }
      } else {
        Skip();
      }
      if (Item().pieces > 1) CombinePieces();
      BarrierArrive(&shared_.work_empty[slot_]);
    }
  }

 private:
  // What is not needed in every step is read from shared memory or made anew where it is: the
  // registers are the logits', the weights' and the sums'.
  __device__ const AttentionItem& Item() const { return shared_.work[slot_].item; }
  __device__ int KvHead() const { return shared_.work[slot_].kv_head; }
  __device__ int Group() const { return threadIdx.x / kGroupThreads; }
  __device__ int Thread() const { return threadIdx.x % kGroupThreads; }
  __device__ int Lane() const { return threadIdx.x % 32; }
  __device__ float C() const { return p_.attention.scale * kLog2E; }
  // Keys that a row sees at most.
  __device__ int Window() const {
    return p_.attention.cache.sliding ? p_.attention.shape.window : 1 << 30;
  }
  __device__ int Rows() const { return Item().rows << p_.group_shift; }
  __device__ int FirstRow() const { return Group() * kGroupRows; }
  // Of the tile: `half` 0 is row g of the warp, 1 row g + 8.
  __device__ int Row(int half) const {
    return FirstRow() + Thread() / 32 * kWarpRows + Lane() / 4 + 8 * half;
  }
  __device__ int TokenOf(int row) const { return row >> p_.group_shift; }
  __device__ int HeadOf(int row) const {
    return (KvHead() << p_.group_shift) + (row & ((1 << p_.group_shift) - 1));
  }
  __device__ __nv_bfloat16* OutputOf(int row) const {
    const AttentionParams& a = p_.attention;
    return a.out +
           (int64_t{Item().row + TokenOf(row)} * a.shape.heads + HeadOf(row)) * kFastHeadDim;
  }

  __device__ void ArriveOfWarp(uint64_t* barrier) {
    __syncwarp();
    if (Lane() == 0) BarrierArrive(barrier);
  }

  __device__ void Begin() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum_[half] = SinkLog2(p_.attention, HeadOf(Row(half))) / C();
      weight_[half] = 0;
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) o_[i] = 0;
  }

  // Lets the stages of an item pass by whose rows are other warpgroups'.
  __device__ void Skip() {
    ArriveOfWarp(&shared_.queries_empty[slot_]);
    for (int step = Steps(Item()); step > 0; --step, stage_.Advance()) {
      BarrierWait(&shared_.keys_full[stage_.index], stage_.parity);
      ArriveOfWarp(&shared_.empty[stage_.index]);
    }
  }

  __device__ void Attend() {
    key_ = Item().key_begin;
    BarrierWait(&shared_.keys_full[stage_.index], stage_.parity);
    IssueLogits(stage_);
    WgmmaWait<0>();
    PinRegisters(s_);
    if (Hides()) Hide();
    float factor[2];
    Softmax(factor);
    PackWeights();
    while (key_ + kPrefillKeys < Item().key_end) {
      const Stage previous = stage_;
      stage_.Advance();
      BarrierWait(&shared_.keys_full[stage_.index], stage_.parity);
      BarrierWait(&shared_.values_full[previous.index], previous.parity);
      HideValues(previous);
      key_ += kPrefillKeys;
      // Two copies: a branch between the waits would make the compiler wait for all products first.
      if (Hides()) {
        AttendStep<true>(previous);
      } else {
        AttendStep<false>(previous);
      }
    }
    ArriveOfWarp(&shared_.queries_empty[slot_]);
    BarrierWait(&shared_.values_full[stage_.index], stage_.parity);
    HideValues(stage_);
    IssueValues(stage_);
    WgmmaWait<0>();
    PinRegisters(o_);
    ArriveOfWarp(&shared_.empty[stage_.index]);
    stage_.Advance();
#pragma unroll
    for (int half = 0; half < 2; ++half) weight_[half] = QuadSum(weight_[half]);
  }

  // The logits of this step, and the sums of the previous one.
  template <bool kHide>
  __device__ __forceinline__ void AttendStep(const Stage& previous) {
    IssueLogits(stage_);
    IssueValues(previous);
    WgmmaWait<1>();
    PinRegisters(s_);
    if (kHide) Hide();
    float factor[2];
    Softmax(factor);
    PinRegisters(s_);
    // The softmax is to run under the products. The assembler would place the wait ahead of it,
    // which has no registers in common with it, but not ahead of this store of its last result.
    shared_.written[threadIdx.x] = weight_[0] + weight_[1];
    WgmmaWait<0>();
    PinRegisters(o_);
    PinRegisters(p_bf16_);
    ArriveOfWarp(&shared_.empty[previous.index]);
    Rescale(factor);
    PackWeights();
  }

  // Descriptor of the `index`-th of consecutive operands; the same in all lanes, and known to be.
  __device__ uint64_t OperandOf(const void* first, int index, int bytes) const {
    return AdvanceOperand(SwizzledOperand(first), __shfl_sync(kAllLanes, index, 0) * bytes);
  }

  __device__ __forceinline__ void IssueLogits(const Stage& stage) {
    const uint64_t queries =
        OperandOf(shared_.queries[0][0], slot_ * kConsumers + Group(), kQueryBytes);
    const uint64_t keys = OperandOf(shared_.keys[0], stage.index, kStepBytes);
    PinRegisters(s_);
    WgmmaBegin();
#pragma unroll
    for (int k = 0; k < kFastHeadDim / 16; ++k) {
      WgmmaM64N128(s_, AdvanceOperand(queries, 32 * k), AdvanceOperand(keys, 32 * k), k > 0);
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void IssueValues(const Stage& stage) {
    const uint64_t values = OperandOf(shared_.values[0], stage.index, kStepBytes);
    PinRegisters(o_);
    PinRegisters(p_bf16_);
    WgmmaBegin();
#pragma unroll
    for (int k = 0; k < kPrefillKeys / 16; ++k) {
      WgmmaM64N64(o_, &p_bf16_[4 * k], AdvanceOperand(values, kBlockBytes * k));
    }
    WgmmaCommit();
  }

  // Whether some row does not see some key of the step.
  __device__ bool Hides() const {
    const int first = Item().position + TokenOf(FirstRow());
    const int last = Item().position + TokenOf(FirstRow() + kGroupRows - 1);
    return key_ + kPrefillKeys > first + 1 || key_ < last - Window() + 1;
  }

  // Logits of keys that a row does not see become minus infinity. Rows past the tile's last see
  // what that one does.
  __device__ __forceinline__ void Hide() {
    const int at = key_ + 2 * (Lane() % 4);
    int end[2];
    int begin[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      end[half] = Item().position + min(TokenOf(Row(half)), Item().rows - 1) + 1 - at;
      begin[half] = end[half] - Window();
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int column = i / 4 * 8 + i % 2;
      const int half = i / 2 % 2;
      if (column < begin[half] || column >= end[half]) s_[i] = -INFINITY;
    }
  }

  // s_ becomes the weights; factor is what older sums have to be multiplied with. Several maxima
  // and sums of each row, so that few instructions wait for the one before.
  __device__ __forceinline__ void Softmax(float (&factor)[2]) {
    constexpr int kChains = 4;
    const float c = C();
    float largest[2][kChains];
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const int half = i / 2 % 2;
      const int chain = i / 4 % kChains;
      const float larger = fmaxf(s_[i], s_[i + 1]);
      largest[half][chain] = i / 4 < kChains ? larger : fmaxf(largest[half][chain], larger);
    }
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float of_row = QuadMax(fmaxf(fmaxf(largest[half][0], largest[half][1]),
                                         fmaxf(largest[half][2], largest[half][3])));
      const float maximum = fmaxf(maximum_[half], of_row);
      factor[half] = Exp2((maximum_[half] - maximum) * c);
      maximum_[half] = maximum;
      shift[half] = maximum * c;
    }
    float sums[2][kChains] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int half = i / 2 % 2;
      s_[i] = Exp2(fmaf(s_[i], c, -shift[half]));
      sums[half][i % 2 + i / 4 % 2 * 2] += s_[i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weight_[half] = fmaf(weight_[half], factor[half],
                           (sums[half][0] + sums[half][1]) + (sums[half][2] + sums[half][3]));
    }
  }

  __device__ void Rescale(const float (&factor)[2]) {
    if (!__any_sync(kAllLanes, factor[0] != 1 || factor[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < 32; ++i) o_[i] *= factor[i / 2 % 2];
  }

  __device__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < 32; ++i) p_bf16_[i] = PackBf16(s_[2 * i], s_[2 * i + 1]);
  }

  // What lies in the cache where no row of the tile sees anything may be anything, and 0 times that
  // need not be 0. Each warpgroup writes the same zeros.
  __device__ void HideValues(const Stage& stage) {
    const int begin = FirstSeen(p_.attention, Item().position);
    const int end = Item().position + Item().rows;
    if (key_ >= begin && key_ + kPrefillKeys <= end) return;
    auto* values = reinterpret_cast<uint4*>(shared_.values[stage.index]);
    constexpr int kRowChunks = kRowBytes / 16;
    for (int i = Thread(); i < kPrefillKeys * kRowChunks; i += kGroupThreads) {
      const int position = key_ + i / kRowChunks;
      if (position < begin || position >= end) values[i] = make_uint4(0, 0, 0, 0);
    }
    ProxyFence();
    NamedBarrier(kGroupBarrier + Group(), kGroupThreads);
  }

  // Through shared memory, so that whole 16-byte chunks of each row are written.
  __device__ void StoreOutput() {
    const AttentionParams& a = p_.attention;
    char* rows = shared_.outputs[Group()] + Thread() / 32 * kWarpRows * kRowBytes;
    const int g = Lane() / 4;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sink = Exp2(SinkLog2(a, HeadOf(Row(half))) - maximum_[half] * C());
      inverse[half] = 1 / (weight_[half] + sink);
    }
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int half = i / 2 % 2;
      const int chunk = i / 4 ^ g;
      *reinterpret_cast<uint32_t*>(rows + (g + 8 * half) * kRowBytes + chunk * 16 +
                                   Lane() % 4 * 4) =
          PackBf16(o_[i] * inverse[half], o_[i + 1] * inverse[half]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kWarpRows / 4; ++i) {
      const int of_warp = 4 * i + Lane() / 8;
      const int chunk = Lane() % 8;
      const int row = FirstRow() + Thread() / 32 * kWarpRows + of_warp;
      if (row >= Rows()) continue;
      reinterpret_cast<uint4*>(OutputOf(row))[chunk] =
          *reinterpret_cast<const uint4*>(rows + of_warp * kRowBytes + (chunk ^ of_warp % 8) * 16);
    }
    __syncwarp();
  }

  __device__ float* PartialOf(int piece) const {
    const AttentionParams& a = p_.attention;
    return a.workspace.prefill_partials +
           (int64_t{Item().partial + piece} * a.shape.kv_heads + KvHead()) *
               PartialFloats(kPrefillRows);
  }

  __device__ void StorePartial() {
    float* partial = PartialOf(Item().piece);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = Row(half);
      if (row >= Rows()) continue;
      float* to = partial + row * kFastHeadDim + Lane() % 4 * 2;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        *reinterpret_cast<float2*>(to + 8 * j) =
            make_float2(o_[4 * j + 2 * half], o_[4 * j + 2 * half + 1]);
      }
      if (Lane() % 4 != 0) continue;
      partial[kPrefillRows * kFastHeadDim + row] = maximum_[half] * C();
      partial[kPrefillRows * (kFastHeadDim + 1) + row] = weight_[half];
    }
  }

  // The block whose piece is the last to be done puts all pieces together, in order.
  __device__ void CombinePieces() {
    const AttentionParams& a = p_.attention;
    NamedBarrier(kConsumersBarrier, kConsumerThreads);
    bool last = false;
    if (threadIdx.x == 0) {
      last = ArriveLast(a.workspace.prefill_arrivals + Item().partial * a.shape.kv_heads + KvHead(),
                        Item().pieces);
    }
    if (!NamedBarrierOr(kConsumersBarrier, kConsumerThreads, last)) return;
    constexpr int kQuarters = kFastHeadDim / 4;
    for (int i = threadIdx.x; i < Rows() * kQuarters; i += kConsumerThreads) {
      CombineQuarter(i / kQuarters, i % kQuarters);
    }
  }

  // Four values of a row. Several pieces are asked for at once: few threads have to wait for many.
  __device__ void CombineQuarter(int row, int quarter) {
    constexpr int kMaxima = kPrefillRows * kFastHeadDim;
    constexpr int kWeights = kMaxima + kPrefillRows;
    constexpr int kAtOnce = 8;
    const int pieces = Item().pieces;
    float maximum = -INFINITY;
    float weight = 0;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int first = 0; first < pieces; first += kAtOnce) {
      float maxima[kAtOnce];
      float weights[kAtOnce];
      float4 o[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float* partial = PartialOf(min(first + i, pieces - 1));
        const bool valid = first + i < pieces;
        maxima[i] = valid ? __ldcg(partial + kMaxima + row) : -INFINITY;
        weights[i] = __ldcg(partial + kWeights + row);
        o[i] = __ldcg(reinterpret_cast<const float4*>(partial + row * kFastHeadDim) + quarter);
      }
      float larger = maximum;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) larger = fmaxf(larger, maxima[i]);
      const float older = Exp2(maximum - larger);
      maximum = larger;
      weight *= older;
      sum = {sum.x * older, sum.y * older, sum.z * older, sum.w * older};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float factor = Exp2(maxima[i] - maximum);
        weight += factor * weights[i];
        sum.x += o[i].x * factor;
        sum.y += o[i].y * factor;
        sum.z += o[i].z * factor;
        sum.w += o[i].w * factor;
      }
    }
    weight += Exp2(SinkLog2(p_.attention, HeadOf(row)) - maximum);
    const float inverse = 1 / weight;
    reinterpret_cast<uint2*>(OutputOf(row))[quarter] = {PackBf16(sum.x * inverse, sum.y * inverse),
                                                        PackBf16(sum.z * inverse, sum.w * inverse)};
  }

  const PrefillParams& p_;
  PrefillShared& shared_;
  Stage stage_;
  int slot_ = 0;      // of the item's work and queries
  int key_ = 0;       // first of the step
  float maximum_[2];  // in units of s
  float weight_[2];
  float o_[32];
  float s_[64];
  uint32_t p_bf16_[32];
};

}  // namespace conclave::kernels::cuda::prefill

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_CONSUMER_CUH_
