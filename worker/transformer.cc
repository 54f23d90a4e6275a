#include "worker/transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "model/bfloat16.h"
#include "worker/computing_rank.h"
#include "worker/kv_cache.h"
#include "worker/metered_communicator.h"
#include "worker/transformer_buffers.h"

namespace conclave::worker {
namespace {

using kernels::Tensor;
using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// How this rank's rows reach their experts.
enum class ExpertPath { kLocal, kReplicated, kExchange };

// What a trace adds to a step.
struct Observed {
  Transformer::Trace trace;
  std::span<const std::vector<float>> layer_inputs;
};

// What makes steps alike for a recording: record key, rows, samples.
using StepKey = std::tuple<uint64_t, int, int>;

// What a step works on.
struct Pass {
  ExpertPath path = ExpertPath::kLocal;
  ExpertExchange* exchange = nullptr;  // kExchange
  int rows = 0;                        // of the group
  // This rank routes and dispatches rows [share_begin, share_begin + share).
  bool partitioned = false;
  std::vector<int64_t> row_begin;  // [tp + 1] if partitioned
  int share_begin = 0;
  int share = 0;
};

class RankTransformer final : public Transformer {
 public:
  RankTransformer(const model::Config& config, const RankWeights& weights,
                  const model::Placement& placement, const TransformerOptions& options,
                  kernels::Ops& ops, Communicator* world, Communicator* tp_group)
      : config_(config),
        weights_(weights),
        placement_(placement),
        options_(options),
        ops_(ops),
        world_(world) {
    if (tp_group != nullptr) group_ = std::make_unique<MeteredCommunicator>(*tp_group);
  }

  absl::Status Allocate();

  absl::StatusOr<StepOutput> Step(const ResolvedStep& step, internal::v1::ExchangeMode mode,
                                  int bucket) override;
  bool RunsAhead(const ResolvedStep& step) const override;
  absl::Status Start(ResolvedStep step, internal::v1::ExchangeMode mode, int bucket) override;
  bool Finished() override { return ops_.ReadsDone(); }
  absl::StatusOr<StepOutput> Finish() override;
  absl::StatusOr<Trace> TraceStep(const ResolvedStep& step,
                                  std::span<const std::vector<float>> layer_inputs) override;
  absl::Status Regroup(Communicator* world, Communicator* tp_group) override;
  const ExchangeStats& exchange_stats() const override { return stats_; }
  std::vector<uint64_t> ExpertLoad() override { return ReadTotals(load_); }
  std::vector<uint64_t> CopiesToRanks() override;
  int64_t kv_bytes() const override { return cache_->bytes(); }
  int64_t activation_bytes() const override {
    return TotalBytes(buffers_.memory) + TotalBytes(memory_) + TotalBytes(load_memory_) +
           output_->bytes() + exchanges_.bytes;
  }

 private:
  absl::Status MakeExchanges();
  void WriteLocalIndices();
  absl::Status MakeLoadTotals();
  absl::Status CheckRows(const ResolvedStep& step) const;
  absl::StatusOr<Pass> PlanPass(int rows, internal::v1::ExchangeMode mode, int bucket) const;

  // What Enqueue made of a step.
  struct Enqueued {
    StepKey key;
    kernels::StepLaunch launch;
  };
  absl::StatusOr<Enqueued> Enqueue(const ResolvedStep& step, internal::v1::ExchangeMode mode,
                                   int bucket);
  absl::Status Forward(const ResolvedStep& step, const Pass& pass, Observed* observed);
  absl::Status Embedding(const Pass& pass);
  absl::StatusOr<Tensor> Attention(int layer, const Pass& pass);
  absl::Status Experts(int layer, const Pass& pass, const int32_t* forced, Tensor o_partial,
                       Observed* observed);
  absl::Status OwnExperts(int layer, const Pass& pass, Tensor normed, Tensor x);
  absl::Status ExchangedExperts(int layer, const Pass& pass, Tensor normed,
                                const kernels::Routing& routing, Tensor x);
  void ComputeExperts(int layer, kernels::ExpertTokens tokens);

  void TellSlots(const ResolvedStep& step);
  void NoteStepBytes(const StepKey& key);
  void UpdateStats(const StepKey& key, bool replayed);
  ExchangeStats CallStats() const;
  std::vector<uint64_t> ReadTotals(Tensor totals);
  void Observe(Tensor hidden, Observed* observed);
  void ObserveRouting(Tensor normed, const kernels::Routing& routing, Observed* observed);
  void ObserveFinalNorm(Tensor x, Observed* observed);
  std::vector<float> ReadActivations(Tensor activations);
  void WriteActivations(std::span<const float> values, Tensor activations);

  struct Started {
    ResolvedStep step;
    SteadyClock::time_point start;
  };

  const model::Config& config_;
  const RankWeights& weights_;
  const model::Placement& placement_;
  const TransformerOptions options_;
  kernels::Ops& ops_;
  Communicator* world_;

  std::unique_ptr<MeteredCommunicator> group_;  // the tp group, null for tp = 1
  TransformerBuffers buffers_;
  std::optional<KvCache> cache_;
  std::optional<TransformerOutput> output_;
  ExpertExchanges exchanges_;  // null for world = 1
  // i32 [layers, experts] where rows are replicated; experts that another rank computes: -1.
  Tensor local_index_;
  std::vector<kernels::Buffer> memory_;

  Tensor load_;  // u8 [layers x local experts, 8]: u64 totals, device memory
  std::vector<kernels::Buffer> load_memory_;
  std::vector<int64_t> load_offset_;  // [layers] first row of load_

  std::deque<Started> started_;
  SteadyClock::time_point last_finish_;

  ExchangeStats stats_;
  // Bytes to each rank, [world]: of all calls until the end of the last step; of the calls of a
  // step that is recorded in place of others; of all steps that were replayed, for which nobody
  // calls.
  std::vector<int64_t> called_bytes_;
  std::map<StepKey, std::vector<int64_t>> step_bytes_;
  std::vector<int64_t> replayed_bytes_;
};

// What decides the calls of a step beside its rows; 0: they may not be recorded. The exact exchange
// brings counts to the host, forced routing and heads take host memory.
uint64_t RecordKey(const ResolvedStep& step, internal::v1::ExchangeMode mode, int bucket,
                   int logprobs) {
  if (mode == internal::v1::EXCHANGE_MODE_EXACT || !step.forced.empty()) return 0;
  constexpr uint64_t kRecorded = uint64_t{1} << 63;
  // Of the log-probabilities, only which of three lists are gathered matters.
  const auto lists = static_cast<uint64_t>(std::clamp(logprobs, -1, 1) + 1);
  return kRecorded | static_cast<uint64_t>(mode) << 40 | lists << 32 |
         static_cast<uint32_t>(bucket);
}

int MaxShare(const TransformerOptions& options) {
  return (options.max_step_tokens + options.shape.tp - 1) / options.shape.tp;
}

absl::Status RankTransformer::Allocate() {
  RETURN_IF_ERROR(MakeExchanges());
  ASSIGN_OR_RETURN(local_index_, AllocateTensor(ops_, kernels::DType::kI32, config_.num_layers,
                                                config_.num_experts, memory_));
  WriteLocalIndices();
  RETURN_IF_ERROR(MakeLoadTotals());
  const model::Range kv_heads =
      model::KvHeadRange(config_, options_.shape.tp, options_.shape.tp_rank(options_.rank));
  TransformerSizes sizes;
  sizes.max_rows = options_.max_step_tokens;
  sizes.max_share = MaxShare(options_);
  sizes.expert_rows = options_.max_step_tokens;
  if (exchanges_.exact != nullptr) {
    sizes.expert_rows = std::max({sizes.expert_rows, exchanges_.exact->max_output_rows(),
                                  exchanges_.fixed->max_output_rows()});
  }
  sizes.kv_heads = kv_heads.size();
  sizes.heads = kv_heads.size() * (config_.num_heads / config_.num_kv_heads);
  ASSIGN_OR_RETURN(buffers_, TransformerBuffers::Create(config_, sizes, ops_));
  const KvCacheShape cache_shape = {kv_heads.size(), options_.block_tokens, options_.full_blocks,
                                    options_.sliding_blocks};
  ASSIGN_OR_RETURN(cache_, KvCache::Create(config_, cache_shape, ops_));
  ASSIGN_OR_RETURN(output_, TransformerOutput::Create(config_, weights_, options_.max_sequences,
                                                      ops_, group_.get()));
  return absl::OkStatus();
}

absl::Status RankTransformer::Regroup(Communicator* world, Communicator* tp_group) {
  CONCLAVE_CHECK((world == nullptr) == (world_ == nullptr));
  CONCLAVE_CHECK((tp_group == nullptr) == (group_ == nullptr));
  world_ = world;
  if (group_ != nullptr) group_->Rebind(*tp_group);
  exchanges_ = {};  // not both at once
  RETURN_IF_ERROR(MakeExchanges());
  WriteLocalIndices();
  RETURN_IF_ERROR(MakeLoadTotals());
  started_.clear();
  stats_ = {};
  return absl::OkStatus();
}

absl::Status RankTransformer::MakeExchanges() {
  const int world = world_ == nullptr ? 0 : options_.shape.world();
  step_bytes_.clear();
  called_bytes_.assign(world, 0);
  replayed_bytes_.assign(world, 0);
  if (world_ == nullptr) return absl::OkStatus();
  const ExchangeOptions options = {.max_rows = MaxShare(options_)};
  ASSIGN_OR_RETURN(exchanges_, MakeExpertExchanges(config_, placement_, *world_, ops_, options));
  return absl::OkStatus();
}

void RankTransformer::WriteLocalIndices() {
  std::vector<int32_t> index(int64_t{config_.num_layers} * config_.num_experts, -1);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    const std::vector<int>& local = weights_.layers[layer].local_experts;
    for (size_t i = 0; i < local.size(); ++i) {
      const int expert = local[i];
      const std::vector<int>& holders = placement_.layers[layer].ranks_of_expert[expert];
      if (ReplicaFor(holders, expert) != options_.rank) continue;
      index[int64_t{layer} * config_.num_experts + expert] = static_cast<int32_t>(i);
    }
  }
  ops_.Write(local_index_, index.data());
}

absl::Status RankTransformer::MakeLoadTotals() {
  load_offset_.clear();
  load_memory_.clear();
  int64_t experts = 0;
  for (const LayerWeights& layer : weights_.layers) {
    load_offset_.push_back(experts);
    experts += static_cast<int64_t>(layer.local_experts.size());
  }
  ASSIGN_OR_RETURN(
      load_, AllocateTensor(ops_, kernels::DType::kU8, experts, sizeof(uint64_t), load_memory_));
  return absl::OkStatus();
}

absl::Status RankTransformer::CheckRows(const ResolvedStep& step) const {
  const int rows = step.batch().rows();
  if (rows <= options_.max_step_tokens) return absl::OkStatus();
  return absl::InternalError(
      fmt::format("the step has {} rows, at most {} were agreed", rows, options_.max_step_tokens));
}

absl::StatusOr<Pass> RankTransformer::PlanPass(int rows, internal::v1::ExchangeMode mode,
                                               int bucket) const {
  Pass pass;
  pass.rows = rows;
  pass.share = rows;
  if (options_.shape.world() == 1) return pass;
  if (mode == internal::v1::EXCHANGE_MODE_REPLICATED) {
    if (options_.shape.dp != 1) {
      return absl::InternalError(
          fmt::format("replicated exchange in a world of dp = {}", options_.shape.dp));
    }
    pass.path = ExpertPath::kReplicated;
    return pass;
  }
  pass.path = ExpertPath::kExchange;
  if (options_.shape.tp > 1) {
    const int tp_rank = options_.shape.tp_rank(options_.rank);
    pass.partitioned = true;
    pass.row_begin = SplitRows(pass.rows, options_.shape.tp);
    pass.share_begin = static_cast<int>(pass.row_begin[tp_rank]);
    pass.share = static_cast<int>(pass.row_begin[tp_rank + 1]) - pass.share_begin;
  }
  if (mode == internal::v1::EXCHANGE_MODE_EXACT) {
    pass.exchange = exchanges_.exact.get();
    return pass;
  }
  if (mode != internal::v1::EXCHANGE_MODE_FIXED) {
    return absl::InternalError(fmt::format("unknown exchange mode {}", static_cast<int>(mode)));
  }
  if (bucket < pass.share) {
    return absl::InternalError(fmt::format("a bucket of {} slots for {} rows", bucket, pass.share));
  }
  pass.exchange = exchanges_.fixed.get();
  pass.exchange->SetBucket(std::min(bucket, MaxShare(options_)));
  return pass;
}

absl::Status RankTransformer::Forward(const ResolvedStep& step, const Pass& pass,
                                      Observed* observed) {
  const Tensor x = buffers_.x.Rows(0, pass.rows);
  RETURN_IF_ERROR(Embedding(pass));
  Observe(x, observed);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    if (observed != nullptr && !observed->layer_inputs.empty()) {
      WriteActivations(observed->layer_inputs[layer], x);
    }
    if (options_.aborted && options_.aborted()) {
      return absl::UnavailableError("the epoch has ended");
    }
    const int32_t* forced = step.forced.empty() ? nullptr : step.forced[layer].data();
    ASSIGN_OR_RETURN(const Tensor o_partial, Attention(layer, pass));
    RETURN_IF_ERROR(Experts(layer, pass, forced, o_partial, observed));
    Observe(x, observed);
  }
  return absl::OkStatus();
}

// x = embedding[ids]. Each id's row is on one tp rank, the others add zeros.
absl::Status RankTransformer::Embedding(const Pass& pass) {
  const Tensor x = buffers_.x.Rows(0, pass.rows);
  ops_.Embed(weights_.embedding, weights_.vocab_begin, x);
  if (group_ == nullptr || pass.rows == 0) return absl::OkStatus();
  return group_->AllReduceSum(x);
}

// t = RMSNorm(x); q, k, v = t W + b; rotate; sink softmax over the keys in sight; W_o. Returns the
// output projection of this rank's share of the rows, summed over the heads of all tp ranks.
absl::StatusOr<Tensor> RankTransformer::Attention(int layer, const Pass& pass) {
  const kernels::AttentionWeights& weights = weights_.layers[layer].attention;
  const kernels::KvLayer& cache = cache_->layer(layer);
  const Tensor x = buffers_.x.Rows(0, pass.rows);
  const Tensor qkv = buffers_.qkv.Rows(0, pass.rows);
  const Tensor attention = buffers_.attention.Rows(0, pass.rows);
  const Tensor partial = buffers_.o_partial.Rows(0, pass.rows);
  ops_.NormQkv(weights, x, qkv);
  ops_.RotateAndAttend(cache, weights.sinks, qkv, attention);
  ops_.OutputProjection(weights, attention, partial);
  if (group_ == nullptr || pass.rows == 0) return partial;
  if (!pass.partitioned) {
    RETURN_IF_ERROR(group_->AllReduceSum(partial));
    return partial;
  }
  const Tensor share = buffers_.o_share.Rows(0, pass.share);
  RETURN_IF_ERROR(group_->ReduceScatterSum(partial, pass.row_begin, share));
  return share;
}

// x += o_proj; t = RMSNorm(x); top-k of the router's logits; x += sum over them of w_e * y_e.
absl::Status RankTransformer::Experts(int layer, const Pass& pass, const int32_t* forced,
                                      Tensor o_partial, Observed* observed) {
  const Tensor x = buffers_.x.Rows(pass.share_begin, pass.share);
  const Tensor normed = buffers_.normed.Rows(0, pass.share);
  const kernels::Routing routing = {buffers_.routing.expert_ids.Rows(0, pass.share),
                                    buffers_.routing.weights.Rows(0, pass.share)};
  if (forced != nullptr) forced += int64_t{pass.share_begin} * config_.experts_per_token;
  ops_.ResidualNormRoute(weights_.layers[layer].router, pass.share_begin, o_partial, x, forced,
                         normed, routing);
  ObserveRouting(normed, routing, observed);
  if (pass.path != ExpertPath::kExchange) return OwnExperts(layer, pass, normed, x);
  RETURN_IF_ERROR(ExchangedExperts(layer, pass, normed, routing, x));
  if (!pass.partitioned || pass.rows == 0) return absl::OkStatus();
  const Tensor all = buffers_.x.Rows(0, pass.rows);
  return group_->AllGatherRows(all, pass.row_begin);
}

// The experts of this rank on its own rows; the other experts of replicated rows are added by an
// all-reduce.
absl::Status RankTransformer::OwnExperts(int layer, const Pass& pass, Tensor normed, Tensor x) {
  static constexpr int32_t kZero = 0;
  const int64_t k = config_.experts_per_token;
  kernels::ExpertTokens tokens;
  tokens.max_copies = pass.rows;
  tokens.counts = buffers_.row_counts.as<int32_t>() + pass.rows;
  tokens.first_slot = &kZero;
  tokens.first_output = &kZero;
  tokens.hidden = normed.as<std::byte>();
  tokens.hidden_stride = normed.cols * kernels::SizeOf(normed.dtype);
  tokens.expert_ids = buffers_.routing.expert_ids.as<std::byte>();
  tokens.expert_ids_stride = k * kernels::SizeOf(kernels::DType::kI32);
  tokens.weights = buffers_.routing.weights.as<std::byte>();
  tokens.weights_stride = k * kernels::SizeOf(kernels::DType::kF32);
  tokens.local_index = local_index_.Rows(layer, 1).as<int32_t>();
  const Tensor sum = buffers_.expert_sum.Rows(0, pass.rows);
  if (pass.path == ExpertPath::kLocal) {
    tokens.load = load_.as<uint64_t>() + load_offset_[layer];
    const kernels::ExpertWeights& experts = *weights_.layers[layer].experts;
    ops_.ExpertGateUp(experts, tokens, buffers_.expert_hidden);
    ops_.ExpertDownResidual(experts, tokens, buffers_.expert_hidden, sum, x);
    return absl::OkStatus();
  }
  ComputeExperts(layer, tokens);
  if (pass.rows > 0) RETURN_IF_ERROR(group_->AllReduceSum(sum));
  ops_.AddResidual(sum, x);
  return absl::OkStatus();
}

absl::Status RankTransformer::ExchangedExperts(int layer, const Pass& pass, Tensor normed,
                                               const kernels::Routing& routing, Tensor x) {
  ASSIGN_OR_RETURN(const kernels::ExpertTokens tokens,
                   pass.exchange->Dispatch(layer, normed, routing));
  ComputeExperts(layer, tokens);
  return pass.exchange->Combine(buffers_.expert_sum, x);
}

void RankTransformer::ComputeExperts(int layer, kernels::ExpertTokens tokens) {
  tokens.load = load_.as<uint64_t>() + load_offset_[layer];
  const kernels::ExpertWeights& experts = *weights_.layers[layer].experts;
  ops_.ExpertGateUp(experts, tokens, buffers_.expert_hidden);
  ops_.ExpertDown(experts, tokens, buffers_.expert_hidden, buffers_.expert_sum);
}

absl::StatusOr<RankTransformer::Enqueued> RankTransformer::Enqueue(const ResolvedStep& step,
                                                                   internal::v1::ExchangeMode mode,
                                                                   int bucket) {
  RETURN_IF_ERROR(CheckRows(step));
  kernels::StepBatch batch = step.batch();
  const int logprobs = MaxLogprobs(batch.sample_params);
  if (world_ != nullptr || batch.rows() > 0) {
    batch.record_key = RecordKey(step, mode, bucket, logprobs);
  }
  TellSlots(step);
  const kernels::StepLaunch launch = ops_.BeginStep(batch);
  const StepKey key = {batch.record_key, launch.rows, launch.samples};
  const Tensor x = buffers_.x.Rows(0, launch.rows);
  const auto enqueue = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Pass pass, PlanPass(launch.rows, mode, bucket));
    RETURN_IF_ERROR(Forward(step, pass, nullptr));
    return output_->Sample(launch.samples, logprobs, x);
  };
  if (!launch.replayed) {
    if (absl::Status status = enqueue(); !status.ok()) {
      ops_.Finish().IgnoreError();  // leaves nothing half recorded
      return status;
    }
    NoteStepBytes(key);
  }
  ops_.Submit();
  return Enqueued{key, launch};
}

bool RankTransformer::RunsAhead(const ResolvedStep& step) const {
  return ops_.runs_ahead() && world_ == nullptr && step.forced.empty() && step.head_reads.empty() &&
         step.target_reads.empty();
}

absl::Status RankTransformer::Start(ResolvedStep step, internal::v1::ExchangeMode mode,
                                    int bucket) {
  CONCLAVE_CHECK(RunsAhead(step) && started_.size() < kernels::kMaxStepsAhead);
  const SteadyClock::time_point start = SteadyClock::now();
  const absl::StatusOr<Enqueued> enqueued = Enqueue(step, mode, bucket);
  if (!enqueued.ok()) {
    started_.clear();
    return enqueued.status();
  }
  output_->StartSampled(step);
  started_.push_back({std::move(step), start});
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> RankTransformer::Finish() {
  CONCLAVE_CHECK(!started_.empty());
  const Started oldest = std::move(started_.front());
  started_.pop_front();
  absl::StatusOr<std::vector<SampledToken>> sampled = output_->FinishSampled(oldest.step);
  if (!sampled.ok()) {
    started_.clear();
    return sampled.status();
  }
  StepOutput out;
  out.sampled = *std::move(sampled);
  // The device began with it when the step before had ended.
  out.step_ns = static_cast<int64_t>(SecondsSince(std::max(oldest.start, last_finish_)) * 1e9);
  last_finish_ = SteadyClock::now();
  return out;
}

absl::StatusOr<StepOutput> RankTransformer::Step(const ResolvedStep& step,
                                                 internal::v1::ExchangeMode mode, int bucket) {
  const SteadyClock::time_point start = SteadyClock::now();
  ASSIGN_OR_RETURN(const Enqueued enqueued, Enqueue(step, mode, bucket));
  const Tensor x = buffers_.x.Rows(0, enqueued.launch.rows);
  StepOutput out;
  const bool report = options_.shape.tp_rank(options_.rank) == 0;
  if (report) {
    out.sampled = output_->ReadSampled(step);
    out.heads = output_->ReadHeads(step, x);
  }
  absl::StatusOr<std::vector<TargetOutput>> targets = output_->ReadTargets(step, x, report);
  if (!targets.ok()) {
    ops_.Finish().IgnoreError();
    return targets.status();
  }
  out.targets = *std::move(targets);
  RETURN_IF_ERROR(ops_.Finish());
  if (world_ != nullptr) RETURN_IF_ERROR(world_->Check());
  if (group_ != nullptr) RETURN_IF_ERROR(group_->Check());
  const double seconds_before = stats_.seconds;
  const double waited_before = stats_.wait_seconds;
  UpdateStats(enqueued.key, enqueued.launch.replayed);
  out.step_ns = static_cast<int64_t>(SecondsSince(start) * 1e9);
  out.exchange_ns = static_cast<int64_t>((stats_.seconds - seconds_before) * 1e9);
  out.wait_ns = static_cast<int64_t>((stats_.wait_seconds - waited_before) * 1e9);
  return out;
}

void RankTransformer::TellSlots(const ResolvedStep& step) {
  for (const ResolvedStep::NewSlot& slot : step.new_slots) {
    ops_.SetSlotSampling(slot.slot, slot.sampling());
  }
}

// Between the calls that may be recorded and those that follow Submit.
void RankTransformer::NoteStepBytes(const StepKey& key) {
  if (world_ == nullptr) return;
  std::vector<int64_t>& bytes = step_bytes_[key] = CallStats().bytes_to;
  for (size_t rank = 0; rank < bytes.size(); ++rank) bytes[rank] -= called_bytes_[rank];
}

// After a step. One that was replayed moved what the calls of its like moved when they were made.
void RankTransformer::UpdateStats(const StepKey& key, bool replayed) {
  stats_ = CallStats();
  called_bytes_ = stats_.bytes_to;
  for (size_t rank = 0; rank < called_bytes_.size(); ++rank) {
    if (replayed) replayed_bytes_[rank] += step_bytes_[key][rank];
    stats_.bytes_to[rank] += replayed_bytes_[rank];
  }
}

// Of the calls made so far.
ExchangeStats RankTransformer::CallStats() const {
  ExchangeStats sum;
  if (world_ == nullptr) return sum;
  sum.bytes_to.resize(options_.shape.world());
  for (const ExpertExchange* exchange : {exchanges_.fixed.get(), exchanges_.exact.get()}) {
    const ExchangeStats part = exchange->stats();
    for (size_t rank = 0; rank < sum.bytes_to.size(); ++rank) {
      sum.bytes_to[rank] += part.bytes_to[rank];
    }
    sum.seconds += part.seconds;
    sum.wait_seconds += part.wait_seconds;
  }
  if (group_ == nullptr) return sum;
  const int first = options_.rank - options_.shape.tp_rank(options_.rank);
  for (int peer = 0; peer < group_->size(); ++peer) {
    sum.bytes_to[first + peer] += group_->bytes_sent_to()[peer];
  }
  sum.seconds += group_->seconds();
  sum.wait_seconds += group_->seconds_waited();
  return sum;
}

std::vector<uint64_t> RankTransformer::CopiesToRanks() {
  if (world_ == nullptr) return {};
  std::vector<uint64_t> copies = ReadTotals(exchanges_.copies);
  copies[options_.rank] = 0;
  return copies;
}

std::vector<uint64_t> RankTransformer::ReadTotals(Tensor totals) {
  std::vector<uint64_t> out(totals.rows);
  ops_.Read(totals, out.data());
  return out;
}

absl::StatusOr<Transformer::Trace> RankTransformer::TraceStep(
    const ResolvedStep& step, std::span<const std::vector<float>> layer_inputs) {
  if (options_.shape.world() != 1) {
    return absl::FailedPreconditionError(
        fmt::format("a trace needs a world of one rank, not {}", options_.shape.world()));
  }
  RETURN_IF_ERROR(CheckRows(step));
  TellSlots(step);
  const kernels::StepLaunch launch = ops_.BeginStep(step.batch());
  ASSIGN_OR_RETURN(const Pass pass,
                   PlanPass(launch.rows, internal::v1::EXCHANGE_MODE_UNSPECIFIED, 0));
  Observed observed = {{}, layer_inputs};
  RETURN_IF_ERROR(Forward(step, pass, &observed));
  const Tensor x = buffers_.x.Rows(0, pass.rows);
  RETURN_IF_ERROR(output_->Sample(launch.samples, MaxLogprobs(step.sample_params), x));
  ops_.Submit();
  observed.trace.logits = output_->ReadLogits(x);
  ObserveFinalNorm(x, &observed);
  RETURN_IF_ERROR(ops_.Finish());
  return std::move(observed.trace);
}

void RankTransformer::Observe(Tensor hidden, Observed* observed) {
  if (observed != nullptr) observed->trace.hidden.push_back(ReadActivations(hidden));
}

void RankTransformer::ObserveRouting(Tensor normed, const kernels::Routing& routing,
                                     Observed* observed) {
  if (observed == nullptr) return;
  Trace& trace = observed->trace;
  const int64_t choices = routing.expert_ids.rows * routing.expert_ids.cols;
  trace.normed.push_back(ReadActivations(normed));
  ops_.Read(routing.expert_ids, trace.expert_ids.emplace_back(choices).data());
  ops_.Read(routing.weights, trace.expert_weights.emplace_back(choices).data());
}

std::vector<float> RankTransformer::ReadActivations(Tensor activations) {
  std::vector<float> out(activations.rows * activations.cols);
  if (activations.dtype == kernels::DType::kF32) {
    ops_.Read(activations, out.data());
    return out;
  }
  CONCLAVE_CHECK(activations.dtype == kernels::DType::kBf16);
  std::vector<uint16_t> raw(out.size());
  ops_.Read(activations, raw.data());
  std::transform(raw.begin(), raw.end(), out.begin(), model::Bf16ToFloat);
  return out;
}

void RankTransformer::WriteActivations(std::span<const float> values, Tensor activations) {
  CONCLAVE_CHECK(static_cast<int64_t>(values.size()) == activations.rows * activations.cols);
  if (activations.dtype == kernels::DType::kF32) {
    ops_.Write(activations, values.data());
    return;
  }
  CONCLAVE_CHECK(activations.dtype == kernels::DType::kBf16);
  std::vector<uint16_t> raw(values.size());
  std::transform(values.begin(), values.end(), raw.begin(), model::FloatToBf16);
  ops_.Write(activations, raw.data());
}

// No op ends at the final norm: the router's norm with the final weights, after adding nothing,
// is it.
void RankTransformer::ObserveFinalNorm(Tensor x, Observed* observed) {
  const Tensor nothing = buffers_.o_partial.Rows(0, x.rows);
  const std::vector<std::byte> zeros(nothing.bytes());
  ops_.Write(nothing, zeros.data());
  kernels::RouterWeights weights = weights_.layers[0].router;
  weights.norm = weights_.final_norm;
  const Tensor normed = buffers_.normed.Rows(0, x.rows);
  ops_.ResidualNormRoute(
      weights, 0, nothing, x, nullptr, normed,
      {buffers_.routing.expert_ids.Rows(0, x.rows), buffers_.routing.weights.Rows(0, x.rows)});
  Observe(normed, observed);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(
    const model::Config& config, const RankWeights& weights, const model::Placement& placement,
    const TransformerOptions& options, kernels::Ops& ops, Communicator* world,
    Communicator* tp_group) {
  CONCLAVE_CHECK((world == nullptr) == (options.shape.world() == 1));
  CONCLAVE_CHECK((tp_group == nullptr) == (options.shape.tp == 1));
  auto transformer =
      std::make_unique<RankTransformer>(config, weights, placement, options, ops, world, tp_group);
  RETURN_IF_ERROR(transformer->Allocate());
  return transformer;
}

}  // namespace conclave::worker
