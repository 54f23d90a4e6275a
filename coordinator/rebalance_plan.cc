#include "coordinator/rebalance_plan.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

namespace conclave::coordinator {
namespace {

using Experts = std::vector<std::vector<int>>;  // [world] of one layer, ascending

Experts ByRank(const model::LayerPlacement& layer, int world) {
  Experts experts(static_cast<size_t>(world));
  for (int rank = 0; rank < world; ++rank) experts[rank] = layer.ExpertsOf(rank);
  return experts;
}

int Common(const std::vector<int>& a, const std::vector<int>& b) {
  return static_cast<int>(std::count_if(a.begin(), a.end(), [&](int expert) {
    return std::binary_search(b.begin(), b.end(), expert);
  }));
}

int Copies(const model::LayerPlacement& layer) {
  int copies = 0;
  for (const std::vector<int>& ranks : layer.ranks_of_expert) {
    copies += static_cast<int>(ranks.size());
  }
  return copies;
}

// The planned sets under the names of the ranks that hold most of them already; among equals, to
// those that hold the fewest experts of the layers before (`held` [world], which it adds to).
model::LayerPlacement Renamed(const model::LayerPlacement& planned,
                              const model::LayerPlacement& current, std::vector<int>& held) {
  const int world = static_cast<int>(held.size());
  const Experts sets = ByRank(planned, world);
  const Experts now = ByRank(current, world);
  std::vector<int> common;  // [sets, ranks]
  for (const std::vector<int>& set : sets) {
    for (const std::vector<int>& held_now : now) common.push_back(Common(set, held_now));
  }
  std::vector<int> name(world, -1);  // of each set
  std::vector<bool> taken(world, false);
  for (int turn = 0; turn < world; ++turn) {
    int best_set = -1;
    int best_rank = -1;
    std::pair<int, int> best;
    for (int set = 0; set < world; ++set) {
      if (name[set] >= 0) continue;
      for (int rank = 0; rank < world; ++rank) {
        if (taken[rank]) continue;
        const std::pair<int, int> worth = {common[set * world + rank], -held[rank]};
        if (best_set >= 0 && worth <= best) continue;
        best = worth;
        best_set = set;
        best_rank = rank;
      }
    }
    name[best_set] = best_rank;
    taken[best_rank] = true;
  }
  model::LayerPlacement out;
  out.ranks_of_expert.resize(planned.ranks_of_expert.size());
  for (int set = 0; set < world; ++set) {
    for (const int expert : sets[set]) out.ranks_of_expert[expert].push_back(name[set]);
    held[name[set]] += static_cast<int>(sets[set].size());
  }
  for (std::vector<int>& ranks : out.ranks_of_expert) std::sort(ranks.begin(), ranks.end());
  return out;
}

double Imbalance(const std::vector<double>& ranks) {
  const double sum = std::accumulate(ranks.begin(), ranks.end(), 0.0);
  if (sum == 0) return 1;
  return *std::max_element(ranks.begin(), ranks.end()) * static_cast<double>(ranks.size()) / sum;
}

double Predicted(const model::LayerPlacement& layer, std::span<const uint64_t> load, int world) {
  std::vector<double> ranks(static_cast<size_t>(world));
  for (size_t expert = 0; expert < load.size(); ++expert) {
    const std::vector<int>& holders = layer.ranks_of_expert[expert];
    for (const int rank : holders) {
      ranks[rank] += static_cast<double>(load[expert]) / static_cast<double>(holders.size());
    }
  }
  return Imbalance(ranks);
}

void CountMoves(const model::LayerPlacement& from, const model::LayerPlacement& to,
                std::vector<RankMoves>& ranks) {
  const int world = static_cast<int>(ranks.size());
  const Experts before = ByRank(from, world);
  const Experts after = ByRank(to, world);
  for (int rank = 0; rank < world; ++rank) {
    RankMoves& moves = ranks[rank];
    const int held = static_cast<int>(after[rank].size());
    const int kept = Common(after[rank], before[rank]);
    moves.held += held;
    moves.gained += held - kept;
    moves.dropped += static_cast<int>(before[rank].size()) - kept;
    if (after[rank] != before[rank]) moves.most_in_a_layer = std::max(moves.most_in_a_layer, held);
  }
}

}  // namespace

uint64_t ObservedLoad::total() const {
  return std::accumulate(experts.begin(), experts.end(), uint64_t{0});
}

bool RebalancePlan::changes() const {
  return std::any_of(ranks.begin(), ranks.end(),
                     [](const RankMoves& moves) { return moves.gained > 0 || moves.dropped > 0; });
}

RebalancePlan PlanRebalance(const model::Config& config, const model::Placement& current,
                            const ObservedLoad& load, int replicas) {
  const int world = current.world;
  const auto experts = static_cast<size_t>(config.num_experts);
  const model::Placement planned = model::PlacementFromLoad(config, world, load.experts, replicas);
  RebalancePlan plan;
  plan.placement.world = world;
  plan.ranks.resize(static_cast<size_t>(world));
  std::vector<int> held(static_cast<size_t>(world));
  for (size_t layer = 0; layer < planned.layers.size(); ++layer) {
    const std::span<const uint64_t> layer_load(load.experts.data() + layer * experts, experts);
    const auto first_rank = load.ranks.begin() + static_cast<int64_t>(layer) * world;
    LayerBalance balance;
    balance.before = Imbalance({first_rank, first_rank + world});
    balance.after = Predicted(planned.layers[layer], layer_load, world);
    const model::LayerPlacement& now = current.layers[layer];
    const bool same_copies = Copies(now) == Copies(planned.layers[layer]);
    if (same_copies && balance.after > balance.before * (1 - kLeastGain)) {
      balance.after = balance.before;
      plan.placement.layers.push_back(now);
      for (int rank = 0; rank < world; ++rank) {
        held[rank] += static_cast<int>(now.ExpertsOf(rank).size());
      }
    } else {
      plan.placement.layers.push_back(Renamed(planned.layers[layer], now, held));
    }
    plan.layers.push_back(balance);
    CountMoves(now, plan.placement.layers.back(), plan.ranks);
  }
  return plan;
}

}  // namespace conclave::coordinator
