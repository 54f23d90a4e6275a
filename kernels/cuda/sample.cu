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

struct SampleArgs {
  const float* logits;
  int vocabulary;
  int part;  // ids of a block, a multiple of 4
  const SampleRow* params;
  SampledRows output;
};

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

  __device__ void Run() {
    Key token = best_;
    if (params_.temperature > 0 && isfinite(largest_)) token = DrawToken();
    if (First()) args_.output.tokens[row_] = IdOf(token);
    WriteLogprobs(token);
    group_.Sync();  // no block leaves while others read its shared memory
  }

 private:
  __device__ bool First() const { return group_.rank() == 0 && threadIdx.x == 0; }

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

  __device__ void WriteLogprobs(Key token) {
    const int64_t top = int64_t{row_} * kTopLogprobs;
    if (group_.rank() == 0 && threadIdx.x < kTopLogprobs) {
      args_.output.top_tokens[top + threadIdx.x] = -1;
      args_.output.top_logprobs[top + threadIdx.x] = 0;
    }
    if (params_.logprobs < 0) {
      if (First()) args_.output.logprobs[row_] = 0;
      return;
    }
    const Weigher weigh(largest_, 1);
    unsigned long long of_thread = 0;
    part_.ForEach([&](float logit, int) { of_thread += weigh.Units(logit); });
    const unsigned long long total = group_.OverCluster(of_thread, Sum());
    const double log_sum =
        isfinite(largest_)
            ? largest_ + log(static_cast<double>(total) / static_cast<double>(1ull << kWeightBits))
            : NAN;
    if (First()) {
      args_.output.logprobs[row_] = static_cast<float>(LogitOf(token) - log_sum);
    }
    const int wanted = min(min(params_.logprobs, kTopLogprobs), args_.vocabulary);
    if (wanted > 0) WriteTopList(wanted, log_sum, top);
  }

  __device__ void WriteTopList(int wanted, double log_sum, int64_t top) {
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
    args_.output.top_tokens[top + place] = IdOf(mine);
    args_.output.top_logprobs[top + place] = static_cast<float>(LogitOf(mine) - log_sum);
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

// Dynamic shared memory: the block's part of the row, if kKept. kBlocks share a multiprocessor.
template <bool kKept, int kBlocks>
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
  const SampleRow params = args.params[row];
  const Largest mine = LoadPart(logits, first, size, kKept ? kept : nullptr);
  // Its barriers also order `kept`.
  const Key best = group.OverCluster(mine.AsKey(), Larger());
  const RowPart part(kKept ? kept : logits + first, !kKept, first, size);
  RowSampler(args, group, part, params, row, best).Run();
}

cudaError_t RaiseShared(void (*kernel)(SampleArgs)) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxKeptBytes);
}

}  // namespace

void SampleRows(const float* logits, int n, int vocabulary, const SampleRow* params,
                const SampledRows& output, cudaStream_t stream) {
  if (n == 0) return;
  const int part = ((vocabulary + kSampleCluster - 1) / kSampleCluster + 3) / 4 * 4;
  const SampleArgs args = {logits, vocabulary, part, params, output};
  const int64_t kept_bytes = int64_t{part} * static_cast<int64_t>(sizeof(float));
  LaunchShape shape = {.grid = dim3(n * kSampleCluster),
                       .block = dim3(kSampleThreads),
                       .shared_bytes = 0,
                       .cluster = kSampleCluster};
  if (kept_bytes > kMaxKeptBytes) {
    LaunchDependent(SampleKernel<false, 1>, shape, stream, args);
    return;
  }
  shape.shared_bytes = kept_bytes;
  // Few rows have the multiprocessors to themselves, and may use all registers.
  const bool few = n * kSampleCluster <= NumMultiprocessors();
  const auto kernel = few ? SampleKernel<true, 1> : SampleKernel<true, 2>;
  static const cudaError_t raised[] = {RaiseShared(SampleKernel<true, 1>),
                                       RaiseShared(SampleKernel<true, 2>)};
  if (raised[few ? 0 : 1] != cudaSuccess) return;  // left for cudaGetLastError
  LaunchDependent(kernel, shape, stream, args);
}

}  // namespace conclave::kernels::cuda
