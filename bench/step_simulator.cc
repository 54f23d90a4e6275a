#include "bench/step_simulator.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "kernels/ops.h"
#include "worker/computing_rank.h"

namespace conclave::bench {
namespace {

using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;
using internal::v1::EXCHANGE_MODE_UNSPECIFIED;

constexpr int kMaxStepTokens = 2048;      // the service's default
constexpr double kMxfp4Bytes = 4.25 / 8;  // of a weight, scales included
constexpr double kDenseBytes = 2;

template <typename T>
T Max(const std::vector<T>& values) {
  return *std::max_element(values.begin(), values.end());
}

template <typename T>
double Mean(const std::vector<T>& values) {
  return static_cast<double>(std::accumulate(values.begin(), values.end(), T{})) /
         static_cast<double>(values.size());
}

// The ranks' clocks during a step, and what they send.
class World {
 public:
  World(int size, const DeviceProfile& device, const LinkProfile& link)
      : device_(device), link_(link), clock_(size), busy_(size), sent_(size) {}

  // Each rank's own work, `seconds` [world] on a device of its own. Returns the longest.
  double Work(const std::vector<double>& seconds) {
    const double slowdown = Slowdown(seconds);
    for (size_t rank = 0; rank < clock_.size(); ++rank) {
      clock_[rank] += seconds[rank] * slowdown;
      busy_[rank] += seconds[rank] * slowdown;
    }
    return Max(seconds) * slowdown;
  }

  // `bytes(from, to)` among `ranks`, by their index in it; all leave together. Returns the time
  // since the last of them came.
  template <typename Bytes>
  double Exchange(const std::vector<int>& ranks, const Bytes& bytes) {
    double arrival = 0;
    for (const int rank : ranks) arrival = std::max(arrival, clock_[rank]);
    double slowest = 0;
    for (size_t i = 0; i < ranks.size(); ++i) {
      slowest = std::max(slowest, SecondsOf(ranks, i, bytes));
    }
    for (const int rank : ranks) clock_[rank] = arrival + slowest;
    return slowest;
  }

  double now() const { return Max(clock_); }
  const std::vector<double>& busy() const { return busy_; }
  const std::vector<int64_t>& sent() const { return sent_; }

 private:
  struct Transfers {
    int peers = 0;
    int64_t out = 0;
    int64_t in = 0;
    double Seconds(const LinkProfile::Tier& tier) const {
      if (peers == 0) return 0;
      return tier.latency + tier.per_peer * peers +
             static_cast<double>(std::max(out, in)) / tier.bytes_per_second;
    }
  };

  template <typename Bytes>
  double SecondsOf(const std::vector<int>& ranks, size_t self, const Bytes& bytes) {
    Transfers local;
    Transfers remote;
    for (size_t peer = 0; peer < ranks.size(); ++peer) {
      if (peer == self) continue;
      const int64_t out = bytes(self, peer);
      const int64_t in = bytes(peer, self);
      if (out == 0 && in == 0) continue;
      const bool near = ranks[peer] / link_.ranks_per_node == ranks[self] / link_.ranks_per_node;
      Transfers& tier = near ? local : remote;
      ++tier.peers;
      tier.out += out;
      tier.in += in;
      sent_[ranks[self]] += out;
    }
    return std::max(local.Seconds(link_.local), remote.Seconds(link_.remote));
  }

  // Of ranks that share cores: how many would run at once, were each as long as the longest.
  double Slowdown(const std::vector<double>& seconds) const {
    const double longest = Max(seconds);
    if (device_.cores == 0 || longest == 0) return 1;
    const double active = std::accumulate(seconds.begin(), seconds.end(), 0.0) / longest;
    const double wanted = active * device_.threads;
    const double used = std::min<double>(wanted, device_.cores);
    const double contention =
        device_.cores == 1 ? 0 : device_.contention * (used - 1) / (device_.cores - 1);
    return std::max(1.0, wanted / device_.cores) * (1 + std::max(0.0, contention)) /
           device_.threads;
  }

  const DeviceProfile& device_;
  const LinkProfile& link_;
  std::vector<double> clock_;
  std::vector<double> busy_;
  std::vector<int64_t> sent_;
};

// One step being replayed.
class Replay {
 public:
  Replay(const model::Config& config, const model::Placement& placement,
         const model::ParallelShape& shape, const DeviceProfile& device, const LinkProfile& link,
         const RoutingTrace& trace, int first, const SimulatedStep& step)
      : config_(config),
        placement_(placement),
        shape_(shape),
        device_(device),
        link_(link),
        trace_(trace),
        first_(first),
        step_(step),
        world_(shape.world(), device, link),
        all_(shape.world()) {
    std::iota(all_.begin(), all_.end(), 0);
    const kernels::DType activation =
        device.activation_bytes == 2 ? kernels::DType::kBf16 : kernels::DType::kF32;
    slot_bytes_ = kernels::MakeSlotLayout(activation, config.hidden_size, config.experts_per_token)
                      .slot_bytes;
    for (int group = 0, row = 0; group < shape.dp; ++group) {
      first_row_.push_back(row);
      row += step.rows[group];
    }
  }

  StepPrediction Run(const coordinator::ExchangeDecision& decision) {
    out_.mode = shape_.world() == 1 ? EXCHANGE_MODE_UNSPECIFIED : decision.mode;
    bucket_ = decision.bucket;
    out_.copies.resize(shape_.world());
    out_.pairs.resize(shape_.world());
    out_.pair_imbalance = out_.time_imbalance = 0;
    if (shape_.tp > 1) SumGroups(device_.activation_bytes);  // of the embedding
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      Attention(config_.layer_types[layer]);
      Experts(layer);
    }
    out_.pair_imbalance /= config_.num_layers;
    out_.time_imbalance /= config_.num_layers;
    Output();
    out_.seconds = world_.now() + device_.step;
    out_.other_seconds += device_.step;
    out_.busy = world_.busy();
    out_.sent_bytes = world_.sent();
    return std::move(out_);
  }

 private:
  bool partitioned() const { return shape_.tp > 1 && out_.mode != EXCHANGE_MODE_REPLICATED; }
  int RowsOf(int group) const { return step_.rows[group]; }
  // First row of a group that its tp rank routes, when the group's rows are partitioned.
  int64_t ShareBegin(int group, int tp_rank) const {
    return int64_t{RowsOf(group)} * tp_rank / shape_.tp;
  }
  int64_t Share(int rank) const {
    const int group = shape_.dp_rank(rank);
    const int tp_rank = shape_.tp_rank(rank);
    return ShareBegin(group, tp_rank + 1) - ShareBegin(group, tp_rank);
  }
  std::vector<int> GroupRanks(int group) const {
    std::vector<int> ranks(shape_.tp);
    std::iota(ranks.begin(), ranks.end(), group * shape_.tp);
    return ranks;
  }
  int64_t RowBytes(int value_bytes) const { return int64_t{config_.hidden_size} * value_bytes; }
  std::span<const uint16_t> Choices(int layer, int group, int64_t row) const {
    const int64_t token = (first_ + first_row_[group] + row) % trace_.tokens();
    return trace_.Of(static_cast<int>(token), layer);
  }

  double AttentionSeconds(model::LayerType type, int rows) const {
    if (rows == 0) return 0;
    const bool full = type == model::LayerType::kFull;
    const double keys = full ? step_.keys : std::min(step_.keys, config_.sliding_window);
    const double kv_width = 2.0 * config_.num_kv_heads * config_.head_dim / shape_.tp;
    const double readers = step_.prefill ? 1 : rows;
    const double flops = 4.0 * config_.num_heads * config_.head_dim / shape_.tp * rows * keys;
    const OpCost& cost = full ? device_.full_attention : device_.sliding_attention;
    return cost.Seconds(readers * keys * kv_width * device_.kv_bytes, flops);
  }

  double ProjectionSeconds(int rows) const {
    if (rows == 0) return 0;
    const double heads = config_.num_heads;
    const double width = (2 * heads + 2.0 * config_.num_kv_heads) * config_.head_dim;
    const double weights = width * config_.hidden_size / shape_.tp;
    return device_.dense.Seconds(weights * kDenseBytes, 2 * weights * rows) +
           device_.dense_extra.At(rows);
  }

  void Attention(model::LayerType type) {
    std::vector<double> seconds(shape_.world());
    for (int rank = 0; rank < shape_.world(); ++rank) {
      const int rows = RowsOf(shape_.dp_rank(rank));
      const auto routed = static_cast<double>(partitioned() ? Share(rank) : rows);
      seconds[rank] = ProjectionSeconds(rows) + AttentionSeconds(type, rows) +
                      (routed > 0 ? device_.small_ops.At(routed) : 0);
    }
    out_.attention_seconds += world_.Work(seconds);
    if (shape_.tp == 1) return;
    if (partitioned()) {
      ScatterGroups();
    } else {
      SumGroups(device_.partial_bytes);
    }
  }

  // All-reduce of every group's rows.
  void SumGroups(int value_bytes) {
    double longest = 0;
    for (int group = 0; group < shape_.dp; ++group) {
      const int64_t bytes = RowsOf(group) * RowBytes(value_bytes);
      if (bytes == 0) continue;
      const std::vector<int> ranks = GroupRanks(group);
      const bool at_once =
          bytes <= link_.direct_sum_bytes || (link_.pairs_at_once && shape_.tp == 2);
      const int64_t part = at_once ? bytes : bytes / shape_.tp;
      const auto each = [part](size_t, size_t) { return part; };
      double seconds = world_.Exchange(ranks, each);
      if (!at_once) seconds += world_.Exchange(ranks, each);
      longest = std::max(longest, seconds);
    }
    out_.exchange_seconds += longest;
    AddParts(value_bytes);
  }

  // Reduce-scatter of every group's partial sums of o_proj.
  void ScatterGroups() {
    double longest = 0;
    for (int group = 0; group < shape_.dp; ++group) {
      if (RowsOf(group) == 0) continue;
      const auto bytes = [&](size_t, size_t to) {
        return Share(group * shape_.tp + static_cast<int>(to)) * RowBytes(device_.partial_bytes);
      };
      longest = std::max(longest, world_.Exchange(GroupRanks(group), bytes));
    }
    out_.exchange_seconds += longest;
    AddParts(device_.partial_bytes);
  }

  void AddParts(int value_bytes) {
    std::vector<double> seconds(shape_.world());
    for (int rank = 0; rank < shape_.world(); ++rank) {
      const double bytes = static_cast<double>(RowsOf(shape_.dp_rank(rank))) *
                           static_cast<double>(RowBytes(value_bytes));
      if (bytes > 0) seconds[rank] = device_.sum.Seconds(bytes, 0);
    }
    out_.attention_seconds += world_.Work(seconds);
  }

  void GatherGroups() {
    double longest = 0;
    for (int group = 0; group < shape_.dp; ++group) {
      if (RowsOf(group) == 0) continue;
      const auto bytes = [&](size_t from, size_t) {
        return Share(group * shape_.tp + static_cast<int>(from)) *
               RowBytes(device_.activation_bytes);
      };
      longest = std::max(longest, world_.Exchange(GroupRanks(group), bytes));
    }
    out_.exchange_seconds += longest;
  }

  // What one layer's routing means for each rank.
  struct LayerWork {
    std::vector<int64_t> copies;  // [world, world] from, to; own ones included
    std::vector<int64_t> pairs;   // [world]
    std::vector<int> experts;     // [world] that at least one token chose
  };

  LayerWork Route(int layer) const {
    const int world = shape_.world();
    LayerWork work = {std::vector<int64_t>(static_cast<size_t>(world) * world),
                      std::vector<int64_t>(world), std::vector<int>(world)};
    const std::vector<std::vector<int>>& holders = placement_.layers[layer].ranks_of_expert;
    std::vector<bool> touched(static_cast<size_t>(world) * config_.num_experts);
    std::vector<int> last_copy(world, -1);
    int token = 0;
    for (int group = 0; group < shape_.dp; ++group) {
      int tp_rank = 0;
      for (int64_t row = 0; row < RowsOf(group); ++row, ++token) {
        while (partitioned() && row >= ShareBegin(group, tp_rank + 1)) ++tp_rank;
        const int source = group * shape_.tp + tp_rank;
        for (const uint16_t expert : Choices(layer, group, row)) {
          const int rank = out_.mode == EXCHANGE_MODE_REPLICATED
                               ? worker::ReplicaFor(holders[expert], expert)
                               : worker::ComputingRank(holders[expert], source);
          ++work.pairs[rank];
          const size_t mark = static_cast<size_t>(rank) * config_.num_experts + expert;
          if (!touched[mark]) ++work.experts[rank];
          touched[mark] = true;
          if (last_copy[rank] != token) ++work.copies[static_cast<size_t>(source) * world + rank];
          last_copy[rank] = token;
        }
      }
    }
    return work;
  }

  void Experts(int layer) {
    const LayerWork work = Route(layer);
    const bool exchanged = out_.mode == EXCHANGE_MODE_FIXED || out_.mode == EXCHANGE_MODE_EXACT;
    if (exchanged) Dispatch(work);
    Compute(work);
    if (exchanged) {
      Combine(work);
      if (partitioned()) GatherGroups();
    } else if (out_.mode == EXCHANGE_MODE_REPLICATED) {
      SumGroups(device_.partial_bytes);
    }
  }

  void Dispatch(const LayerWork& work) {
    const int world = shape_.world();
    for (int rank = 0; rank < world; ++rank) {
      for (int to = 0; to < world; ++to) {
        if (to != rank) out_.copies[rank] += work.copies[static_cast<size_t>(rank) * world + to];
      }
    }
    double own = device_.pack;
    if (out_.mode == EXCHANGE_MODE_EXACT) {
      own += device_.exact_layer;
      const auto count = [](size_t, size_t) { return int64_t{sizeof(int32_t)}; };
      out_.exchange_seconds += world_.Exchange(all_, count);
    }
    out_.exchange_seconds += world_.Work(std::vector<double>(world, own));
    const auto bytes = [&](size_t from, size_t to) {
      const int64_t slots =
          out_.mode == EXCHANGE_MODE_FIXED ? 1 + bucket_ : work.copies[from * world + to];
      return slots * slot_bytes_;
    };
    out_.exchange_seconds += world_.Exchange(all_, bytes);
  }

  void Combine(const LayerWork& work) {
    const auto world = static_cast<size_t>(shape_.world());
    const auto bytes = [&](size_t from, size_t to) {
      const int64_t rows =
          out_.mode == EXCHANGE_MODE_FIXED ? bucket_ : work.copies[to * world + from];
      return rows * RowBytes(device_.partial_bytes);
    };
    out_.exchange_seconds += world_.Exchange(all_, bytes);
  }

  void Compute(const LayerWork& work) {
    const double values = 3.0 * config_.hidden_size * config_.intermediate_size;
    const double expert_bytes = values * (config_.mxfp4 ? kMxfp4Bytes : kDenseBytes);
    std::vector<double> seconds(shape_.world());
    for (int rank = 0; rank < shape_.world(); ++rank) {
      out_.pairs[rank] += work.pairs[rank];
      if (work.pairs[rank] == 0) continue;
      seconds[rank] = device_.experts.Seconds(work.experts[rank] * expert_bytes,
                                              2 * values * static_cast<double>(work.pairs[rank]));
    }
    const double mean_pairs = Mean(work.pairs);
    const double mean_seconds = Mean(seconds);
    out_.pair_imbalance += mean_pairs == 0 ? 1 : static_cast<double>(Max(work.pairs)) / mean_pairs;
    out_.time_imbalance += mean_seconds == 0 ? 1 : Max(seconds) / mean_seconds;
    out_.expert_seconds += world_.Work(seconds);
  }

  // Output matrix and sampler; with tp > 1 the logits are transposed over the group and the tokens
  // gathered.
  void Output() {
    if (step_.prefill) return;
    std::vector<double> seconds(shape_.world());
    const double weights =
        static_cast<double>(config_.vocab_size) * config_.hidden_size / shape_.tp;
    for (int rank = 0; rank < shape_.world(); ++rank) {
      const int rows = RowsOf(shape_.dp_rank(rank));
      if (rows == 0) continue;
      seconds[rank] = device_.dense.Seconds(weights * kDenseBytes, 2 * weights * rows) +
                      device_.output_extra.At(rows);
    }
    out_.other_seconds += world_.Work(seconds);
    if (shape_.tp == 1) return;
    for (int group = 0; group < shape_.dp; ++group) {
      if (RowsOf(group) == 0) continue;
      const auto share = [&](size_t index) {
        return Share(group * shape_.tp + static_cast<int>(index));
      };
      const auto logits = [&](size_t from, size_t to) {
        const model::Range range = model::VocabRange(config_, shape_.tp, static_cast<int>(from));
        return share(to) * range.size() * int64_t{sizeof(float)};
      };
      const auto tokens = [&](size_t from, size_t) {
        return share(from) * int64_t{sizeof(int32_t)};
      };
      out_.other_seconds += world_.Exchange(GroupRanks(group), logits) / shape_.dp;
      out_.other_seconds += world_.Exchange(GroupRanks(group), tokens) / shape_.dp;
    }
  }

  const model::Config& config_;
  const model::Placement& placement_;
  const model::ParallelShape& shape_;
  const DeviceProfile& device_;
  const LinkProfile& link_;
  const RoutingTrace& trace_;
  const int first_;
  const SimulatedStep& step_;

  World world_;
  std::vector<int> all_;
  std::vector<int> first_row_;  // [dp] in the step
  int64_t slot_bytes_ = 0;
  int64_t bucket_ = 1;
  StepPrediction out_;
};

}  // namespace

Simulator::Simulator(const model::Config& config, const model::Placement& placement,
                     const model::ParallelShape& shape, DeviceProfile device, LinkProfile link,
                     coordinator::ExchangeChoice choice)
    : config_(config),
      placement_(placement),
      shape_(shape),
      device_(std::move(device)),
      link_(std::move(link)),
      choice_(choice) {}

StepPrediction Simulator::Run(const RoutingTrace& trace, int first,
                              const SimulatedStep& step) const {
  CONCLAVE_CHECK(static_cast<int>(step.rows.size()) == shape_.dp && trace.tokens() > 0);
  std::vector<coordinator::GroupRows> groups;
  for (const int rows : step.rows) groups.push_back({rows, step.prefill ? rows : 1});
  const absl::StatusOr<coordinator::ExchangePolicy> policy = coordinator::ExchangePolicy::Create(
      choice_, shape_, std::max(kMaxStepTokens, Max(step.rows)));
  CONCLAVE_CHECK(policy.ok());
  Replay replay(config_, placement_, shape_, device_, link_, trace, first, step);
  return replay.Run(policy->Decide(groups));
}

}  // namespace conclave::bench
