#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_

// One row of logits spread over the blocks of a cluster, and sums and maxima over it. Private to
// sampling.
//
// An id's key orders ids by falling logit, ties by rising id: the larger key comes first. Keys are
// never equal.

#include <cooperative_groups.h>

#include <cstdint>

namespace conclave::kernels::cuda {

inline constexpr int kSampleCluster = 8;
inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / 32;
inline constexpr int kSampleBins = 1024;
inline constexpr int kSampleList = 1024;
inline constexpr int kWeightBits = 46;  // 2^18 ids of weight 1 fit 64 bits

using Key = unsigned long long;

__device__ inline Key MakeKey(float logit, int id) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return Key{ordered} << 32 | ~static_cast<uint32_t>(id);
}
__device__ inline int IdOf(Key key) { return static_cast<int>(~static_cast<uint32_t>(key)); }
__device__ inline float LogitOf(Key key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered >> 31 != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}

// What others compare: no NaN, one zero.
__device__ inline float Comparable(float logit) { return isnan(logit) ? -INFINITY : logit + 0.0f; }

// exp(x) for x <= 0, to 1e-12 of its value, 1 for 0; 0 below -40, far under the weights'
// resolution.
__device__ inline double ExpOfNegative(double x) {
  if (!(x >= -40)) return 0;
  // Adding 1.5 * 2^52 rounds to an integer, in the low bits of the sum: conversions are slow.
  constexpr double kRound = 6755399441055744.0;
  const double rounded = fma(x, 1.4426950408889634074, kRound);
  const double k = rounded - kRound;
  const double r = fma(k, -1.9082149292705877e-10, fma(k, -6.93147180369123816490e-01, x));
  // The series, in pairs, so that few steps wait for each other.
  const double r2 = r * r;
  const double r4 = r2 * r2;
  const double c0 = fma(fma(r, 1.0 / 6, 0.5), r2, 1 + r);
  const double c4 = fma(fma(r, 1.0 / 5040, 1.0 / 720), r2, fma(r, 1.0 / 120, 1.0 / 24));
  const double c8 = fma(1.0 / 3628800, r2, fma(r, 1.0 / 362880, 1.0 / 40320));
  const double sum = fma(fma(c8, r4, c4), r4, c0);
  return __longlong_as_double(__double_as_longlong(sum) + (__double_as_longlong(rounded) << 52));
}

// Weights of a row: exp((logit - largest) / temperature).
class Weigher {
 public:
  __device__ Weigher(float largest, float temperature)
      : largest_(largest), inverse_(1 / static_cast<double>(temperature)) {}

  __device__ double Weight(float logit) const {
    return ExpOfNegative((static_cast<double>(logit) - largest_) * inverse_);
  }
  // In units of 2^-kWeightBits.
  __device__ unsigned long long Units(float logit) const {
    constexpr double kNothing = -34;  // below ln(2^-47)
    if (!((static_cast<double>(logit) - largest_) * inverse_ >= kNothing)) return 0;
    // Likewise: the sum with 2^52 has the integer in its low bits.
    constexpr double kRound = 4503599627370496.0;
    const double rounded = fma(Weight(logit), static_cast<double>(1ull << kWeightBits), kRound);
    return __double_as_longlong(rounded) & ((1ull << 52) - 1);
  }

 private:
  float largest_;
  double inverse_;
};

struct SampleShared {
  union {
    struct {
      unsigned weights_low[kSampleBins];  // of 64-bit sums: shared memory adds 32 bits at a time
      unsigned weights_high[kSampleBins];
      unsigned counts[kSampleBins];
    } bins;
    Key list[kSampleList];  // of the cluster's first block
  };
  unsigned long long of_warp[kSampleWarps];
  unsigned long long of_block[2];  // what a block tells the others, in turn
  unsigned list_size[2];           // of the first block, in turn
  struct {
    int bin;
    unsigned long long before;
    unsigned count;
  } found;
  Key result[2];  // of one block, in turn
};

// This block's part of a row: ids [first, first + size).
class RowPart {
 public:
  // `values`: logits of the part, made Comparable unless `raw`.
  __device__ RowPart(const float* values, bool raw, int first, int size)
      : values_(values), raw_(raw), first_(first), size_(size) {}

  __device__ int first() const { return first_; }
  __device__ int size() const { return size_; }

  // Calls visit(logit, id) for this thread's ids. Warps have consecutive stretches.
  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    const int stretch = Stretch();
    const int begin = static_cast<int>(threadIdx.x / 32) * stretch;
    const int end = min(size_, begin + stretch);
    for (int i = begin + static_cast<int>(threadIdx.x % 32); i < end; i += 32) {
      visit(Logit(i), first_ + i);
    }
  }

  // The same for the stretch of one warp, by all threads: a few consecutive ids each. Ends for a
  // thread when visit returns true.
  template <typename Visit>
  __device__ void ForEachOfStretch(int warp, const Visit& visit) const {
    const int stretch = Stretch();
    const int of_thread = (stretch + kSampleThreads - 1) / kSampleThreads;
    const int end = min(size_, (warp + 1) * stretch);
    const int begin = warp * stretch + static_cast<int>(threadIdx.x) * of_thread;
    for (int i = begin; i < min(end, begin + of_thread); ++i) {
      if (visit(Logit(i), first_ + i)) return;
    }
  }

 private:
  __device__ int Stretch() const {
    return (size_ + kSampleWarps * 32 - 1) / (kSampleWarps * 32) * 32;
  }
  __device__ float Logit(int i) const { return raw_ ? Comparable(values_[i]) : values_[i]; }

  const float* values_;
  const bool raw_;
  const int first_;
  const int size_;
};

// Collective operations; every thread of the cluster calls them in the same order.
class SampleGroup {
 public:
  __device__ explicit SampleGroup(SampleShared& shared)
      : shared_(shared), cluster_(cooperative_groups::this_cluster()) {}

  __device__ SampleShared& shared() { return shared_; }
  __device__ int rank() const { return static_cast<int>(cluster_.block_rank()); }
  __device__ void Sync() { cluster_.sync(); }
  template <typename T>
  __device__ T* Remote(T* local, int rank) {
    return cluster_.map_shared_rank(local, static_cast<unsigned>(rank));
  }

  // Which of list_size the next list counts in. All start at 0.
  __device__ int NextList() { return list_turn_ ^= 1; }

  // The block's value in every thread of it; of_warp holds the warps' values.
  template <typename Combine>
  __device__ unsigned long long OverBlock(unsigned long long value, const Combine& combine) {
    for (int offset = 16; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared_.of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared_.of_warp[0];
    for (int warp = 1; warp < kSampleWarps; ++warp) value = combine(value, shared_.of_warp[warp]);
    return value;
  }

  // Sum of the values of the block's threads before this one; `total` of the block.
  __device__ unsigned long long SumBefore(unsigned long long value, unsigned long long& total) {
    const int lane = threadIdx.x % 32;
    unsigned long long inclusive = value;
    for (int offset = 1; offset < 32; offset *= 2) {
      const unsigned long long before = __shfl_up_sync(0xFFFFFFFFu, inclusive, offset);
      if (lane >= offset) inclusive += before;
    }
    __syncthreads();
    if (lane == 31) shared_.of_warp[threadIdx.x / 32] = inclusive;
    __syncthreads();
    unsigned long long base = 0;
    total = 0;
    for (int warp = 0; warp < kSampleWarps; ++warp) {
      if (warp == static_cast<int>(threadIdx.x / 32)) base = total;
      total += shared_.of_warp[warp];
    }
    return base + inclusive - value;
  }

  // In every thread, the key that one thread of block `rank` has put in *NextResult().
  __device__ Key* NextResult() { return &shared_.result[result_turn_ ^= 1]; }
  __device__ Key ShareResult(int rank) {
    Sync();
    return *Remote(&shared_.result[result_turn_], rank);
  }

  // As OverBlock, and the blocks' values in rising rank in `of_blocks`.
  template <typename Combine>
  __device__ unsigned long long OverCluster(unsigned long long value, const Combine& combine,
                                            unsigned long long (&of_blocks)[kSampleCluster]) {
    value = OverBlock(value, combine);
    // Two places in turn: a block may be a call ahead of those that still read.
    unsigned long long* mine = &shared_.of_block[turn_];
    turn_ ^= 1;
    if (threadIdx.x == 0) *mine = value;
    Sync();
    for (int i = 0; i < kSampleCluster; ++i) of_blocks[i] = *Remote(mine, i);
    value = of_blocks[0];
    for (int i = 1; i < kSampleCluster; ++i) value = combine(value, of_blocks[i]);
    return value;
  }
  template <typename Combine>
  __device__ unsigned long long OverCluster(unsigned long long value, const Combine& combine) {
    unsigned long long of_blocks[kSampleCluster];
    return OverCluster(value, combine, of_blocks);
  }

 private:
  SampleShared& shared_;
  cooperative_groups::cluster_group cluster_;
  int turn_ = 0;
  int result_turn_ = 0;
  int list_turn_ = 0;
};

struct Larger {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a < b ? a : b;
  }
};
struct Sum {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a + b;
  }
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_CLUSTER_CUH_
