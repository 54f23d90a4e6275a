// One block, so that the totals in global memory need no atomics: it counts in shared memory and
// adds each count once. Whole numbers: the order of the additions does not matter.

#include "kernels/cuda/expert_load.h"
#include "kernels/cuda/expert_tokens.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    LoadKernel(const __grid_constant__ TokenArgs tokens, LoadTotals totals) {
  __shared__ SourceBegins sources;
  __shared__ unsigned counts[kMaxCountedExperts];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < tokens.num_local) counts[thread] = 0;
  PdlTrigger();
  PdlWait();
  if (thread < 32) ReadSources(tokens, thread, sources);
  __syncthreads();
  const int32_t pairs = sources.begin[tokens.num_sources] * tokens.k;
  for (int32_t pair = thread; pair < pairs; pair += kThreads) {
    const CopyPlace place = PlaceOfCopy(tokens, sources, pair / tokens.k);
    const int32_t local = LocalExpert(tokens, ExpertId(tokens, place.slot, pair % tokens.k));
    if (local >= 0) atomicAdd(&counts[local], 1u);
  }
  __syncthreads();
  if (thread < tokens.num_local) totals.pairs[thread] += counts[thread];
  if (totals.copies != nullptr && thread < tokens.num_sources) {
    totals.copies[thread] += sources.begin[thread + 1] - sources.begin[thread];
  }
}

}  // namespace

void CountExpertLoad(const TokenArgs& tokens, const LoadTotals& totals, cudaStream_t stream) {
  LaunchDependent(LoadKernel, {dim3(1), dim3(kThreads)}, stream, tokens, totals);
}

}  // namespace conclave::kernels::cuda
