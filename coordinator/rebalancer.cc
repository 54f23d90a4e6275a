#include "coordinator/rebalancer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "coordinator/assignment.h"

namespace conclave::coordinator {
namespace {

// As the ranks last said; what a rank says that does not fit the placement counts for nothing.
ObservedLoad Observe(const Cluster& cluster) {
  const model::Placement& placement = cluster.options().placement;
  const auto experts = static_cast<size_t>(cluster.options().config.num_experts);
  const auto world = static_cast<size_t>(placement.world);
  ObservedLoad load;
  load.experts.resize(placement.layers.size() * experts);
  load.ranks.resize(placement.layers.size() * world);
  for (const ClusterMember* member : cluster.Ranked()) {
    std::vector<std::vector<int>> held;
    size_t total = 0;
    for (const model::LayerPlacement& layer : placement.layers) {
      held.push_back(layer.ExpertsOf(member->rank));
      total += held.back().size();
    }
    const auto& reported = member->stats.expert_load();
    if (static_cast<size_t>(reported.size()) != total) continue;
    auto next = reported.begin();
    for (size_t layer = 0; layer < held.size(); ++layer) {
      for (const int expert : held[layer]) {
        load.experts[layer * experts + expert] += *next;
        load.ranks[layer * world + member->rank] += *next++;
      }
    }
  }
  return load;
}

v1::RebalanceResponse Describe(const RebalancePlan& plan, int64_t expert_bytes) {
  v1::RebalanceResponse response;
  for (const LayerBalance& layer : plan.layers) {
    v1::LayerBalance* out = response.add_layers();
    out->set_imbalance_before(layer.before);
    out->set_imbalance_after(layer.after);
  }
  for (const RankMoves& moves : plan.ranks) {
    v1::RankMoves* out = response.add_ranks();
    out->set_held(moves.held);
    out->set_gained(moves.gained);
    out->set_dropped(moves.dropped);
    out->set_loaded_bytes(moves.gained * expert_bytes);
  }
  return response;
}

}  // namespace

absl::Status Rebalancer::CheckPossible(const v1::RebalanceRequest& request) const {
  const ClusterOptions& options = cluster_.options();
  const int64_t most = int64_t{options.config.num_experts} * std::max(0, options.shape.world() - 1);
  if (request.replicas() > most) {
    return absl::InvalidArgumentError(
        fmt::format("replicas is {}: {} experts on {} ranks leave room for {} extra copies",
                    request.replicas(), options.config.num_experts, options.shape.world(), most));
  }
  if (options.shape.world() == 1) {
    return absl::FailedPreconditionError("one rank holds every expert: there is nothing to move");
  }
  if (done_ != nullptr) return absl::FailedPreconditionError("another rebalance is under way");
  if (cluster_.leaving()) return absl::FailedPreconditionError("a worker is leaving");
  if (cluster_.state() != v1::READY) {
    return absl::FailedPreconditionError(
        fmt::format("the group is not ready: {}", cluster_.Problem()));
  }
  return absl::OkStatus();
}

void Rebalancer::Begin(const v1::RebalanceRequest& request, Engine::RebalanceDone done) {
  if (const absl::Status possible = CheckPossible(request); !possible.ok()) return done(possible);
  const ObservedLoad load = Observe(cluster_);
  if (load.total() == 0) {
    return done(absl::FailedPreconditionError(fmt::format(
        "no expert load has been observed in epoch {}: serve something first", cluster_.epoch())));
  }
  const ClusterOptions& options = cluster_.options();
  RebalancePlan plan =
      PlanRebalance(options.config, options.placement, load, static_cast<int>(request.replicas()));
  const absl::Status fits = FitMoves(options, cluster_.Ranked(), plan.ranks);
  if (!fits.ok()) return done(fits);
  if (request.dry_run() || !plan.changes()) {
    v1::RebalanceResponse response = Describe(plan, options.expert_bytes);
    response.set_epoch(cluster_.epoch());
    return done(std::move(response));
  }
  base::Log().info("event=rebalance_begins epoch={} replicas={}", cluster_.epoch(),
                   request.replicas());
  done_ = std::move(done);
  plan_ = std::move(plan);
  began_ = clock_.Now();
  from_epoch_ = cluster_.epoch();
  to_epoch_ = 0;
  scheduler_.Hold(true);
}

void Rebalancer::Advance() {
  if (done_ == nullptr) return;
  const uint64_t epoch = to_epoch_ == 0 ? from_epoch_ : to_epoch_;
  const bool going_on = cluster_.state() == v1::READY || cluster_.state() == v1::LOADING;
  if (!going_on || cluster_.epoch() != epoch) {
    return Fail(absl::UnavailableError(fmt::format(
        "experts were not moved, the placement is the old one: {}", cluster_.last_end())));
  }
  if (to_epoch_ == 0) {
    if (scheduler_.plans_in_flight() > 0) return;
    cluster_.Continue(plan_.placement);
    to_epoch_ = cluster_.epoch();
    return;
  }
  if (cluster_.state() != v1::READY) return;
  v1::RebalanceResponse response = Describe(plan_, 0);
  response.set_epoch(to_epoch_);
  response.set_seconds(absl::ToDoubleSeconds(clock_.Now() - began_));
  uint64_t loaded = 0;
  for (const ClusterMember* member : cluster_.Ranked()) {
    response.mutable_ranks(member->rank)->set_loaded_bytes(member->ready->loaded_bytes());
    loaded += member->ready->loaded_bytes();
  }
  base::Log().info("event=rebalance_done epoch={} loaded_bytes={} seconds={:.3f}", to_epoch_,
                   loaded, response.seconds());
  Finish(std::move(response));
}

void Rebalancer::Fail(const absl::Status& status) {
  if (done_ == nullptr) return;
  scheduler_.Hold(false);
  Finish(status);
}

void Rebalancer::Finish(absl::StatusOr<v1::RebalanceResponse> response) {
  const Engine::RebalanceDone done = std::exchange(done_, nullptr);
  done(std::move(response));
}

}  // namespace conclave::coordinator
