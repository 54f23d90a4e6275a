#include "kernels/cuda/attention_fixture.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 256;

int FirstBlock(int position, int window) {
  return std::max(0, position - window + 1) / kKvBlockTokens;
}

// Gives out the ids of a cache in random order; a quarter more than asked for.
std::vector<int32_t> ShuffledIds(int blocks, std::mt19937& random) {
  std::vector<int32_t> ids(blocks + blocks / 4 + 1);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  return ids;
}

__device__ uint32_t Mix(uint32_t value) {
  value = (value ^ (value >> 16)) * 0x7FEB352Du;
  value = (value ^ (value >> 15)) * 0x846CA68Bu;
  return value ^ (value >> 16);
}

__device__ float Normal(uint32_t state) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = Mix(state + 0x9E3779B9u);
    sum += static_cast<float>(state) * 0x1p-32f - 0.5f;
  }
  return sum * 1.7320508f;
}

__device__ int64_t CacheRow(const StepView& view, const AttentionShape& shape, const KvPages& cache,
                            const RunView& run, int position, int kv_head) {
  const int block = position / kKvBlockTokens;
  const int64_t id = view.blocks[cache.sliding ? run.sliding_offset + block - run.sliding_first
                                               : run.full_offset + block];
  return ((id * shape.kv_heads + kv_head) * kKvBlockTokens + position % kKvBlockTokens) *
         shape.head_dim;
}

__device__ int FirstVisible(const AttentionShape& shape, bool sliding, int position) {
  return sliding ? max(0, position - shape.window + 1) : 0;
}

__global__ void FillVisibleKernel(StepView view, AttentionShape shape, KvPages cache,
                                  bool past_only, uint32_t seed, float deviation) {
  const RunView run = view.run[blockIdx.y];
  if (run.rows == 0) return;
  const int begin = FirstVisible(shape, cache.sliding, run.start_position);
  const int end = run.start_position + (past_only ? 0 : run.rows);
  const int size = shape.kv_heads * shape.head_dim;
  for (int position = begin + static_cast<int>(blockIdx.x); position < end;
       position += static_cast<int>(gridDim.x)) {
    for (int i = threadIdx.x; i < size; i += kThreads) {
      const int64_t at =
          CacheRow(view, shape, cache, run, position, i / shape.head_dim) + i % shape.head_dim;
      const uint32_t state = Mix(Mix(seed + blockIdx.y * 977u) ^ (position * 8191u + i));
      cache.keys[at] = __float2bfloat16_rn(Normal(state) * deviation);
      cache.values[at] = __float2bfloat16_rn(Normal(~state) * deviation);
    }
  }
}

template <typename Combine>
__device__ double OverBlock(double value, const Combine& combine) {
  __shared__ double values[kThreads];
  __syncthreads();
  values[threadIdx.x] = value;
  __syncthreads();
  for (int i = 0; i < kThreads; ++i) value = i == 0 ? values[0] : combine(value, values[i]);
  return value;
}

__global__ void __launch_bounds__(kThreads)
    ReferenceKernel(StepView view, AttentionShape shape, KvPages cache, const __nv_bfloat16* sinks,
                    const __nv_bfloat16* qkv, const SampledHead* sampled, double* scratch,
                    double* out) {
  const SampledHead sample = sampled[blockIdx.x];
  const RunView run = view.run[view.run_of_row[sample.row]];
  const int position = view.positions[sample.row];
  const int begin = FirstVisible(shape, cache.sliding, position);
  const int dim = shape.head_dim;
  const int kv_head = sample.head / (shape.heads / shape.kv_heads);
  const __nv_bfloat16* query = qkv + int64_t{sample.row} * shape.row_values() + sample.head * dim;
  const double sink = __bfloat162float(sinks[sample.head]);
  double* logits = scratch + int64_t{blockIdx.x} * view.max_context;
  double largest = sink;
  for (int key = begin + static_cast<int>(threadIdx.x); key <= position; key += kThreads) {
    const __nv_bfloat16* values = cache.keys + CacheRow(view, shape, cache, run, key, kv_head);
    double logit = 0;
    for (int d = 0; d < dim; ++d) {
      logit += static_cast<double>(__bfloat162float(query[d])) * __bfloat162float(values[d]);
    }
    logits[key] = logit / sqrt(static_cast<double>(dim));
    largest = fmax(largest, logits[key]);
  }
  largest = OverBlock(largest, [](double a, double b) { return fmax(a, b); });
  double sum = 0;
  for (int key = begin + static_cast<int>(threadIdx.x); key <= position; key += kThreads) {
    logits[key] = exp(logits[key] - largest);
    sum += logits[key];
  }
  sum = OverBlock(sum, [](double a, double b) { return a + b; }) + exp(sink - largest);
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    double total = 0;
    for (int key = begin; key <= position; ++key) {
      const int64_t at = CacheRow(view, shape, cache, run, key, kv_head) + d;
      total += logits[key] * __bfloat162float(cache.values[at]);
    }
    out[int64_t{blockIdx.x} * dim + d] = total / sum;
  }
}

}  // namespace

HostStep MakeHostStep(const std::vector<RunSpec>& runs, int window, int spare_rows, int spare_runs,
                      uint32_t seed) {
  std::mt19937 random(seed);
  HostStep step;
  for (const RunSpec& spec : runs) {
    const int end = spec.start_position + spec.rows;
    const int blocks = (end + kKvBlockTokens - 1) / kKvBlockTokens;
    step.full_blocks += blocks;
    step.sliding_blocks += blocks - FirstBlock(spec.start_position, window);
    step.max_context = std::max(step.max_context, end);
    step.max_run_rows = std::max(step.max_run_rows, spec.rows);
  }
  const std::vector<int32_t> full_ids = ShuffledIds(step.full_blocks, random);
  const std::vector<int32_t> sliding_ids = ShuffledIds(step.sliding_blocks, random);
  step.full_blocks = static_cast<int>(full_ids.size());
  step.sliding_blocks = static_cast<int>(sliding_ids.size());
  auto full_id = full_ids.begin();
  auto sliding_id = sliding_ids.begin();
  for (const RunSpec& spec : runs) {
    const int blocks = (spec.start_position + spec.rows + kKvBlockTokens - 1) / kKvBlockTokens;
    RunView run = {.slot = static_cast<int32_t>(step.run.size()),
                   .first_row = static_cast<int32_t>(step.positions.size()),
                   .rows = spec.rows,
                   .start_position = spec.start_position,
                   .full_offset = static_cast<int32_t>(step.blocks.size()),
                   .sliding_offset = 0,
                   .sliding_first = FirstBlock(spec.start_position, window)};
    step.blocks.insert(step.blocks.end(), full_id, full_id + blocks);
    full_id += blocks;
    run.sliding_offset = static_cast<int32_t>(step.blocks.size());
    step.blocks.insert(step.blocks.end(), sliding_id, sliding_id + blocks - run.sliding_first);
    sliding_id += blocks - run.sliding_first;
    for (int row = 0; row < spec.rows; ++row) {
      step.token_ids.push_back(row);
      step.positions.push_back(spec.start_position + row);
      step.run_of_row.push_back(run.slot);
    }
    step.run.push_back(run);
  }
  step.token_ids.resize(step.token_ids.size() + spare_rows, 0);
  step.positions.resize(step.positions.size() + spare_rows, 0);
  step.run_of_row.resize(step.run_of_row.size() + spare_rows, -1);
  step.run.resize(step.run.size() + spare_runs, RunView{});
  return step;
}

void FillVisible(const StepView& view, const AttentionShape& shape, const KvPages& cache,
                 bool past_only, uint32_t seed, float deviation, cudaStream_t stream) {
  const dim3 grid(std::min(view.max_context, 4096), view.runs);
  FillVisibleKernel<<<grid, kThreads, 0, stream>>>(view, shape, cache, past_only, seed, deviation);
}

void ReferenceAttention(const StepView& view, const AttentionShape& shape, const KvPages& cache,
                        const __nv_bfloat16* sinks, const __nv_bfloat16* qkv,
                        const SampledHead* sampled, int count, double* scratch, double* out,
                        cudaStream_t stream) {
  ReferenceKernel<<<count, kThreads, 0, stream>>>(view, shape, cache, sinks, qkv, sampled, scratch,
                                                  out);
}

}  // namespace conclave::kernels::cuda
