#ifndef CONCLAVE_KERNELS_OPS_H_
#define CONCLAVE_KERNELS_OPS_H_

// The forward pass of gpt-oss as a short list of fused operations, cut where a collective may
// stand. One implementation per backend; worker/transformer is written once against this.
//
// Obligations of an implementation:
//  1. Calls come from one thread and take effect in the order they are made (a GPU backend enqueues
//     them on its stream; nothing but Write, Read, ForgetRecorded and Finish waits).
//  2. Shapes are the caller's promise, checked by CHECK at most. Input never reaches here
//  unchecked.
//  3. What an op writes for a row depends on that row alone, never on the rows beside it: the same
//     tokens give the same bits in any batch, chunking and exchange mode (CPU; on a GPU for the
//     same plan).
//  4. Every output element in range is written; padding is neither read nor written.
//  5. A failure on the device is kept and returned by the next Finish; later ops are no-ops.
//
// T rows of the step, H hidden, k experts per token, D head_dim. Activations have
// activation_dtype(); partial sums that other ranks will add to have partial_dtype().

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"
#include "model/config.h"

namespace conclave::kernels {

// What runs here and why; printed by `conclave doctor`.
struct KernelInfo {
  std::string device;  // cpu or cuda
  std::string device_name;
  std::string kernel;           // e.g. cpu_mxfp4_avx2
  std::string instruction_set;  // e.g. AVX2
};

// Consecutive tokens of one sequence in a step. Block tables are in host memory and hold every
// block that the run reads or writes.
struct SequenceRun {
  int slot = 0;       // the sequence's slot in [0, max_sequences)
  int first_row = 0;  // rows [first_row, first_row + rows) of the step
  int rows = 0;
  int start_position = 0;                   // position of the first row
  std::span<const int32_t> full_blocks;     // block of positions [16 i, 16 i + 16) at index i
  std::span<const int32_t> sliding_blocks;  // ... at index i - sliding_first
  int sliding_first = 0;
};

// How one row is sampled: the slot's biases, penalties and end tokens change its logits, in this
// order; then temperature, top_k, top_p, min_p and the draw.
struct SampleParams {
  float temperature = 1;  // 0: arg-max, ties to the lowest id
  int top_k = 0;          // 0: all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  int position = 0;   // of the token drawn: the draw is a function of (seed, position)
  int logprobs = -1;  // entries of the top list, -1: no log-probabilities
  // The rest needs what SetSlotSampling was given for the row's slot.
  bool biased = false;     // biases are added
  bool counted = false;    // the penalties apply, and the token drawn is counted
  bool mask_ends = false;  // no end token is drawn
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;

  bool adjusts() const { return biased || counted || mask_ends; }
};

// Of each list of a slot.
inline constexpr int kMaxSlotTokens = 1024;

// What the draws of one sequence use beside SampleParams. Token ids are in the vocabulary.
struct SlotSampling {
  std::span<const int32_t> bias_tokens = {};  // distinct, kMaxSlotTokens at most
  std::span<const float> biases = {};         // of each, finite
  std::span<const int32_t> end_tokens = {};   // kMaxSlotTokens at most
  bool counted = false;
  std::span<const int32_t> history = {};  // if counted: the sequence's tokens so far
  int prompt_tokens = 0;                  // history from here on was generated
};

// The rows of one step, host memory that stays valid until Finish.
struct StepBatch {
  std::span<const int32_t> token_ids;  // [T] an id, or -1 - slot: the token sampled last for slot
  std::span<const int32_t> positions;  // [T]
  std::span<const SequenceRun> runs;   // cover the rows in order
  // The rows whose next token is drawn, how, and the slots whose last token it becomes, [n] each.
  std::span<const int32_t> sample_rows = {};
  std::span<const SampleParams> sample_params = {};
  std::span<const int32_t> sample_slots = {};
  // Not 0: between BeginStep and Submit come the same calls, with the same tensors, in every step
  // of this key for which BeginStep returns as many rows, and none that takes other host memory.
  uint64_t record_key = 0;
  int rows() const { return static_cast<int>(token_ids.size()); }
};

// How a backend runs a step.
struct StepLaunch {
  // Rows and sampled rows that the ops are called with. More than the batch has where it was
  // rounded up to a size that is recorded: what ops make of the rows past its last is never used,
  // none of them goes to an expert, and none reaches the cache.
  int rows = 0;
  int samples = 0;
  // The calls of an earlier step were recorded and stand for this one's: make none before Submit.
  bool replayed = false;
};

// One layer's keys and values, paged. [blocks, kv_heads, block_tokens, D] each, activation_dtype().
struct KvLayer {
  Tensor keys;
  Tensor values;
  model::LayerType type = model::LayerType::kFull;
};

// What the router chose, device memory.
struct Routing {
  Tensor expert_ids;  // i32 [T, k] global ids, by falling logit, ties by rising id
  Tensor weights;     // f32 [T, k] softmax over the chosen logits
};

// Copies of tokens for this rank's experts, grouped by source rank, device memory. Copy i of source
// s lies in slot first_slot[s] + i; only i < count(s) is valid, the rest is padding and is never
// computed. With world = 1 or replicated activations there is one source, the step's own rows.
struct ExpertTokens {
  int num_sources = 1;
  int max_copies = 0;  // bound on the sum of counts
  // Device memory: one int32 for each source, counts_stride bytes apart (in slot headers that is
  // the length of a block). Read through count().
  const int32_t* counts = nullptr;
  int64_t counts_stride = sizeof(int32_t);
  const int32_t* first_slot = nullptr;    // [num_sources] host memory
  const int32_t* first_output = nullptr;  // [num_sources] host memory: row of the partial for i = 0
  // What slot j holds, each at its pointer + j * its stride in bytes: three fields of a received
  // slot (SlotLayout), or three arrays of the step itself.
  const std::byte* hidden = nullptr;  // activation [H]
  int64_t hidden_stride = 0;
  const std::byte* expert_ids = nullptr;  // i32 [k] global ids, -1: computed by another rank
  int64_t expert_ids_stride = 0;
  const std::byte* weights = nullptr;  // f32 [k]
  int64_t weights_stride = 0;
  // [experts] device memory: local index of a global id on this rank, -1: not computed here.
  const int32_t* local_index = nullptr;
  // [local experts] device memory: ExpertDown adds the pairs that it computed for each expert.
  // Null: not counted.
  uint64_t* load = nullptr;

  // Where device memory can be read.
  int32_t count(int source) const {
    return *reinterpret_cast<const int32_t*>(reinterpret_cast<const std::byte*>(counts) +
                                             source * counts_stride);
  }
};

// Layout of the buffer that a rank sends: for each destination rank one header slot, whose first
// int32 is the number of copies that follow, then the copies. A slot is
//   | hidden, activation [H] | expert ids, i32 [k] | weights, f32 [k] | padding to 16 bytes |
struct SlotLayout {
  int64_t hidden_offset = 0;
  int64_t expert_ids_offset = 0;
  int64_t weights_offset = 0;
  int64_t slot_bytes = 0;  // multiple of 16
};
SlotLayout MakeSlotLayout(DType activation, int hidden_size, int experts_per_token);

struct DispatchTables {
  int world = 1;
  // [experts] device memory: the rank that computes this source's copies for an expert.
  const int32_t* rank_of_expert = nullptr;
  // [world] device memory: PackDispatch adds the copies for each destination. Null: not counted.
  uint64_t* copies = nullptr;
};

inline constexpr int kMaxLogprobs = 20;

inline constexpr int kMaxReads = 4;
inline constexpr int kMaxStepsAhead = 2;

// Outputs of Sample, device memory.
struct SampleOutput {
  Tensor tokens;        // i32 [n, 1]
  Tensor logprobs;      // f32 [n, 1]
  Tensor top_tokens;    // i32 [n, kMaxLogprobs]
  Tensor top_logprobs;  // f32 [n, kMaxLogprobs]
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual const KernelInfo& info() const = 0;
  virtual DType activation_dtype() const = 0;  // f32 on CPU, bf16 on CUDA
  virtual DType partial_dtype() const = 0;     // f64 on CPU, f32 on CUDA
  // Calls of ExpertGateUp and of ExpertDown so far that multiplied MXFP4 weights, those of recorded
  // steps included: the kernels in use, not those present. 0 where experts are held in bf16.
  virtual uint64_t mxfp4_launches() const = 0;

  // --- Memory and weights; at start-up only. ---

  // Zeroed. RESOURCE_EXHAUSTED with the bytes wanted and free.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  virtual absl::StatusOr<DenseWeight> LoadDense(const HostMatrix& matrix) = 0;
  virtual absl::StatusOr<VectorWeight> LoadVector(std::span<const uint16_t> values) = 0;
  // Of one layer; `kept` saves loading those that another set on this device holds.
  virtual absl::StatusOr<std::unique_ptr<ExpertWeights>> LoadExperts(
      std::span<const HostExpert> experts, const KeptExperts& kept) = 0;
  absl::StatusOr<std::unique_ptr<ExpertWeights>> LoadExperts(std::span<const HostExpert> experts) {
    return LoadExperts(experts, {});
  }
  virtual void Write(const Tensor& destination, const void* host) = 0;

  // --- One step. ---

  // Before BeginStep: what draws for `slot` use from the next step on, in place of all earlier
  // calls for it. Tokens of counted rows are counted by StoreSampled. Memory for it may be taken at
  // a slot's first call; RESOURCE_EXHAUSTED at Finish when there is none.
  virtual void SetSlotSampling(int slot, const SlotSampling& sampling) = 0;

  virtual StepLaunch BeginStep(const StepBatch& batch) = 0;

  // Forgets recorded steps: before tensors, weights or a communicator that they used go away.
  virtual void ForgetRecorded() = 0;

  // Enqueues what was recorded. Reads, and ops whose number depends on the batch (heads), follow
  // it.
  virtual void Submit() = 0;

  // x [T, H] = embedding rows; `shard` holds ids [first_id, first_id + shard.rows). Rows of other
  // ids become 0, so that a sum over the tp ranks is exact.
  virtual void Embed(const DenseWeight& shard, int first_id, Tensor x) = 0;

  // qkv [T, (heads + 2 kv_heads) * D] = projections of RMSNorm(x), biases added.
  virtual void NormQkv(const AttentionWeights& weights, Tensor x, Tensor qkv) = 0;

  // Rotates q and k in place, writes k and v of every row to the cache.
  virtual void RopeAndCacheWrite(const KvLayer& layer, Tensor qkv) = 0;

  // out [T, heads * D]: sink softmax over the cached keys that each row may see.
  virtual void Attention(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv,
                         Tensor out) = 0;

  // RopeAndCacheWrite and Attention in one, where nothing stands between them. Leaves qkv rotated
  // or not.
  virtual void RotateAndAttend(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv,
                               Tensor out) {
    RopeAndCacheWrite(layer, qkv);
    Attention(layer, sinks, qkv, out);
  }

  // partial [T, H], this rank's share of the output projection, in partial_dtype(). CPU: float32
  // within one KV head's columns, float64 across, so that any split over tp gives the same sum.
  virtual void OutputProjection(const AttentionWeights& weights, Tensor attention,
                                Tensor partial) = 0;

  // x += partial (rounded once); normed = RMSNorm(x); routing of normed. `forced` i32 [rows, k] in
  // host memory replaces the choice where it is not negative; null: none. x, partial and normed are
  // the step's rows from `first_row` on, or some of them.
  virtual void ResidualNormRoute(const RouterWeights& weights, int first_row, Tensor partial,
                                 Tensor x, const int32_t* forced, Tensor normed,
                                 const Routing& routing) = 0;

  // activations [r * k + j, I]: clamped SwiGLU of choice j of the copy with output row
  // r = first_output[s] + i. Choices computed elsewhere are left alone.
  virtual void ExpertGateUp(const ExpertWeights& experts, const ExpertTokens& tokens,
                            Tensor activations) = 0;

  // partial [rows, H]: sum over this rank's experts, in ascending expert id, of weight * y_e, for
  // every valid copy (row first_output[s] + i).
  virtual void ExpertDown(const ExpertWeights& experts, const ExpertTokens& tokens,
                          Tensor activations, Tensor partial) = 0;

  // x += partial, rounded once.
  virtual void AddResidual(Tensor partial, Tensor x) = 0;

  // ExpertDown and AddResidual in one, where no collective stands between them. Leaves `partial`
  // written or not.
  virtual void ExpertDownResidual(const ExpertWeights& experts, const ExpertTokens& tokens,
                                  Tensor activations, Tensor partial, Tensor x) {
    ExpertDown(experts, tokens, activations, partial);
    AddResidual(partial, x);
  }

  // Fills, for each destination d, slot block d of `send` (block_slots slots apart: one header,
  // then the copies in ascending row) with one copy of every row that has an expert there, ids of
  // other destinations set to -1. send_index i32 [rows, world] (device) gets the copy's index in
  // block d, or -1; counts i32 [world] (device) gets the number of copies.
  virtual void PackDispatch(const DispatchTables& tables, const SlotLayout& layout, Tensor normed,
                            const Routing& routing, int64_t block_slots, Tensor send,
                            Tensor send_index, Tensor counts) = 0;

  // x[t] += sum over ranks d, ascending, of partials[first_row[d] + send_index[t, d]]; rounded
  // once. `first_row` [world] host memory.
  virtual void CombineResidual(Tensor partials, const int32_t* first_row, Tensor send_index,
                               Tensor x) = 0;

  // logits f32 [n, shard.rows] of RMSNorm(x[rows[i]]); `rows` host memory.
  virtual void Logits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                      std::span<const int32_t> rows, Tensor logits) = 0;

  // As Logits, of the batch's sampled rows [first, first + n).
  virtual void SampledLogits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                             int first, Tensor logits) = 0;

  // As Logits, for a classification head, bias added: f32 [n, labels].
  virtual void HeadLogits(const VectorWeight& final_norm, const DenseWeight& head,
                          const VectorWeight& bias, Tensor x, std::span<const int32_t> rows,
                          Tensor logits) = 0;

  // out f32 [n, V] = `blocks` side by side, each f32 [n, its cols]: logits of a vocabulary that was
  // split over the tp ranks.
  virtual void JoinColumns(std::span<const Tensor> blocks, Tensor out) = 0;

  // Draws one token for every row of `logits` f32 [n, V], those of the batch's sampled rows
  // [first, first + n). Log-probabilities are those of `logits`, before anything changes them.
  virtual void Sample(Tensor logits, int first, const SampleOutput& output) = 0;

  // Makes tokens i32 [samples, 1] the last sampled tokens of their slots, for later steps.
  virtual void StoreSampled(Tensor tokens) = 0;

  // The log-probability of targets[i], and the `top` most likely tokens, of each row of `logits`
  // f32 [n, V]; `targets` host memory. output.tokens is left alone. After Submit.
  virtual void TargetLogprobs(Tensor logits, std::span<const int32_t> targets, int top,
                              const SampleOutput& output) = 0;

  // Waits for what was enqueued before, then copies to host memory.
  virtual void Read(const Tensor& source, void* host) = 0;

  // Waits for the step and returns its first failure.
  virtual absl::Status Finish() = 0;

  // --- Steps in advance: where this is true, a step may begin before the one before has ended. ---

  virtual bool runs_ahead() const { return false; }

  // After Submit, in place of Read and Finish: enqueues the copies of `sources`, at most
  // kMaxReads small tensors. Up to kMaxStepsAhead such steps may be unfinished.
  virtual void StartReads(std::span<const Tensor> /*sources*/) {}
  // Of the oldest unfinished step: whether it has ended.
  virtual bool ReadsDone() { return true; }
  // Waits for the oldest unfinished step; copies what StartReads named to `hosts`, one for each
  // source, and returns the first failure.
  virtual absl::Status FinishReads(std::span<void* const> /*hosts*/) { return Finish(); }
};

struct CpuOptions {
  int threads = 1;
  int max_sequences = 1;
  int block_tokens = 16;
};
// `config` sizes the rotary table and the attention. `kv_heads` of this tp rank.
std::unique_ptr<Ops> MakeCpuOps(const model::Config& config, int kv_heads,
                                const CpuOptions& options);

// The CPU backend's description without making one.
KernelInfo DescribeCpu();

struct CudaOptions {
  int device = 0;  // CUDA ordinal
  int max_sequences = 1;
  int block_tokens = 16;
  int max_step_tokens = 2048;  // rows of any step: sizes scratch memory
  int max_expert_copies = 0;   // bound on ExpertTokens::max_copies; 0: max_step_tokens
  // Entries of all block tables of one step together; 0: room for max_sequences full contexts.
  int64_t max_step_blocks = 0;
  int load_threads = 4;  // copy weights out of the file map
  // Decode steps run as CUDA graphs, recorded when a batch size comes the second time. The same
  // kernels run either way.
  bool record_steps = true;
};
// FAILED_PRECONDITION whose message begins with the probe's reason ("arch_unsupported: ...") when
// the kernels cannot run on that device; nothing is allocated there then.
absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(const model::Config& config, int kv_heads,
                                                 const CudaOptions& options);

// Whether the CUDA kernels run on a device, and why not.
struct CudaProbe {
  // Empty: they run. "no_gpu": no driver or no such device. "arch_unsupported": another compute
  // capability than 9.0.
  std::string reason;
  std::string message;             // a sentence for people, empty when they run
  std::string compute_capability;  // "9.0"; empty without a device
  int64_t memory_bytes = 0;
};
CudaProbe ProbeCuda(int device);

// The CUDA backend's description without making one; device_name is empty without a device.
KernelInfo DescribeCuda(int device);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_OPS_H_
