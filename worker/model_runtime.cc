#include "worker/model_runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "model/checkpoint.h"
#include "model/model_source.h"
#include "model/row_bucket.h"
#include "worker/rank_plan.h"
#include "worker/weights.h"
#include "worker/weights_experts.h"

namespace conclave::worker {
namespace {

// A backstop: a lost peer breaks its connections, a silent one is found by its heartbeats, and both
// end the epoch. It must exceed the longest step of any rank, for which idle ones wait.
constexpr absl::Duration kCollectiveTimeout = absl::Minutes(20);

// What stays from epoch to epoch while the assignment stays.
struct Resident {
  std::string key;  // ResidentKey of the assignment it was made for
  model::Config config;
  std::unique_ptr<kernels::Ops> ops;
  model::Placement placement;
  std::optional<RankWeights> weights;  // once they are loaded
};

// All that decides which weights a rank holds, but for the placement of the experts, and what its
// ops are made for; files that changed are other weights.
std::string ResidentKey(const internal::v1::Assignment& assignment, const std::string& dir) {
  internal::v1::Assignment relevant;
  relevant.set_rank(assignment.rank());
  relevant.set_dp(assignment.dp());
  relevant.set_tp(assignment.tp());
  relevant.set_model_dir(dir);
  *relevant.mutable_heads() = assignment.heads();
  relevant.mutable_cache()->set_max_sequences(assignment.cache().max_sequences());
  relevant.mutable_cache()->set_block_tokens(assignment.cache().block_tokens());
  relevant.set_max_step_tokens(assignment.max_step_tokens());
  relevant.set_require_mxfp4(assignment.require_mxfp4());
  if (assignment.has_random_weights()) {
    *relevant.mutable_random_weights() = assignment.random_weights();
  }
  std::string key = relevant.SerializeAsString() + model::FolderStamp(dir);
  for (const internal::v1::HeadSource& head : assignment.heads()) {
    if (!head.dir().empty()) key += model::FolderStamp(head.dir());
  }
  return key;
}

absl::StatusOr<model::ModelSource> SourceOf(const internal::v1::Assignment& assignment,
                                            const std::string& dir) {
  model::ModelSource source = {.dir = dir, .random = std::nullopt};
  if (!assignment.has_random_weights()) return source;
  const internal::v1::RandomWeights& random = assignment.random_weights();
  if (random.layers() > static_cast<uint32_t>(std::numeric_limits<int>::max())) {
    return absl::InvalidArgumentError(fmt::format("assignment: {} layers", random.layers()));
  }
  source.random =
      model::RandomWeights{.seed = random.seed(), .layers = static_cast<int>(random.layers())};
  return source;
}

internal::v1::StepResult ToProto(const StepOutput& output) {
  internal::v1::StepResult result;
  for (const SampledToken& token : output.sampled) {
    internal::v1::Sampled& sampled = *result.add_sampled();
    sampled.set_slot(token.slot);
    sampled.set_position(token.position);
    sampled.set_token(token.token);
    sampled.set_logprob(token.logprob);
    for (const auto& [id, logprob] : token.top) {
      sampled.add_top_tokens(id);
      sampled.add_top_logprobs(logprob);
    }
  }
  for (const HeadOutput& head : output.heads) {
    internal::v1::HeadLogits& logits = *result.add_head_logits();
    logits.set_slot(head.slot);
    logits.set_head(head.head);
    logits.set_first_position(head.first_position);
    logits.mutable_logits()->Add(head.logits.begin(), head.logits.end());
  }
  for (const TargetOutput& target : output.targets) {
    internal::v1::TargetLogprobs& logprobs = *result.add_target_logprobs();
    logprobs.set_slot(target.slot);
    logprobs.set_first_position(target.first_position);
    logprobs.mutable_logprobs()->Add(target.logprobs.begin(), target.logprobs.end());
    logprobs.mutable_top_tokens()->Add(target.top_tokens.begin(), target.top_tokens.end());
    logprobs.mutable_top_logprobs()->Add(target.top_logprobs.begin(), target.top_logprobs.end());
  }
  result.set_step_ns(output.step_ns);
  result.set_exchange_ns(output.exchange_ns);
  result.set_wait_ns(output.wait_ns);
  return result;
}

// What `totals` has more than `before`, which has as many or none.
template <typename Number>
std::vector<Number> Since(const std::vector<Number>& before, std::vector<Number> totals) {
  for (size_t i = 0; i < std::min(before.size(), totals.size()); ++i) totals[i] -= before[i];
  return totals;
}

int BucketOf(const internal::v1::StepPlan& plan) {
  return static_cast<int>(
      std::min<uint32_t>(plan.bucket(), static_cast<uint32_t>(std::numeric_limits<int>::max())));
}

class ModelRuntime final : public RankRuntime {
 public:
  ModelRuntime(Backend& backend, ModelRuntimeOptions options)
      : backend_(backend), options_(std::move(options)) {}

  absl::StatusOr<internal::v1::Ready> Begin(Generation generation,
                                            const internal::v1::Assignment& assignment,
                                            Rendezvous& rendezvous,
                                            const Progress& progress) override;
  absl::StatusOr<internal::v1::StepResult> Step(const internal::v1::StepPlan& plan) override;
  absl::StatusOr<bool> Start(const internal::v1::StepPlan& plan) override;
  bool Finished() override { return transformer_->Finished(); }
  absl::StatusOr<internal::v1::StepResult> Finish() override;
  internal::v1::RankStats Stats() override;
  void End(bool continues) override;
  void Abort(Generation generation) override;

 private:
  absl::Status MakeResident(std::string key, model::Config config, const RankPlan& plan);
  absl::Status Connect(const TransformerOptions& options, Rendezvous& rendezvous);
  absl::Status CheckContinues(const internal::v1::Assignment& assignment, uint64_t last_epoch,
                              const std::string& key) const;
  // The sequences and all that serves them.
  void Forget();
  // The bytes that were not resident.
  absl::StatusOr<int64_t> Load(const internal::v1::Assignment& assignment,
                               const model::ModelSource& source, RankPlan plan,
                               const Progress& progress);
  absl::Status MakeTransformer(const TransformerOptions& options, bool continues);
  absl::Status WarmUp(const internal::v1::Assignment& assignment,
                      const model::ParallelShape& shape);
  void NoteTotals();
  absl::StatusOr<ResolvedStep> Apply(const internal::v1::StepPlan& plan);
  internal::v1::StepResult Counted(const StepOutput& output);
  bool Aborted() const { return aborted_.load() >= generation_; }

  Backend& backend_;
  const ModelRuntimeOptions options_;
  std::unique_ptr<Resident> resident_;

  // Of the running epoch, or of one that has ended to be continued.
  Generation generation_ = 0;
  uint64_t epoch_ = 0;
  bool allow_forced_ = false;
  std::unique_ptr<Transformer> transformer_;
  std::optional<SequenceTable> table_;
  std::optional<ResolvedStep> applied_;  // of the plan that Start left to Step
  int64_t step_ns_ = 0;
  int64_t exchange_ns_ = 0;
  int64_t wait_ns_ = 0;
  // Totals that are not of this epoch's plans.
  uint64_t launches_before_ = 0;
  std::vector<uint64_t> load_before_;
  std::vector<uint64_t> copies_before_;
  std::vector<int64_t> bytes_before_;

  std::atomic<Generation> aborted_{0};
  absl::Mutex mutex_;  // guards the two pointers against Abort; the step thread owns them
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> tp_group_;  // null where the world is the group
};

absl::StatusOr<internal::v1::Ready> ModelRuntime::Begin(Generation generation,
                                                        const internal::v1::Assignment& assignment,
                                                        Rendezvous& rendezvous,
                                                        const Progress& progress) {
  generation_ = generation;
  const uint64_t last_epoch = std::exchange(epoch_, assignment.epoch());
  allow_forced_ = assignment.allow_forced_routing();
  step_ns_ = 0;
  exchange_ns_ = 0;
  wait_ns_ = 0;
  const std::string dir = options_.model_dir.empty() ? assignment.model_dir() : options_.model_dir;
  ASSIGN_OR_RETURN(const model::ModelSource source, SourceOf(assignment, dir));
  ASSIGN_OR_RETURN(model::Config config, model::LoadConfig(source));
  ASSIGN_OR_RETURN(RankPlan plan, ParseAssignment(assignment, config));
  TransformerOptions options = plan.options;
  options.aborted = [this] { return Aborted(); };
  std::string key = ResidentKey(assignment, dir);
  if (assignment.continues()) {
    RETURN_IF_ERROR(CheckContinues(assignment, last_epoch, key));
  } else {
    Forget();
  }
  if (resident_ == nullptr || resident_->key != key) {
    resident_ = nullptr;  // not both at once
    RETURN_IF_ERROR(MakeResident(std::move(key), std::move(config), plan));
  }
  // Before loading, which may take minutes: a rank that its peers cannot reach shows at once.
  RETURN_IF_ERROR(Connect(options, rendezvous));
  ASSIGN_OR_RETURN(const int64_t loaded, Load(assignment, source, std::move(plan), progress));
  RETURN_IF_ERROR(MakeTransformer(options, assignment.continues()));
  const absl::Time warm_from = base::SteadyNow();
  if (!assignment.continues()) RETURN_IF_ERROR(WarmUp(assignment, options.shape));

  internal::v1::Ready ready;
  if (!assignment.continues()) {
    ready.set_warm_up_seconds(absl::ToDoubleSeconds(base::SteadyNow() - warm_from));
  }
  const RankWeights& weights = *resident_->weights;
  ready.set_weight_bytes(weights.bytes);
  ready.set_loaded_bytes(loaded);
  ready.set_kv_bytes(transformer_->kv_bytes());
  ready.set_resident_format(std::string(weights.layers.front().experts->format()));
  return ready;
}

absl::Status ModelRuntime::CheckContinues(const internal::v1::Assignment& assignment,
                                          uint64_t last_epoch, const std::string& key) const {
  if (transformer_ != nullptr && resident_ != nullptr && resident_->key == key &&
      assignment.epoch() == last_epoch + 1) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(fmt::format(
      "epoch {} is to continue the one before, whose sequences are not here", assignment.epoch()));
}

absl::Status ModelRuntime::MakeTransformer(const TransformerOptions& options, bool continues) {
  launches_before_ = resident_->ops->mxfp4_launches();
  Communicator* const group = options.shape.tp == 1   ? nullptr
                              : options.shape.dp == 1 ? world_.get()
                                                      : tp_group_.get();
  load_before_.clear();
  copies_before_.clear();
  bytes_before_.clear();
  if (continues) return transformer_->Regroup(world_.get(), group);
  const RankWeights& weights = *resident_->weights;
  ASSIGN_OR_RETURN(transformer_,
                   Transformer::Create(resident_->config, weights, resident_->placement, options,
                                       *resident_->ops, world_.get(), group));
  std::vector<int> labels;
  for (const HeadWeights& head : weights.heads) {
    labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  table_.emplace(TableLimits(resident_->config, options, std::move(labels)));
  return absl::OkStatus();
}

// A short prompt and a token after it, the same on every rank and through the collectives of both:
// the first request then finds kernels loaded, memory touched and peers that answer.
absl::Status ModelRuntime::WarmUp(const internal::v1::Assignment& assignment,
                                  const model::ParallelShape& shape) {
  const bool generates = resident_->config.architecture == model::Architecture::kCausalLm;
  const auto most = static_cast<int>(assignment.max_step_tokens());
  const int prompt = std::min({2, most, resident_->config.context_length - 1});
  const internal::v1::CacheShape& cache = assignment.cache();
  if (prompt < 1 || cache.full_blocks() == 0 || cache.sliding_blocks() == 0) {
    return absl::OkStatus();
  }
  const bool replicated = shape.dp == 1 && shape.tp > 1;
  const auto per_rank = [&shape](int rows) { return (rows + shape.tp - 1) / shape.tp; };
  internal::v1::StepPlan plan;
  plan.set_exchange_mode(replicated ? internal::v1::EXCHANGE_MODE_REPLICATED
                                    : internal::v1::EXCHANGE_MODE_EXACT);
  plan.set_bucket(static_cast<uint32_t>(std::min(per_rank(most), per_rank(model::RowBucket(1)))));
  internal::v1::Sampling& sampling = *plan.add_new_sequences()->mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_logprobs(-1);
  internal::v1::Chunk& chunk = *plan.add_chunks();
  for (int i = 0; i < prompt; ++i) chunk.add_tokens(0);
  chunk.add_new_full_blocks(0);
  chunk.add_new_sliding_blocks(0);
  chunk.set_sample(generates);
  RETURN_IF_ERROR(Step(plan).status());
  if (generates) {
    plan.clear_new_sequences();
    if (!replicated) plan.set_exchange_mode(internal::v1::EXCHANGE_MODE_FIXED);
    chunk.Clear();
    chunk.set_start_position(static_cast<uint32_t>(prompt));
    chunk.set_sample(true);
    RETURN_IF_ERROR(Step(plan).status());
  }
  internal::v1::StepPlan freed;
  freed.add_freed_slots(0);
  RETURN_IF_ERROR(table_->Apply(freed).status());
  NoteTotals();
  return absl::OkStatus();
}

void ModelRuntime::NoteTotals() {
  step_ns_ = exchange_ns_ = wait_ns_ = 0;
  launches_before_ = resident_->ops->mxfp4_launches();
  load_before_ = transformer_->ExpertLoad();
  copies_before_ = transformer_->CopiesToRanks();
  bytes_before_ = transformer_->exchange_stats().bytes_to;
}

absl::Status ModelRuntime::MakeResident(std::string key, model::Config config,
                                        const RankPlan& plan) {
  const model::ParallelShape& shape = plan.options.shape;
  const int share = (plan.options.max_step_tokens + shape.tp - 1) / shape.tp;
  auto resident = std::make_unique<Resident>();
  resident->key = std::move(key);
  resident->config = std::move(config);
  const OpsLimits limits = {
      .kv_heads =
          model::KvHeadRange(resident->config, shape.tp, shape.tp_rank(plan.options.rank)).size(),
      .max_sequences = plan.options.max_sequences,
      .block_tokens = plan.options.block_tokens,
      .max_step_tokens = plan.options.max_step_tokens,
      .max_expert_copies = std::max(plan.options.max_step_tokens, share * shape.world())};
  ASSIGN_OR_RETURN(resident->ops, backend_.MakeOps(resident->config, limits));
  resident_ = std::move(resident);
  return absl::OkStatus();
}

absl::Status ModelRuntime::Connect(const TransformerOptions& options, Rendezvous& rendezvous) {
  const model::ParallelShape& shape = options.shape;
  const ConnectOptions reach = {.interface = options_.interface,
                                .advertise_address = options_.advertise_address,
                                .timeout = kCollectiveTimeout,
                                .cancelled = [this] { return Aborted(); }};
  auto connect = [&](const std::string& group, int rank, int size,
                     std::unique_ptr<Communicator>& out) -> absl::Status {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                     backend_.Connect(group, rank, size, rendezvous, reach, *resident_->ops));
    absl::MutexLock lock(&mutex_);
    out = std::move(communicator);
    // An Abort before this line has not seen it.
    return Aborted() ? absl::AbortedError("the epoch has ended") : absl::OkStatus();
  };
  if (shape.world() == 1) return absl::OkStatus();
  RETURN_IF_ERROR(connect("world", options.rank, shape.world(), world_));
  if (shape.tp == 1 || shape.dp == 1) return absl::OkStatus();
  return connect(fmt::format("tp{}", shape.dp_rank(options.rank)), shape.tp_rank(options.rank),
                 shape.tp, tp_group_);
}

absl::StatusOr<int64_t> ModelRuntime::Load(const internal::v1::Assignment& assignment,
                                           const model::ModelSource& source, RankPlan plan,
                                           const Progress& progress) {
  const model::Config& model = resident_->config;
  resident_->placement = std::move(plan.placement);
  WeightsRequest request;
  request.shape = plan.options.shape;
  request.rank = plan.options.rank;
  request.placement = &resident_->placement;
  request.heads = std::move(plan.heads);
  request.threads = options_.threads;
  const auto report = [&](int64_t loaded, int64_t total) {
    progress(loaded, total);
    return !Aborted();
  };
  if (resident_->weights.has_value()) {
    return MoveExperts(model, request, *resident_->ops, *resident_->weights, report);
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const model::Checkpoint> checkpoint,
                   model::OpenCheckpoint(source, model));
  if (assignment.require_mxfp4() && checkpoint->layout() == model::Layout::kBf16) {
    return absl::FailedPreconditionError(
        fmt::format("{} holds its experts in bf16, and MXFP4 is required", source.dir));
  }
  ASSIGN_OR_RETURN(resident_->weights,
                   LoadRankWeights(model, std::move(checkpoint), request, *resident_->ops, report));
  return resident_->weights->bytes;
}

absl::StatusOr<ResolvedStep> ModelRuntime::Apply(const internal::v1::StepPlan& plan) {
  if (Aborted()) return absl::UnavailableError("the epoch has ended");
  for (const internal::v1::NewSequence& sequence : plan.new_sequences()) {
    if (sequence.forced_expert_ids().empty() || allow_forced_) continue;
    return absl::InternalError("the plan forces expert ids, which the assignment does not allow");
  }
  return table_->Apply(plan);
}

absl::StatusOr<internal::v1::StepResult> ModelRuntime::Step(const internal::v1::StepPlan& plan) {
  if (!applied_.has_value()) {
    ASSIGN_OR_RETURN(applied_, Apply(plan));
  }
  const ResolvedStep step = *std::exchange(applied_, std::nullopt);
  ASSIGN_OR_RETURN(const StepOutput output,
                   transformer_->Step(step, plan.exchange_mode(), BucketOf(plan)));
  return Counted(output);
}

absl::StatusOr<bool> ModelRuntime::Start(const internal::v1::StepPlan& plan) {
  ASSIGN_OR_RETURN(ResolvedStep step, Apply(plan));
  if (!transformer_->RunsAhead(step)) {
    applied_ = std::move(step);
    return false;
  }
  RETURN_IF_ERROR(transformer_->Start(std::move(step), plan.exchange_mode(), BucketOf(plan)));
  return true;
}

absl::StatusOr<internal::v1::StepResult> ModelRuntime::Finish() {
  ASSIGN_OR_RETURN(const StepOutput output, transformer_->Finish());
  return Counted(output);
}

internal::v1::StepResult ModelRuntime::Counted(const StepOutput& output) {
  step_ns_ += output.step_ns;
  exchange_ns_ += output.exchange_ns;
  wait_ns_ += output.wait_ns;
  return ToProto(output);
}

internal::v1::RankStats ModelRuntime::Stats() {
  internal::v1::RankStats stats;
  if (resident_ != nullptr && resident_->weights.has_value()) {
    stats.set_weight_bytes(resident_->weights->bytes);
  }
  if (transformer_ == nullptr) return stats;
  stats.set_kv_bytes(transformer_->kv_bytes());
  stats.set_mxfp4_launches(resident_->ops->mxfp4_launches() - launches_before_);
  stats.set_compute_seconds(static_cast<double>(step_ns_ - exchange_ns_) * 1e-9);
  stats.set_exchange_seconds(static_cast<double>(exchange_ns_) * 1e-9);
  stats.set_wait_seconds(static_cast<double>(wait_ns_) * 1e-9);
  const std::vector<uint64_t> load = Since(load_before_, transformer_->ExpertLoad());
  stats.mutable_expert_load()->Add(load.begin(), load.end());
  const std::vector<uint64_t> copies = Since(copies_before_, transformer_->CopiesToRanks());
  stats.mutable_copies_to_rank()->Add(copies.begin(), copies.end());
  stats.set_dispatched_copies(std::accumulate(copies.begin(), copies.end(), uint64_t{0}));
  const std::vector<int64_t> bytes = Since(bytes_before_, transformer_->exchange_stats().bytes_to);
  stats.mutable_bytes_to_rank()->Add(bytes.begin(), bytes.end());
  stats.set_exchange_bytes(std::accumulate(bytes.begin(), bytes.end(), int64_t{0}));
  return stats;
}

void ModelRuntime::End(bool continues) {
  applied_.reset();
  // Recorded steps hold the buffers of the transformer and of the communicators.
  if (resident_ != nullptr) resident_->ops->ForgetRecorded();
  if (!continues) Forget();
  absl::MutexLock lock(&mutex_);
  tp_group_ = nullptr;
  world_ = nullptr;
}

void ModelRuntime::Forget() {
  table_.reset();
  transformer_ = nullptr;
}

void ModelRuntime::Abort(Generation generation) {
  // Generations end in order, on one thread.
  aborted_.store(std::max(aborted_.load(), generation));
  absl::MutexLock lock(&mutex_);
  if (world_ != nullptr) world_->Abort();
  if (tp_group_ != nullptr) tp_group_->Abort();
}

}  // namespace

std::unique_ptr<RankRuntime> MakeModelRuntime(Backend& backend, ModelRuntimeOptions options) {
  return std::make_unique<ModelRuntime>(backend, std::move(options));
}

}  // namespace conclave::worker
