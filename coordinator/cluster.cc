#include "coordinator/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/logging.h"
#include "coordinator/assignment.h"
#include "coordinator/rank_assignment.h"

namespace conclave::coordinator {
namespace {

// Between the end of a faulty epoch and the next: time for the others to notice the same, and for a
// dead peer's stream to break.
constexpr absl::Duration kFaultDelay = absl::Milliseconds(500);
constexpr int kMaxFaultDoublings = 5;  // 16 s

// A longer gap between two ticks is a pause of this process: messages may wait unread, so the gap
// says nothing about the workers.
constexpr absl::Duration kPause = absl::Seconds(1);

std::string Describe(const ClusterMember& member) {
  const std::string who =
      fmt::format("{} pid {}", member.registration.host(), member.registration.pid());
  return member.rank >= 0 ? fmt::format("rank {} ({})", member.rank, who)
                          : fmt::format("a spare ({})", who);
}

}  // namespace

Cluster::Cluster(ClusterOptions options, Rendezvous& rendezvous, const base::Clock& clock)
    : options_(std::move(options)),
      rendezvous_(rendezvous),
      clock_(clock),
      heartbeat_limit_(kHeartbeatLimit * base::TimeScale()),
      last_tick_(clock.Now()) {}

void Cluster::Open(WorkerId worker, std::shared_ptr<WorkerLink> link) {
  unregistered_[worker] = {.link = std::move(link), .since = clock_.Now()};
}

void Cluster::OnMessage(WorkerId worker, const internal::v1::WorkerMessage& message) {
  if (unregistered_.contains(worker)) {
    if (message.has_register_()) {
      OnRegister(worker, message.register_());
    } else {
      Refuse(worker, "the first message of a stream must be Register");
    }
    return;
  }
  ClusterMember* member = Find(worker);
  if (member == nullptr) return;
  member->last_heard = clock_.Now();
  const bool current = in_epoch() && member->rank >= 0;
  switch (message.kind_case()) {
    case internal::v1::WorkerMessage::kHeartbeat:
      member->free_memory_bytes = message.heartbeat().free_memory_bytes();
      member->kv_bytes = message.heartbeat().stats().kv_bytes();
      member->weight_bytes = message.heartbeat().stats().weight_bytes();
      if (current && message.heartbeat().epoch() == epoch_) {
        member->stats = message.heartbeat().stats();
      }
      break;
    case internal::v1::WorkerMessage::kLoadProgress:
      if (current && message.load_progress().epoch() == epoch_) {
        member->progress = message.load_progress();
      }
      break;
    case internal::v1::WorkerMessage::kReady:
      if (current && message.ready().epoch() == epoch_) OnReady(*member, message.ready());
      break;
    case internal::v1::WorkerMessage::kFault:
      if (current && message.fault().epoch() == epoch_) {
        EndEpochAfterFault(fmt::format("{}: {}", Describe(*member), message.fault().message()));
      }
      break;
    case internal::v1::WorkerMessage::kLeave:
      OnLeave(*member);
      break;
    default:
      break;  // a second Register, or nothing this version knows
  }
}

ClusterMember* Cluster::Find(WorkerId worker) {
  const auto entry = members_.find(worker);
  return entry == members_.end() ? nullptr : &entry->second;
}

void Cluster::Touch(WorkerId worker) {
  if (ClusterMember* member = Find(worker)) member->last_heard = clock_.Now();
}

void Cluster::OnRegister(WorkerId worker, const internal::v1::Register& registration) {
  const absl::Status accepted = CheckRegister(registration);
  if (!accepted.ok()) return Refuse(worker, std::string(accepted.message()));
  ClusterMember& member = members_[worker];
  member.id = worker;
  member.link = std::move(unregistered_[worker].link);
  unregistered_.erase(worker);
  member.registration = registration;
  member.last_heard = clock_.Now();
  member.free_memory_bytes = registration.free_memory_bytes();
  refusal_logged_ = false;
  if (registration.has_previous_rank()) member.previous_rank = registration.previous_rank();
  base::Log().info(
      "event=worker_registered worker={} host={} pid={} device={} registered={} world={}", worker,
      registration.host(), registration.pid(), registration.device(), members_.size(), world());
  TryForm();
}

absl::Status Cluster::CheckRegister(const internal::v1::Register& registration) const {
  if (registration.protocol_version() != internal::v1::PROTOCOL_VERSION_CURRENT) {
    return absl::FailedPreconditionError(fmt::format(
        "protocol version {}, this coordinator speaks {}: use one build on both sides",
        registration.protocol_version(), static_cast<int>(internal::v1::PROTOCOL_VERSION_CURRENT)));
  }
  if (registration.device() != "cpu" && registration.device() != "cuda") {
    return absl::InvalidArgumentError(
        fmt::format("device '{}' is neither cpu nor cuda", registration.device()));
  }
  for (const auto& [id, member] : members_) {
    if (member.registration.device() == registration.device()) continue;
    return absl::FailedPreconditionError(
        fmt::format("device {} in a group of {} workers: one group has one kind of device",
                    registration.device(), member.registration.device()));
  }
  const int most = world() * (1 + kMaxSparesPerRank);
  if (static_cast<int>(members_.size()) >= most) {
    return absl::FailedPreconditionError(
        fmt::format("the group of {} is complete and has {} spares", world(), most - world()));
  }
  return absl::OkStatus();
}

void Cluster::Refuse(WorkerId worker, const std::string& reason) {
  base::Log().warn("event=worker_refused worker={} reason=\"{}\"", worker, reason);
  const auto entry = unregistered_.find(worker);
  internal::v1::CoordinatorMessage message;
  message.mutable_refuse()->set_reason(reason);
  entry->second.link->Send(std::move(message));
  entry->second.link->Close();
  unregistered_.erase(entry);
}

void Cluster::OnReady(ClusterMember& member, const internal::v1::Ready& ready) {
  member.ready = ready;
  member.progress.set_loaded_bytes(member.progress.total_bytes());
  if (state_ != v1::LOADING) return;
  for (const auto& [id, other] : members_) {
    if (other.rank >= 0 && !other.ready.has_value()) return;
  }
  state_ = v1::READY;
  previous_placement_.reset();
  faults_in_a_row_ = 0;
  base::Log().info("event=epoch_ready epoch={} world={}", epoch_, world());
}

void Cluster::OnLeave(ClusterMember& member) {
  if (std::exchange(member.leaving, true)) return;
  base::Log().info("event=worker_leaves worker={} who=\"{}\"", member.id, Describe(member));
  if (!in_epoch() || member.rank < 0) DropLeavers();  // else when it can be spared
}

void Cluster::DropLeavers() {
  for (auto member = members_.begin(); member != members_.end();) {
    if (!member->second.leaving || (in_epoch() && member->second.rank >= 0)) {
      ++member;
      continue;
    }
    member->second.link->Close();
    member = members_.erase(member);
    refusal_logged_ = false;
  }
}

bool Cluster::leaving() const {
  return in_epoch() && std::any_of(members_.begin(), members_.end(),
                                   [](const auto& entry) { return entry.second.leaving; });
}

bool Cluster::has_substitute() const {
  return std::count_if(members_.begin(), members_.end(),
                       [](const auto& entry) { return !entry.second.leaving; }) >= world();
}

void Cluster::LetGo() {
  std::string who;
  for (const auto& [id, member] : members_) {
    if (member.leaving) who += (who.empty() ? "" : ", ") + Describe(member);
  }
  EndEpoch(fmt::format("{} left", who));
  TryForm();
}

void Cluster::Gone(WorkerId worker, const std::string& why) {
  unregistered_.erase(worker);
  ClusterMember* member = Find(worker);
  if (member == nullptr) return;
  const std::string who = Describe(*member);
  const bool had_rank = member->rank >= 0;
  base::Log().warn("event=worker_lost worker={} who=\"{}\" why=\"{}\"", worker, who, why);
  members_.erase(worker);
  refusal_logged_ = false;
  if (had_rank) {
    const std::string loss = fmt::format("{} was lost: {}", who, why);
    // Peers may have reported the failed collective first; the loss is what explains it.
    if (in_epoch()) EndEpoch(loss);
    problem_ = loss;
  }
  TryForm();
}

void Cluster::Fault(WorkerId worker, const absl::Status& why) {
  const ClusterMember* member = Find(worker);
  if (member == nullptr || !in_epoch() || member->rank < 0) return;
  EndEpochAfterFault(fmt::format("{}: {}", Describe(*member), std::string(why.message())));
}

void Cluster::Tick() {
  const absl::Time now = clock_.Now();
  const absl::Duration gap = now - std::exchange(last_tick_, now);
  DropSilent(now, gap > kPause ? gap : absl::ZeroDuration());
  TryForm();
}

void Cluster::DropSilent(absl::Time now, absl::Duration pause) {
  const std::string why = fmt::format("silent for {}", absl::FormatDuration(heartbeat_limit_));
  std::vector<std::pair<WorkerId, std::shared_ptr<WorkerLink>>> silent;
  for (auto& [id, member] : members_) {
    member.last_heard = std::min(now, member.last_heard + pause);
    if (now - member.last_heard > heartbeat_limit_) silent.emplace_back(id, member.link);
  }
  for (auto& [id, stranger] : unregistered_) {
    stranger.since = std::min(now, stranger.since + pause);
    if (now - stranger.since > heartbeat_limit_) silent.emplace_back(id, stranger.link);
  }
  for (const auto& [worker, link] : silent) {
    Gone(worker, why);
    link->Abort();
  }
}

void Cluster::TryForm() {
  if (in_epoch()) return;
  DropLeavers();
  if (static_cast<int>(members_.size()) < world()) return;
  if (clock_.Now() < form_not_before_) return;
  const std::vector<ClusterMember*> by_rank = ChooseRanks();
  const absl::StatusOr<internal::v1::CacheShape> cache =
      FitMembers(options_, {by_rank.begin(), by_rank.end()});
  if (!cache.ok()) return RefuseToForm(cache.status());
  BeginEpoch(by_rank, *cache, /*continues=*/false);
}

// Members by rank; the rest are spares.
std::vector<ClusterMember*> Cluster::ChooseRanks() {
  std::vector<RankCandidate> workers;
  for (const auto& [id, member] : members_) {
    workers.push_back({.previous = member.previous_rank, .host = member.registration.host()});
  }
  const std::vector<int> ranks = AssignRanks(workers, options_.shape);
  std::vector<ClusterMember*> by_rank(world(), nullptr);
  auto rank = ranks.begin();
  for (auto& [id, member] : members_) {
    if (*rank >= 0) by_rank[*rank] = &member;
    ++rank;
  }
  return by_rank;
}

void Cluster::Continue(model::Placement placement) {
  CONCLAVE_CHECK(state_ == v1::READY);
  std::vector<ClusterMember*> by_rank(world(), nullptr);
  for (auto& [id, member] : members_) {
    if (member.rank >= 0) by_rank[member.rank] = &member;
  }
  previous_placement_ = options_.placement;
  ReplacePlacement(std::move(placement), options_);
  BeginEpoch(by_rank, internal::v1::CacheShape(cache_), /*continues=*/true);
}

void Cluster::BeginEpoch(const std::vector<ClusterMember*>& by_rank,
                         const internal::v1::CacheShape& cache, bool continues) {
  state_ = v1::LOADING;
  cache_ = cache;
  continues_ = continues;
  rendezvous_.BeginEpoch(++epoch_);
  problem_ =
      continues ? "experts are moving between the ranks" : "the workers are loading the model";
  refusal_logged_ = false;
  base::Log().info(
      "event=epoch_begins epoch={} dp={} tp={} full_blocks={} sliding_blocks={} continues={}",
      epoch_, options_.shape.dp, options_.shape.tp, cache.full_blocks(), cache.sliding_blocks(),
      continues);
  for (auto& [id, member] : members_) member.rank = -1;
  internal::v1::CoordinatorMessage message;
  *message.mutable_assignment() = MakeAssignment(options_, epoch_, cache, continues);
  for (int rank = 0; rank < world(); ++rank) {
    ClusterMember& member = *by_rank[rank];
    member.rank = rank;
    member.previous_rank = rank;
    member.ready.reset();
    member.progress.Clear();
    member.stats.Clear();
    message.mutable_assignment()->set_rank(rank);
    member.link->Send(message);
  }
}

void Cluster::EndEpoch(const std::string& why) {
  base::Log().warn("event=epoch_ends epoch={} why=\"{}\"", epoch_, why);
  state_ = v1::RECOVERING;
  problem_ = why;
  last_end_ = why;
  if (previous_placement_.has_value()) {
    ReplacePlacement(*std::exchange(previous_placement_, std::nullopt), options_);
  }
  rendezvous_.EndEpoch();
  internal::v1::CoordinatorMessage message;
  message.mutable_end_epoch()->set_epoch(epoch_);
  for (const auto& [id, member] : members_) {
    if (member.rank >= 0) member.link->Send(message);
  }
}

void Cluster::EndEpochAfterFault(const std::string& why) {
  form_not_before_ =
      clock_.Now() + kFaultDelay * (1 << std::min(faults_in_a_row_, kMaxFaultDoublings));
  ++faults_in_a_row_;
  EndEpoch(why);
}

// Tried again at every tick: memory may become free.
void Cluster::RefuseToForm(const absl::Status& why) {
  problem_ = std::string(why.message());
  if (refusal_logged_) return;
  refusal_logged_ = true;
  base::Log().error("event=group_refused problem=\"{}\"", problem_);
}

std::string Cluster::Problem() const {
  if (state_ == v1::READY) return "";
  const int registered = static_cast<int>(members_.size());
  if (registered >= world()) return problem_;
  return fmt::format("{}{}{} of {} workers are registered", problem_, problem_.empty() ? "" : "; ",
                     registered, world());
}

void Cluster::Send(const WorldPlan& plan) {
  CONCLAVE_CHECK(state_ == v1::READY);
  for (const auto& [id, member] : members_) {
    if (member.rank < 0) continue;
    internal::v1::CoordinatorMessage message;
    *message.mutable_step_plan() = plan.groups[options_.shape.dp_rank(member.rank)];
    member.link->Send(std::move(message));
  }
}

std::optional<int> Cluster::RankOf(WorkerId worker, uint64_t epoch) const {
  const auto entry = members_.find(worker);
  if (entry == members_.end() || state_ != v1::READY || epoch != epoch_) return std::nullopt;
  if (entry->second.rank < 0) return std::nullopt;
  return entry->second.rank;
}

std::vector<const ClusterMember*> Cluster::Ranked() const {
  std::vector<const ClusterMember*> ranked;
  for (const auto& [id, member] : members_) {
    if (member.rank >= 0) ranked.push_back(&member);
  }
  std::sort(ranked.begin(), ranked.end(),
            [](const auto* a, const auto* b) { return a->rank < b->rank; });
  return ranked;
}

int Cluster::spares() const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(),
                                        [](const auto& entry) { return entry.second.rank < 0; }));
}

void Cluster::Shutdown() {
  if (in_epoch()) EndEpoch("the coordinator stops");
  for (const auto& [id, stranger] : unregistered_) stranger.link->Close();
  for (const auto& [id, member] : members_) member.link->Close();
  unregistered_.clear();
  members_.clear();
}

}  // namespace conclave::coordinator
