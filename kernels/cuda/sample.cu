// One cluster per row. Each block loads its part of the row once and keeps it in shared memory; the
// largest logit comes out of the load, everything else is passes over the part:
//   greedy             none
//   temperature        one to add up the weights, and a stretch of it for the draw
//   top_k, top_p       one each to fill the bins, one each to collect the bin in question
//   log-probabilities  one for the sum, two for the top list

#include "kernels/cuda/sample.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/philox.h"

namespace conclave::kernels::cuda {
namespace {

// What is left of a block's 227 KiB beside SampleShared, rounded down.
constexpr int kMaxKeptBytes = 208 * 1024;
static_assert(kMaxKeptBytes + sizeof(SampleShared) + 1024 <= 227 * 1024);

constexpr int kCountThreads = 128;

struct SampleArgs {
  const float* logits = nullptr;
  int vocabulary = 0;
  int part = 0;  // ids of a block, a multiple of 4
  const SampleRow* params = nullptr;
  SampledRows output = {};
  // Draws::kAdjusted only.
  const int32_t* slot_of_row = nullptr;
  const SampleSlot* slots = nullptr;
  // Draws::kTargets only.
  const int32_t* targets = nullptr;
  int top = 0;
};

// What a kernel does with its rows: SampleRows, SampleAdjustedRows, TargetLogprobs.
enum class Draws { kPlain, kAdjusted, kTargets };

constexpr int PartOf(int vocabulary) {
  return ((vocabulary + kSampleCluster - 1) / kSampleCluster + 3) / 4 * 4;
}

// The largest logit of this thread's ids, the first of equal ones.
struct Largest {
  float logit = -INFINITY;
  int id = -1;

  __device__ void Add(float other, int at) {
    if (other > logit || id < 0) {
      logit = other;
      id = at;
    }
  }
  __device__ Key AsKey() const { return id < 0 ? 0 : MakeKey(logit, id); }
};

// Reads a part of a row; copies it to `kept` if that is not null, made Comparable.
__device__ Largest LoadPart(const float* row, int first, int size, float* kept) {
  Largest largest;
  const float* from = row + first;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0;
  const int vectors = aligned ? size / 4 : 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors; i += kSampleThreads) {
    float4 logits = reinterpret_cast<const float4*>(from)[i];
    logits = {Comparable(logits.x), Comparable(logits.y), Comparable(logits.z),
              Comparable(logits.w)};
    if (kept != nullptr) reinterpret_cast<float4*>(kept)[i] = logits;
    largest.Add(logits.x, first + 4 * i);
    largest.Add(logits.y, first + 4 * i + 1);
    largest.Add(logits.z, first + 4 * i + 2);
    largest.Add(logits.w, first + 4 * i + 3);
  }
  for (int i = 4 * vectors + threadIdx.x; i < size; i += kSampleThreads) {
    const float logit = Comparable(from[i]);
    if (kept != nullptr) kept[i] = logit;
    largest.Add(logit, first + i);
  }
  return largest;
}

class RowSampler {
 public:
  __device__ RowSampler(const SampleArgs& args, SampleGroup& group, const RowPart& part,
                        const SampleRow& params, int row, Key best)
      : args_(args),
        group_(group),
        part_(part),
        params_(params),
        row_(row),
        best_(best),
        largest_(LogitOf(best)),
        bins_(largest_) {}

  // As params say, without changes of the logits.
  __device__ void Run() {
    const Key token = TakeToken();
    if (First()) args_.output.tokens[row_] = IdOf(token);
    if (params_.logprobs < 0) {
      ClearLogprobs();
    } else {
      WriteLogprobs(LogitOf(token));
    }
  }

  __device__ Key TakeToken() {
    return params_.temperature > 0 && isfinite(largest_) ? DrawToken() : best_;
  }

  // Of a token with this logit, and the top list. Returns the log of the sum of all.
  __device__ double WriteLogprobs(float logit) {
    ClearTopList();
    const Weigher weigh(largest_, 1);
    unsigned long long of_thread = 0;
    part_.ForEach([&](float other, int) { of_thread += weigh.Units(other); });
    const unsigned long long total = group_.OverCluster(of_thread, Sum());
    const double log_sum =
        isfinite(largest_)
            ? largest_ + log(static_cast<double>(total) / static_cast<double>(1ull << kWeightBits))
            : NAN;
    if (First()) args_.output.logprobs[row_] = static_cast<float>(logit - log_sum);
    const int wanted = min(min(params_.logprobs, kTopLogprobs), args_.vocabulary);
    if (wanted > 0) WriteTopList(wanted, log_sum);
    return log_sum;
  }

  __device__ void ClearLogprobs() {
    ClearTopList();
    if (First()) args_.output.logprobs[row_] = 0;
  }

  __device__ bool First() const { return group_.rank() == 0 && threadIdx.x == 0; }

 private:
  __device__ Key DrawToken() {
    const Weigher weigh(largest_, params_.temperature);
    Key least = 0;
    if (params_.top_k > 0 && params_.top_k < args_.vocabulary) {
      const auto top_k = static_cast<unsigned long long>(params_.top_k);
      least = Selector(group_, part_, bins_, CountMeasure(), least).Find([&](unsigned long long) {
        return top_k;
      });
    }
    if (params_.top_p < 1) {
      least = Selector(group_, part_, bins_, WeightMeasure{weigh}, least)
                  .Find([&](unsigned long long total) {
                    const double wanted =
                        static_cast<double>(params_.top_p) * static_cast<double>(total);
                    return __double2ull_ru(fmax(wanted, 0.0));
                  });
    }
    return Draw(weigh, least);
  }

  // Units of an id, 0 unless it is kept.
  __device__ unsigned long long KeptUnits(const Weigher& weigh, Key least, float logit,
                                          int id) const {
    if (MakeKey(logit, id) < least) return 0;
    if (params_.min_p > 0 && weigh.Weight(logit) < static_cast<double>(params_.min_p)) return 0;
    return weigh.Units(logit);
  }

  // The id where the running sum of units, in rising id, passes u of the total.
  __device__ Key Draw(const Weigher& weigh, Key least) {
    unsigned long long of_thread = 0;
    part_.ForEach([&](float logit, int id) { of_thread += KeptUnits(weigh, least, logit, id); });
    unsigned long long of_blocks[kSampleCluster];
    const unsigned long long total = group_.OverCluster(of_thread, Sum(), of_blocks);
    if (total == 0) return best_;  // min_p above 1
    const double u =
        UniformAt(params_.seed, static_cast<uint64_t>(static_cast<int64_t>(params_.position)));
    unsigned long long wanted = min(__double2ull_rz(u * static_cast<double>(total)) + 1, total);
    int rank = 0;
    while (wanted > of_blocks[rank]) wanted -= of_blocks[rank++];
    Key* result = group_.NextResult();
    if (rank == group_.rank()) DrawInBlock(weigh, least, wanted, result);
    return group_.ShareResult(rank);
  }

  // of_warp still holds the sums that OverCluster made.
  __device__ void DrawInBlock(const Weigher& weigh, Key least, unsigned long long wanted,
                              Key* result) {
    int warp = 0;
    while (wanted > group_.shared().of_warp[warp]) wanted -= group_.shared().of_warp[warp++];
    unsigned long long mine = 0;
    part_.ForEachOfStretch(warp, [&](float logit, int id) {
      mine += KeptUnits(weigh, least, logit, id);
      return false;
    });
    unsigned long long total = 0;
    unsigned long long passed = group_.SumBefore(mine, total);
    if (passed >= wanted || passed + mine < wanted) return;
    part_.ForEachOfStretch(warp, [&](float logit, int id) {
      passed += KeptUnits(weigh, least, logit, id);
      if (passed < wanted) return false;
      *result = MakeKey(logit, id);
      return true;
    });
  }

  __device__ int64_t Top() const { return int64_t{row_} * kTopLogprobs; }

  __device__ void ClearTopList() {
    if (group_.rank() != 0 || threadIdx.x >= kTopLogprobs) return;
    args_.output.top_tokens[Top() + threadIdx.x] = -1;
    args_.output.top_logprobs[Top() + threadIdx.x] = 0;
  }

  __device__ void WriteTopList(int wanted, double log_sum) {
    using Counter = Selector<CountMeasure>;
    const Key least =
        wanted == args_.vocabulary
            ? 0
            : Counter(group_, part_, bins_, CountMeasure(), 0).Find([&](unsigned long long) {
                return static_cast<unsigned long long>(wanted);
              });
    Counter::GatherKeys(group_, part_, [&](float, Key key) { return key >= least; });
    if (group_.rank() != 0 || static_cast<int>(threadIdx.x) >= wanted) return;
    const Key* list = group_.shared().list;
    const Key mine = list[threadIdx.x];
    int place = 0;
    for (int i = 0; i < wanted; ++i) place += list[i] > mine ? 1 : 0;
    args_.output.top_tokens[Top() + place] = IdOf(mine);
    args_.output.top_logprobs[Top() + place] = static_cast<float>(LogitOf(mine) - log_sum);
  }

  const SampleArgs& args_;
  SampleGroup& group_;
  const RowPart& part_;
  const SampleRow params_;
  const int row_;
  const Key best_;
  const float largest_;
  const LogitBins bins_;
};

// Changes this block's part of a row, `from`, as the parameters say. `to` [of the part] is where
// `from` reads, or takes a copy. For all threads of the block, with a barrier at either end.
__device__ void AdjustPart(const RowPart& from, const SampleSlot& slot, const SampleRow& params,
                           float* to) {
  const int first = from.first();
  const int size = from.size();
  __syncthreads();
  if (slot.adjusted != nullptr) {
    from.ForEach([&](float logit, int id) { to[id - first] = logit; });
    __syncthreads();
  }
  if (params.biased) {
    for (int i = threadIdx.x; i < slot.num_biases; i += kSampleThreads) {
      const int at = slot.bias_tokens[i] - first;
      if (at >= 0 && at < size) to[at] = Comparable(to[at] + slot.biases[i]);
    }
    __syncthreads();
  }
  if (params.counted) {
    for (int at = threadIdx.x; at < size; at += kSampleThreads) {
      const TokenCount count = slot.counts[first + at];
      if (count != 0) to[at] = Comparable(Penalized(to[at], count, params.penalties));
    }
    __syncthreads();
  }
  if (params.mask_ends) {
    for (int i = threadIdx.x; i < slot.num_end_tokens; i += kSampleThreads) {
      const int at = slot.end_tokens[i] - first;
      if (at >= 0 && at < size) to[at] = -INFINITY;
    }
    __syncthreads();
  }
}

// Log-probabilities are of the row as it is, and come before its logits change.
__device__ void RunAdjusted(const SampleArgs& args, SampleGroup& group, const RowPart& part,
                            const SampleRow& params, const SampleSlot& slot, int row, Key best,
                            float* kept) {
  double log_sum = 0;
  {
    RowSampler raw(args, group, part, params, row, best);
    if (params.logprobs < 0) {
      raw.ClearLogprobs();
    } else {
      log_sum = raw.WriteLogprobs(LogitOf(best));
    }
  }
  float* to = slot.adjusted != nullptr ? slot.adjusted + part.first() : kept;
  AdjustPart(part, slot, params, to);
  const RowPart adjusted(to, false, part.first(), part.size());
  Largest mine;
  adjusted.ForEach([&](float logit, int id) { mine.Add(logit, id); });
  RowSampler sampler(args, group, adjusted, params, row, group.OverCluster(mine.AsKey(), Larger()));
  const int token = IdOf(sampler.TakeToken());
  if (!sampler.First()) return;
  args.output.tokens[row] = token;
  if (params.logprobs < 0) return;
  const float logit = Comparable(args.logits[int64_t{row} * args.vocabulary + token]);
  args.output.logprobs[row] = static_cast<float>(logit - log_sum);
}

// Dynamic shared memory: the block's part of the row, if kKept. kBlocks share a multiprocessor.
template <Draws kDraws, bool kKept, int kBlocks>
__global__ void __launch_bounds__(kSampleThreads, kBlocks) SampleKernel(SampleArgs args) {
  extern __shared__ __align__(16) float kept[];
  __shared__ SampleShared shared;
  PdlTrigger();
  PdlWait();
  SampleGroup group(shared);
  if (threadIdx.x < 2) shared.list_size[threadIdx.x] = 0;
  const int row = blockIdx.x / kSampleCluster;
  const float* logits = args.logits + int64_t{row} * args.vocabulary;
  const int first = min(group.rank() * args.part, args.vocabulary);
  const int size = min(args.part, args.vocabulary - first);
  SampleRow params;
  if constexpr (kDraws == Draws::kTargets) {
    params.logprobs = args.top;
  } else {
    params = args.params[row];
  }
  const Largest mine = LoadPart(logits, first, size, kKept ? kept : nullptr);
  // Its barriers also order `kept`.
  const Key best = group.OverCluster(mine.AsKey(), Larger());
  const RowPart part(kKept ? kept : logits + first, !kKept, first, size);
  if constexpr (kDraws == Draws::kTargets) {
    RowSampler(args, group, part, params, row, best)
        .WriteLogprobs(Comparable(logits[args.targets[row]]));
  } else if (kDraws == Draws::kAdjusted && args.slot_of_row[row] >= 0 &&
             (params.biased || params.counted || params.mask_ends)) {
    RunAdjusted(args, group, part, params, args.slots[args.slot_of_row[row]], row, best, kept);
  } else {
    RowSampler(args, group, part, params, row, best).Run();
  }
  group.Sync();  // no block leaves while others read its shared memory
}

__global__ void __launch_bounds__(kCountThreads)
    CountKernel(const int32_t* tokens, int n, const SampleRow* params, const int32_t* slot_of_row,
                const SampleSlot* slots) {
  PdlTrigger();
  PdlWait();
  const int row = static_cast<int>(blockIdx.x) * kCountThreads + static_cast<int>(threadIdx.x);
  if (row >= n || slot_of_row[row] < 0 || !params[row].counted) return;
  TokenCount& count = slots[slot_of_row[row]].counts[tokens[row]];
  count = CountGenerated(count);
}

template <Draws kDraws>
void Launch(SampleArgs args, int n, cudaStream_t stream) {
  if (n == 0) return;
  args.part = PartOf(args.vocabulary);
  LaunchShape shape = {.grid = dim3(n * kSampleCluster),
                       .block = dim3(kSampleThreads),
                       .shared_bytes = 0,
                       .cluster = kSampleCluster};
  if (!FitsSharedMemory(args.vocabulary)) {
    LaunchDependent(SampleKernel<kDraws, false, 1>, shape, stream, args);
    return;
  }
  shape.shared_bytes = args.part * sizeof(float);
  // Few rows have the multiprocessors to themselves, and may use all registers.
  const bool few = n * kSampleCluster <= NumMultiprocessors();
  const auto raise = [](void (*kernel)(SampleArgs)) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxKeptBytes);
  };
  static const cudaError_t raised[] = {raise(SampleKernel<kDraws, true, 1>),
                                       raise(SampleKernel<kDraws, true, 2>)};
  if (raised[few ? 0 : 1] != cudaSuccess) return;  // left for cudaGetLastError
  LaunchDependent(few ? SampleKernel<kDraws, true, 1> : SampleKernel<kDraws, true, 2>, shape,
                  stream, args);
}

}  // namespace

bool FitsSharedMemory(int vocabulary) {
  return PartOf(vocabulary) * static_cast<int64_t>(sizeof(float)) <= kMaxKeptBytes;
}

void SampleRows(const float* logits, int n, int vocabulary, const SampleRow* params,
                const SampledRows& output, cudaStream_t stream) {
  Launch<Draws::kPlain>(
      {.logits = logits, .vocabulary = vocabulary, .params = params, .output = output}, n, stream);
}

void SampleAdjustedRows(const float* logits, int n, int vocabulary, const SampleRow* params,
                        const int32_t* slot_of_row, const SampleSlot* slots,
                        const SampledRows& output, cudaStream_t stream) {
  Launch<Draws::kAdjusted>({.logits = logits,
                            .vocabulary = vocabulary,
                            .params = params,
                            .output = output,
                            .slot_of_row = slot_of_row,
                            .slots = slots},
                           n, stream);
}

void TargetLogprobs(const float* logits, int n, int vocabulary, const int32_t* targets, int top,
                    const SampledRows& output, cudaStream_t stream) {
  Launch<Draws::kTargets>({.logits = logits,
                           .vocabulary = vocabulary,
                           .output = output,
                           .targets = targets,
                           .top = top},
                          n, stream);
}

void CountSampled(const int32_t* tokens, int n, const SampleRow* params, const int32_t* slot_of_row,
                  const SampleSlot* slots, cudaStream_t stream) {
  if (n == 0) return;
  LaunchDependent(CountKernel, {dim3((n + kCountThreads - 1) / kCountThreads), dim3(kCountThreads)},
                  stream, tokens, n, params, slot_of_row, slots);
}

}  // namespace conclave::kernels::cuda
