#include "coordinator/cluster_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace conclave::coordinator {
namespace {

std::string DeviceName(const internal::v1::Register& registration) {
  if (registration.device_name().empty()) return registration.device();
  return fmt::format("{} ({})", registration.device(), registration.device_name());
}

// The rank's experts by layer, with their load where the worker's list fits the placement.
void AddLayers(const model::Placement& placement, const ClusterMember& member, v1::Rank& rank) {
  std::vector<std::vector<int>> experts;
  size_t total = 0;
  for (const model::LayerPlacement& layer : placement.layers) {
    experts.push_back(layer.ExpertsOf(member.rank));
    total += experts.back().size();
  }
  const auto& load = member.stats.expert_load();
  const bool load_fits = static_cast<size_t>(load.size()) == total;
  auto next = load.begin();
  for (const std::vector<int>& ids : experts) {
    v1::LayerExperts* layer = rank.add_layers();
    layer->mutable_experts()->Add(ids.begin(), ids.end());
    if (load_fits) {
      layer->mutable_load()->Add(next, next + ids.size());
      next += static_cast<int>(ids.size());
    } else {
      layer->mutable_load()->Resize(static_cast<int>(ids.size()), 0);
    }
  }
}

void AddRank(const Cluster& cluster, const ClusterMember& member, v1::Rank& rank) {
  const internal::v1::Register& registration = member.registration;
  const ClusterOptions& options = cluster.options();
  rank.set_rank(member.rank);
  rank.set_dp_rank(options.shape.dp_rank(member.rank));
  rank.set_tp_rank(options.shape.tp_rank(member.rank));
  rank.set_device(DeviceName(registration));
  rank.set_host(registration.host());
  rank.set_pid(registration.pid());
  rank.set_kernel(registration.kernel());
  rank.mutable_memory()->set_total_bytes(registration.total_memory_bytes());
  rank.mutable_memory()->set_free_bytes(member.free_memory_bytes);
  if (member.ready.has_value()) {
    rank.set_expert_format(member.ready->resident_format());
    rank.mutable_memory()->set_weight_bytes(member.ready->weight_bytes());
    rank.mutable_memory()->set_kv_bytes(member.ready->kv_bytes());
    rank.set_loaded_bytes(member.ready->loaded_bytes());
  }
  rank.set_compute_seconds(member.stats.compute_seconds());
  rank.set_exchange_seconds(member.stats.exchange_seconds());
  rank.set_wait_seconds(member.stats.wait_seconds());
  rank.set_dispatched_copies(member.stats.dispatched_copies());
  rank.set_exchange_bytes(member.stats.exchange_bytes());
  rank.set_mxfp4_launches(member.stats.mxfp4_launches());
  *rank.mutable_copies_to_rank() = member.stats.copies_to_rank();
  *rank.mutable_bytes_to_rank() = member.stats.bytes_to_rank();
  AddLayers(options.placement, member, rank);
}

void Add(const BlockPool& pool, int max_per_sequence, v1::KvBlocks& blocks) {
  blocks.set_used(blocks.used() + pool.used());
  blocks.set_cached(blocks.cached() + pool.idle());
  blocks.set_total(blocks.total() + pool.total());
  blocks.set_max_per_sequence(
      std::max(blocks.max_per_sequence(), static_cast<uint32_t>(max_per_sequence)));
}

void AddCounters(const Scheduler& scheduler, v1::Counters& out) {
  const SchedulerCounters& counters = scheduler.counters();
  out.set_tokens_computed(counters.tokens_computed);
  out.set_steps(counters.steps);
  out.set_max_plans_in_flight(counters.max_plans_in_flight);
  out.set_running(scheduler.running());
  out.set_queued(scheduler.queued());
  out.set_requests_finished(counters.requests_finished);
  out.set_requests_failed(counters.requests_failed);
  out.set_requests_cancelled(counters.requests_cancelled);
  out.set_overrun_tokens(counters.overrun_tokens);
  out.set_preemptions(counters.preemptions);
  out.set_requests_refused_early(counters.requests_refused_early);
  out.set_max_queue_seconds(absl::ToDoubleSeconds(counters.max_queue_time));
  v1::PrefixCache* cache = out.mutable_prefix_cache();
  cache->set_enabled(scheduler.caches_prefixes());
  cache->set_prompt_tokens(counters.prompt_tokens);
  cache->set_hit_tokens(counters.hit_tokens);
  cache->set_evicted_blocks(counters.evicted_blocks);
  for (const auto& group : scheduler.groups()) {
    const KvPools& pools = group->pools();
    cache->set_evicted_blocks(cache->evicted_blocks() + pools.cache.evicted_blocks());
    Add(pools.full, pools.max_per_sequence.full, *out.mutable_full_blocks());
    Add(pools.sliding, pools.max_per_sequence.sliding, *out.mutable_sliding_blocks());
  }
}

double LoadProgress(const Cluster& cluster, const std::vector<const ClusterMember*>& ranked) {
  if (cluster.state() == v1::READY) return 1;
  if (cluster.state() != v1::LOADING) return 0;
  double least = 1;
  for (const ClusterMember* member : ranked) {
    if (member->ready.has_value()) continue;
    const auto total = static_cast<double>(member->progress.total_bytes());
    const auto loaded = static_cast<double>(member->progress.loaded_bytes());
    least = std::min(least, total > 0 ? loaded / total : 0.0);
  }
  return least;
}

}  // namespace

v1::GetClusterResponse ReportCluster(const Cluster& cluster, const Scheduler& scheduler) {
  v1::GetClusterResponse report;
  report.set_state(cluster.state());
  report.set_epoch(cluster.epoch());
  report.set_dp(cluster.options().shape.dp);
  report.set_tp(cluster.options().shape.tp);
  const std::vector<const ClusterMember*> ranked = cluster.Ranked();
  for (const ClusterMember* member : ranked) AddRank(cluster, *member, *report.add_ranks());
  AddCounters(scheduler, *report.mutable_counters());
  report.set_load_progress(LoadProgress(cluster, ranked));
  report.set_problem(cluster.Problem());
  return report;
}

}  // namespace conclave::coordinator
