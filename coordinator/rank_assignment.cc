#include "coordinator/rank_assignment.h"

#include <algorithm>

#include "base/check.h"

namespace conclave::coordinator {
namespace {

constexpr int kSpare = -1;

class Assigner {
 public:
  Assigner(std::span<const RankCandidate> workers, const model::ParallelShape& shape)
      : workers_(workers), ranks_(workers.size(), kSpare), hosts_(shape.world()) {}

  void KeepPrevious() {
    for (size_t worker = 0; worker < workers_.size(); ++worker) {
      const std::optional<int> claim = workers_[worker].previous;
      if (!claim.has_value() || *claim < 0 || *claim >= static_cast<int>(hosts_.size())) continue;
      if (!hosts_[*claim].has_value()) Place(worker, *claim);
    }
  }

  // The ranks [first, first + count) of one tp group.
  void FillGroup(int first, int count) {
    const auto group = std::span(hosts_).subspan(first, count);
    const auto held = std::find_if(group.begin(), group.end(), [](const auto& h) { return h; });
    std::string_view host = held == group.end() ? std::string_view() : **held;
    for (int rank = first; rank < first + count; ++rank) {
      if (hosts_[rank].has_value()) continue;
      if (CountOn(host) == 0) {
        host = HostFor(std::count(group.begin(), group.end(), std::nullopt));
      }
      Place(FirstOn(host), rank);
    }
  }

  std::vector<int> ranks() && { return std::move(ranks_); }

 private:
  void Place(size_t worker, int rank) {
    ranks_[worker] = rank;
    hosts_[rank] = workers_[worker].host;
  }
  bool IsFreeOn(size_t worker, std::string_view host) const {
    return ranks_[worker] == kSpare && workers_[worker].host == host;
  }
  int64_t CountOn(std::string_view host) const {
    int64_t count = 0;
    for (size_t worker = 0; worker < workers_.size(); ++worker) count += IsFreeOn(worker, host);
    return count;
  }
  size_t FirstOn(std::string_view host) const {
    size_t worker = 0;
    while (!IsFreeOn(worker, host)) ++worker;
    return worker;
  }
  // With the most free workers up to `wanted`; of equals the one whose worker came first.
  std::string_view HostFor(int64_t wanted) const {
    std::string_view best;
    int64_t most = 0;
    for (size_t worker = 0; worker < workers_.size(); ++worker) {
      if (ranks_[worker] != kSpare) continue;
      const int64_t count = std::min(wanted, CountOn(workers_[worker].host));
      if (count <= most) continue;
      most = count;
      best = workers_[worker].host;
    }
    CONCLAVE_CHECK(most > 0);
    return best;
  }

  const std::span<const RankCandidate> workers_;
  std::vector<int> ranks_;                              // [workers]
  std::vector<std::optional<std::string_view>> hosts_;  // [ranks] of whoever has it
};

}  // namespace

std::vector<int> AssignRanks(std::span<const RankCandidate> workers,
                             const model::ParallelShape& shape) {
  CONCLAVE_CHECK(static_cast<int>(workers.size()) >= shape.world());
  Assigner assigner(workers, shape);
  assigner.KeepPrevious();
  for (int group = 0; group < shape.dp; ++group) {
    assigner.FillGroup(group * shape.tp, shape.tp);
  }
  return std::move(assigner).ranks();
}

}  // namespace conclave::coordinator
