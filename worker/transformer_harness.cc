#include "worker/transformer_harness.h"

#include <fmt/format.h>

#include <functional>
#include <optional>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "base/check.h"
#include "base/mailbox.h"
#include "base/status_macros.h"
#include "model/checkpoint.h"
#include "worker/communicator.h"

namespace conclave::worker {

// What one worker process holds, and its step thread.
class TransformerHarness::Rank {
 public:
  Rank(const model::Config& config, const HarnessOptions& options, int rank)
      : config_(config), options_(options), rank_(rank), thread_([this] { Run(); }) {}
  ~Rank() {
    tasks_.Close();
    thread_.join();
  }

  void Post(std::function<void()> task) { CONCLAVE_CHECK(tasks_.Post(std::move(task))); }

  absl::Status Load(std::shared_ptr<const model::Checkpoint> checkpoint, Rendezvous& rendezvous);

  int rank() const { return rank_; }
  RankWeights& weights() { return *weights_; }
  Transformer& transformer() { return *transformer_; }
  SequenceTable& table() { return *table_; }

 private:
  void Run() {
    while (auto task = tasks_.Take(absl::InfiniteDuration())) (*task)();
    // Communicators end on the thread that used them.
    transformer_.reset();
    group_.reset();
    world_.reset();
  }
  absl::Status Connect(Rendezvous& rendezvous);
  void MakeTable();

  const model::Config& config_;
  const HarnessOptions& options_;
  const int rank_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> group_;
  std::optional<RankWeights> weights_;
  std::unique_ptr<Transformer> transformer_;
  std::optional<SequenceTable> table_;
  base::Mailbox<std::function<void()>> tasks_;
  std::thread thread_;
};

absl::Status TransformerHarness::Rank::Connect(Rendezvous& rendezvous) {
  const model::ParallelShape& shape = options_.shape;
  GlooOptions gloo;
  gloo.interface = "lo";
  gloo.timeout = absl::Seconds(60);
  if (shape.world() > 1) {
    ASSIGN_OR_RETURN(world_, ConnectGloo("world", rank_, shape.world(), rendezvous, gloo));
  }
  if (shape.tp > 1) {
    ASSIGN_OR_RETURN(group_, ConnectGloo(fmt::format("tp{}", shape.dp_rank(rank_)),
                                         shape.tp_rank(rank_), shape.tp, rendezvous, gloo));
  }
  return absl::OkStatus();
}

absl::Status TransformerHarness::Rank::Load(std::shared_ptr<const model::Checkpoint> checkpoint,
                                            Rendezvous& rendezvous) {
  const model::ParallelShape& shape = options_.shape;
  RETURN_IF_ERROR(Connect(rendezvous));
  const model::Range kv_heads = model::KvHeadRange(config_, shape.tp, shape.tp_rank(rank_));
  kernels::CpuOptions cpu;
  cpu.max_sequences = options_.max_sequences;
  ops_ = kernels::MakeCpuOps(config_, kv_heads.size(), cpu);
  WeightsRequest request;
  request.shape = shape;
  request.rank = rank_;
  request.placement = &options_.placement;
  request.heads = options_.heads;
  ASSIGN_OR_RETURN(weights_, LoadRankWeights(config_, std::move(checkpoint), request, *ops_,
                                             [](int64_t, int64_t) { return true; }));
  TransformerOptions options;
  options.shape = shape;
  options.rank = rank_;
  options.max_step_tokens = options_.max_step_tokens;
  options.max_sequences = options_.max_sequences;
  options.full_blocks = options_.full_blocks;
  options.sliding_blocks = options_.sliding_blocks;
  options.aborted = options_.aborted;
  ASSIGN_OR_RETURN(transformer_, Transformer::Create(config_, *weights_, options_.placement,
                                                     options, *ops_, world_.get(), group_.get()));
  MakeTable();
  return absl::OkStatus();
}

void TransformerHarness::Rank::MakeTable() {
  SequenceTable::Limits limits;
  limits.max_sequences = options_.max_sequences;
  limits.max_step_tokens = options_.max_step_tokens;
  limits.vocab_size = config_.vocab_size;
  limits.context_length = config_.context_length;
  limits.num_layers = config_.num_layers;
  limits.experts_per_token = config_.experts_per_token;
  limits.num_experts = config_.num_experts;
  limits.sliding_window = config_.sliding_window;
  limits.full_blocks = options_.full_blocks;
  limits.sliding_blocks = options_.sliding_blocks;
  for (const HeadWeights& head : weights_->heads) {
    limits.head_labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  table_.emplace(limits);
}

absl::StatusOr<std::unique_ptr<TransformerHarness>> TransformerHarness::Create(
    HarnessOptions options) {
  const model::ModelSource source = {options.model_dir, options.random};
  ASSIGN_OR_RETURN(model::Config config, model::LoadConfig(source));
  RETURN_IF_ERROR(model::CheckShape(config, options.shape));
  // One for each rank, as in processes of their own: each generates its random weights.
  std::vector<std::shared_ptr<const model::Checkpoint>> checkpoints;
  for (int rank = 0; rank < options.shape.world(); ++rank) {
    ASSIGN_OR_RETURN(checkpoints.emplace_back(), model::OpenCheckpoint(source, config));
  }
  const int world = options.shape.world();
  if (options.placement.layers.empty()) {
    options.placement = model::BalancedPlacement(config, world);
  }
  std::unique_ptr<TransformerHarness> harness(new TransformerHarness);
  harness->options_ = std::make_unique<HarnessOptions>(std::move(options));
  harness->config_ = std::make_unique<model::Config>(std::move(config));
  for (int rank = 0; rank < world; ++rank) {
    harness->ranks_.push_back(std::make_unique<Rank>(*harness->config_, *harness->options_, rank));
  }
  const std::unique_ptr<Rendezvous> rendezvous = MakeLocalRendezvous();
  RETURN_IF_ERROR(harness->OnAllRanks(
      [&](Rank& rank) { return rank.Load(checkpoints[rank.rank()], *rendezvous); }));
  return harness;
}

TransformerHarness::~TransformerHarness() = default;

const model::Config& TransformerHarness::config() const { return *config_; }
const HarnessOptions& TransformerHarness::options() const { return *options_; }
const RankWeights& TransformerHarness::weights(int rank) const { return ranks_[rank]->weights(); }
Transformer& TransformerHarness::transformer(int rank) { return ranks_[rank]->transformer(); }

absl::Status TransformerHarness::OnAllRanks(const std::function<absl::Status(Rank&)>& body) {
  std::vector<absl::Status> statuses(ranks_.size());
  absl::BlockingCounter left(static_cast<int>(ranks_.size()));
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i]->Post([&, i] {
      statuses[i] = body(*ranks_[i]);
      left.DecrementCount();
    });
  }
  left.Wait();
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StepOutput>> TransformerHarness::Step(
    const std::vector<internal::v1::StepPlan>& plans, internal::v1::ExchangeMode mode, int bucket) {
  const model::ParallelShape& shape = options_->shape;
  CONCLAVE_CHECK(static_cast<int>(plans.size()) == shape.dp);
  std::vector<StepOutput> outputs(shape.dp);
  RETURN_IF_ERROR(OnAllRanks([&](Rank& rank) -> absl::Status {
    const int group = shape.dp_rank(rank.rank());
    ASSIGN_OR_RETURN(const ResolvedStep step, rank.table().Apply(plans[group]));
    ASSIGN_OR_RETURN(StepOutput output, rank.transformer().Step(step, mode, bucket));
    if (shape.tp_rank(rank.rank()) == 0) outputs[group] = std::move(output);
    return absl::OkStatus();
  }));
  return outputs;
}

absl::StatusOr<Transformer::Trace> TransformerHarness::Trace(const internal::v1::StepPlan& plan,
                                                             ResolvedStep& resolved) {
  Transformer::Trace trace;
  RETURN_IF_ERROR(OnAllRanks([&](Rank& rank) -> absl::Status {
    ASSIGN_OR_RETURN(resolved, rank.table().Apply(plan));
    ASSIGN_OR_RETURN(trace, rank.transformer().TraceStep(resolved));
    return absl::OkStatus();
  }));
  return trace;
}

}  // namespace conclave::worker
