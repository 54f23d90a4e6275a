#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_SELECT_CUH_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_SELECT_CUH_

// Finds where the running measure of a row, in order of falling key, reaches an amount, without
// sorting the row: bins of equal logit width first, then, while the bin in question holds more than
// a short list, bins of its keys' range; the list is sorted by one block. Private to sampling.

#include "kernels/cuda/sample_cluster.cuh"

namespace conclave::kernels::cuda {

// How ids are counted.
struct CountMeasure {
  static constexpr bool kCounts = true;
  __device__ unsigned long long operator()(float) const { return 1; }
};
struct WeightMeasure {
  static constexpr bool kCounts = false;
  Weigher weigh;
  __device__ unsigned long long operator()(float logit) const { return weigh.Units(logit); }
};

// Bins of equal width of the logits from the largest down; what lies further down is in the last.
class LogitBins {
 public:
  __device__ explicit LogitBins(float largest) : largest_(largest) {}
  // Never falls when the logit does.
  __device__ int operator()(float logit) const {
    if (logit == -INFINITY) return kSampleBins - 1;
    return min(kSampleBins - 1, static_cast<int>((largest_ - logit) * kPerUnit));
  }

 private:
  static constexpr float kPerUnit = 32;

  float largest_;
};

template <typename Measure>
class Selector {
 public:
  // Ids with keys under `least` do not count.
  __device__ Selector(SampleGroup& group, const RowPart& row, const LogitBins& bins,
                      const Measure& measure, Key least)
      : group_(group), row_(row), bins_(bins), measure_(measure), least_(least) {}

  // The key of the first id with which the measure of all ids up to it reaches
  // amount_of(measure of all ids). There is one.
  template <typename AmountOf>
  __device__ Key Find(const AmountOf& amount_of) {
    Count([&](float logit, int id) { return MakeKey(logit, id) >= least_ ? bins_(logit) : -1; });
    unsigned long long amount = FindBin(amount_of);
    const int bin = found().bin;
    unsigned count = found().count;
    const auto in_bin = [&](float logit, Key key) { return bins_(logit) == bin && key >= least_; };
    if (count <= kSampleList) {
      return FindInList(amount, in_bin);
    }
    Key low = ~Key{0};
    Key high = 0;
    row_.ForEach([&](float logit, int id) {
      const Key key = MakeKey(logit, id);
      if (!in_bin(logit, key)) return;
      low = Smaller()(low, key);
      high = Larger()(high, key);
    });
    low = group_.OverCluster(low, Smaller());
    high = group_.OverCluster(high, Larger());
    while (count > kSampleList) {
      int shift = 0;
      while ((high - low) >> shift >= kSampleBins) ++shift;
      Count([&](float logit, int id) {
        const Key key = MakeKey(logit, id);
        if (!in_bin(logit, key) || key < low || key > high) return -1;
        return static_cast<int>((high - key) >> shift);
      });
      amount = FindBin([&](unsigned long long) { return amount; });
      count = found().count;
      const Key top = high - (static_cast<Key>(found().bin) << shift);
      const Key width = (Key{1} << shift) - 1;
      low = top - low > width ? top - width : low;
      high = top;
    }
    return FindInList(amount, [&](float logit, Key key) {
      return in_bin(logit, key) && key >= low && key <= high;
    });
  }

 private:
  __device__ auto& found() { return group_.shared().found; }

  // Fills the bins of all blocks; bin_of(logit, id) is -1 for ids that do not count.
  template <typename BinOf>
  __device__ void Count(const BinOf& bin_of) {
    auto& bins = group_.shared().bins;
    group_.Sync();  // nobody reads bins or list any more
    for (int i = threadIdx.x; i < kSampleBins; i += kSampleThreads) {
      bins.weights_low[i] = 0;
      bins.weights_high[i] = 0;
      bins.counts[i] = 0;
    }
    __syncthreads();
    row_.ForEach([&](float logit, int id) {
      const int bin = bin_of(logit, id);
      if (bin < 0) return;
      atomicAdd(&bins.counts[bin], 1u);
      if constexpr (!Measure::kCounts) {
        const unsigned long long units = measure_(logit);
        if (units > 0) AddUnits(bin, units);
      }
    });
    group_.Sync();
  }

  __device__ void AddUnits(int bin, unsigned long long units) {
    auto& bins = group_.shared().bins;
    const auto low = static_cast<unsigned>(units);
    const unsigned before = atomicAdd(&bins.weights_low[bin], low);
    const unsigned carry = before + low < low ? 1 : 0;
    const unsigned high = static_cast<unsigned>(units >> 32) + carry;
    if (high > 0) atomicAdd(&bins.weights_high[bin], high);
  }

  // Fills found(): the first bin with which the measure reaches amount_of(all). Returns what is
  // still wanted of it. The same in all blocks.
  template <typename AmountOf>
  __device__ unsigned long long FindBin(const AmountOf& amount_of) {
    constexpr int kOfThread = kSampleBins / kSampleThreads;
    SampleShared& shared = group_.shared();
    unsigned long long weights[kOfThread] = {};
    unsigned counts[kOfThread] = {};
    unsigned long long sum = 0;
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const int bin = kOfThread * static_cast<int>(threadIdx.x) + i;
      for (int rank = 0; rank < kSampleCluster; ++rank) {
        counts[i] += *group_.Remote(&shared.bins.counts[bin], rank);
        if (Measure::kCounts) continue;
        const Key high = *group_.Remote(&shared.bins.weights_high[bin], rank);
        weights[i] += high << 32 | *group_.Remote(&shared.bins.weights_low[bin], rank);
      }
      if (Measure::kCounts) weights[i] = counts[i];
      sum += weights[i];
    }
    unsigned long long total = 0;
    unsigned long long before = group_.SumBefore(sum, total);
    const unsigned long long amount = max(amount_of(total), 1ull);
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      if (before < amount && before + weights[i] >= amount) {
        found() = {kOfThread * static_cast<int>(threadIdx.x) + i, before, counts[i]};
      }
      before += weights[i];
    }
    __syncthreads();
    return amount - found().before;
  }

  template <typename Wanted>
  __device__ Key FindInList(unsigned long long amount, const Wanted& wanted) {
    const unsigned size = GatherKeys(group_, row_, wanted);
    SampleShared& shared = group_.shared();
    Key* result = group_.NextResult();
    if (group_.rank() == 0) {
      SortList(size);
      constexpr int kOfThread = kSampleList / kSampleThreads;
      unsigned long long sum = 0;
      for (int i = 0; i < kOfThread; ++i) sum += UnitsOf(kOfThread * threadIdx.x + i, size);
      unsigned long long total = 0;
      unsigned long long before = group_.SumBefore(sum, total);
      for (int i = 0; i < kOfThread; ++i) {
        const unsigned at = kOfThread * threadIdx.x + i;
        const unsigned long long units = UnitsOf(at, size);
        if (before < amount && before + units >= amount) *result = shared.list[at];
        before += units;
      }
    }
    return group_.ShareResult(0);
  }

  __device__ unsigned long long UnitsOf(unsigned at, unsigned size) {
    return at < size ? measure_(LogitOf(group_.shared().list[at])) : 0;
  }

  // Bitonic, falling; the list is filled up with 0, which is no key.
  __device__ void SortList(unsigned size) {
    Key* list = group_.shared().list;
    unsigned padded = 2;
    while (padded < size) padded *= 2;
    for (unsigned i = size + threadIdx.x; i < kSampleList; i += kSampleThreads) list[i] = 0;
    for (unsigned width = 2; width <= padded; width *= 2) {
      for (unsigned distance = width / 2; distance > 0; distance /= 2) {
        __syncthreads();
        for (unsigned pair = threadIdx.x; pair < padded / 2; pair += kSampleThreads) {
          const unsigned low = pair / distance * distance * 2 + pair % distance;
          const unsigned high = low + distance;
          const bool falling = (low & width) == 0;
          const Key a = list[low];
          const Key b = list[high];
          if ((a < b) == falling) {
            list[low] = b;
            list[high] = a;
          }
        }
      }
    }
    __syncthreads();
  }

  SampleGroup& group_;
  const RowPart& row_;
  const LogitBins& bins_;
  const Measure measure_;
  const Key least_;

 public:
  // Collects the keys for which wanted(logit, key) holds, at most kSampleList, in the first block's
  // list, in any order. Returns how many.
  template <typename Wanted>
  static __device__ unsigned GatherKeys(SampleGroup& group, const RowPart& row,
                                        const Wanted& wanted) {
    SampleShared& shared = group.shared();
    group.Sync();  // nobody reads bins, list or the other size any more
    const int turn = group.NextList();
    if (threadIdx.x == 0) shared.list_size[turn ^ 1] = 0;
    unsigned* size = group.Remote(&shared.list_size[turn], 0);
    Key* list = group.Remote(&shared.list[0], 0);
    row.ForEach([&](float logit, int id) {
      const Key key = MakeKey(logit, id);
      if (!wanted(logit, key)) return;
      list[atomicAdd(size, 1u)] = key;
    });
    group.Sync();
    return *size;
  }
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_SELECT_CUH_
