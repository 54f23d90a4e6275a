// Placement by observed load: longest processing time first, with room for an equal number of
// experts on every rank.

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "model/placement.h"

namespace conclave::model {
namespace {

// One layer while its copies are being placed.
class LayerPlanner {
 public:
  LayerPlanner(std::span<const uint64_t> load, int world, int replicas)
      : load_(load), world_(world), copies_(load.size(), 1), ranks_(static_cast<size_t>(world)) {
    const auto experts = static_cast<int64_t>(load.size());
    const int64_t most = experts * (world - 1);
    const int64_t extra = std::clamp<int64_t>(replicas, 0, most);
    for (int64_t i = 0; i < extra; ++i) AddCopy();
    room_ = (experts + extra) / world;
    larger_left_ = (experts + extra) % world;
  }

  LayerPlacement Plan() {
    for (const int expert : HottestCopiesFirst()) Place(expert);
    LayerPlacement layer;
    layer.ranks_of_expert.resize(load_.size());
    for (int rank = 0; rank < world_; ++rank) {
      for (const int expert : ranks_[rank].experts) {
        layer.ranks_of_expert[static_cast<size_t>(expert)].push_back(rank);
      }
    }
    return layer;
  }

 private:
  struct Rank {
    std::vector<int> experts;
    double load = 0;

    bool Holds(int expert) const {
      return std::find(experts.begin(), experts.end(), expert) != experts.end();
    }
  };

  double Share(int expert) const {
    return static_cast<double>(load_[expert]) / copies_[static_cast<size_t>(expert)];
  }

  // To the expert whose copies carry most; the lower id among equals. A rank holds a copy once.
  void AddCopy() {
    int hottest = -1;
    for (int expert = 0; expert < static_cast<int>(load_.size()); ++expert) {
      if (copies_[static_cast<size_t>(expert)] == world_) continue;
      if (hottest < 0 || Share(expert) > Share(hottest)) hottest = expert;
    }
    ++copies_[static_cast<size_t>(hottest)];
  }

  std::vector<int> HottestCopiesFirst() const {
    std::vector<int> experts(load_.size());
    std::iota(experts.begin(), experts.end(), 0);
    std::stable_sort(experts.begin(), experts.end(),
                     [&](int a, int b) { return Share(a) > Share(b); });
    std::vector<int> list;
    for (const int expert : experts) {
      list.insert(list.end(), static_cast<size_t>(copies_[static_cast<size_t>(expert)]), expert);
    }
    return list;
  }

  bool HasRoom(const Rank& rank) const {
    const auto held = static_cast<int64_t>(rank.experts.size());
    return held < room_ || (held == room_ && larger_left_ > 0);
  }

  // Less loaded, then fewer experts; ranks are visited in ascending order.
  static bool Lighter(const Rank& a, const Rank& b) {
    return a.load != b.load ? a.load < b.load : a.experts.size() < b.experts.size();
  }

  template <typename Wanted>
  Rank* Lightest(const Wanted& wanted) {
    Rank* best = nullptr;
    for (Rank& rank : ranks_) {
      if (wanted(rank) && (best == nullptr || Lighter(rank, *best))) best = &rank;
    }
    return best;
  }

  void Add(Rank& rank, int expert) {
    if (static_cast<int64_t>(rank.experts.size()) == room_) --larger_left_;
    rank.experts.push_back(expert);
    rank.load += Share(expert);
  }

  void Place(int expert) {
    Rank* rank = Lightest([&](const Rank& r) { return HasRoom(r) && !r.Holds(expert); });
    rank != nullptr ? Add(*rank, expert) : PlaceBySwap(expert);
  }

  // Every rank with room holds the expert already: a full rank takes it and hands another expert,
  // its lightest that fits, to one with room. There is such an expert: the full rank holds at least
  // as many as the other, which holds one (this expert) that the full rank does not.
  void PlaceBySwap(int expert) {
    Rank* receiver = Lightest([&](const Rank& r) { return HasRoom(r); });
    Rank* full = Lightest([&](const Rank& r) { return !r.Holds(expert); });
    CONCLAVE_CHECK(receiver != nullptr && full != nullptr);
    int moved = -1;
    for (const int candidate : full->experts) {
      if (receiver->Holds(candidate)) continue;
      if (moved < 0 || Share(candidate) < Share(moved)) moved = candidate;
    }
    CONCLAVE_CHECK(moved >= 0);
    std::replace(full->experts.begin(), full->experts.end(), moved, expert);
    full->load += Share(expert) - Share(moved);
    Add(*receiver, moved);
  }

  const std::span<const uint64_t> load_;  // [experts]
  const int world_;
  std::vector<int> copies_;  // [experts]
  std::vector<Rank> ranks_;
  int64_t room_ = 0;         // experts that every rank holds
  int64_t larger_left_ = 0;  // ranks that may still get one more
};

}  // namespace

Placement PlacementFromLoad(const Config& config, int world, std::span<const uint64_t> load,
                            int replicas) {
  const auto experts = static_cast<size_t>(config.num_experts);
  CONCLAVE_CHECK(load.size() == experts * static_cast<size_t>(config.num_layers));
  Placement placement;
  placement.world = world;
  for (size_t layer = 0; layer < static_cast<size_t>(config.num_layers); ++layer) {
    placement.layers.push_back(
        LayerPlanner(load.subspan(layer * experts, experts), world, replicas).Plan());
  }
  return placement;
}

}  // namespace conclave::model
