#include "coordinator/memory_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>

#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

// Share of a host's free memory that the cache may take unasked: the host has other uses for the
// rest, and page cache of the weights is one of them.
constexpr double kHostShare = 0.10;
// Of a GPU's memory, set aside: this share of it, or so much for each of its ranks where that is
// more. It is for the driver, and for each rank's context (0.5 GB), the kernels' own working memory
// (1.4 GB for 120b) and NCCL's buffers.
constexpr double kDeviceReserveShare = 0.07;
constexpr int64_t kRankReserveBytes = int64_t{2} << 30;

std::string Bytes(int64_t bytes) {
  constexpr double kMiB = 1 << 20;
  if (bytes < 1024 * kMiB) return fmt::format("{:.1f} MiB", bytes / kMiB);
  return fmt::format("{:.2f} GiB", bytes / (1024 * kMiB));
}

int64_t CacheBytes(const MemoryNeeds& needs, const internal::v1::CacheShape& cache) {
  return cache.full_blocks() * needs.full_block_bytes +
         cache.sliding_blocks() * needs.sliding_block_bytes;
}

std::string DomainName(const RankMemory& memory, size_t rank) {
  return memory.cuda ? fmt::format("the GPU of rank {}", rank)
                     : fmt::format("host {}", memory.host_id);
}

// Ranks that share one memory.
struct Domain {
  std::string name;
  bool cuda = false;
  int ranks = 0;
  int64_t total = std::numeric_limits<int64_t>::max();
  int64_t free = std::numeric_limits<int64_t>::max();
  int64_t held = 0;
  int64_t weights = 0;
  int64_t private_weights = 0;  // part of it that must be free

  int64_t available() const { return std::min(total, free + held); }
  int64_t reserve() const {
    if (!cuda) return 0;
    return std::max(static_cast<int64_t>(static_cast<double>(total) * kDeviceReserveShare),
                    ranks * kRankReserveBytes);
  }
  // What may be planned of all that is there, whatever is free now.
  int64_t usable() const { return total - reserve(); }
};

std::vector<Domain> Domains(const MemoryNeeds& needs, std::span<const RankMemory> ranks) {
  std::map<std::string, Domain> domains;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankMemory& memory = ranks[rank];
    Domain& domain = domains[memory.host_id];
    if (domain.ranks == 0) domain.name = DomainName(memory, rank);
    domain.cuda = memory.cuda;
    ++domain.ranks;
    domain.total = std::min(domain.total, memory.total_bytes);
    domain.free = std::min(domain.free, memory.free_bytes);
    domain.held += memory.held_bytes;
    domain.weights += needs.weight_bytes[rank];
  }
  std::vector<Domain> list;
  for (auto& [name, domain] : domains) {
    if (domain.cuda || needs.weights_are_private) {
      domain.private_weights = domain.weights;
    } else {
      domain.weights = std::min(domain.weights, needs.model_bytes);
    }
    list.push_back(std::move(domain));
  }
  return list;
}

int64_t SlidingBlocks(const MemoryNeeds& needs, int64_t budget) {
  const int64_t longest = needs.per_sequence.sliding;
  const int64_t most = needs.max_running * longest;
  const int64_t full_wanted = int64_t{needs.max_running} * needs.per_sequence.full;
  if (full_wanted * needs.full_block_bytes + most * needs.sliding_block_bytes <= budget)
    return most;
  // Each running sequence may want its next block at any moment, and steps bring chunks of prompts.
  constexpr int64_t kPromptsAtOnce = 4;
  const int64_t running =
      int64_t{needs.max_running} * (needs.decoding_sliding + 1) + kPromptsAtOnce * longest;
  // With n of them for every kCheckpointTokens of full blocks, how many come out.
  const int64_t kept = needs.decoding_sliding;
  const int64_t together =
      kept * needs.sliding_block_bytes + kCheckpointTokens / kBlockTokens * needs.full_block_bytes;
  const int64_t for_cache = together == 0 ? 0 : budget / together * kept;
  const int64_t fits = budget / 2 / std::max<int64_t>(1, needs.sliding_block_bytes);
  return std::max(longest, std::min({std::max(running, for_cache), most, fits}));
}

// Bytes of cache per rank that the domain grants unasked.
int64_t Grant(const MemoryNeeds& needs, const Domain& domain) {
  if (domain.cuda) {
    const int64_t left = std::min(domain.usable(), domain.available()) - domain.weights;
    return left / domain.ranks - needs.activation_bytes;
  }
  const int64_t left = domain.available() - domain.private_weights;
  return static_cast<int64_t>(left * kHostShare) / domain.ranks;
}

absl::Status CheckFits(const MemoryNeeds& needs, const Domain& domain, int64_t cache_bytes) {
  const int64_t cache = cache_bytes * domain.ranks;
  const int64_t activations = needs.activation_bytes * domain.ranks;
  const bool fits_free = domain.private_weights + cache + activations <= domain.available();
  const bool fits_total = domain.weights + cache + activations <= domain.usable();
  if (fits_free && fits_total) return absl::OkStatus();
  const std::string aside =
      domain.cuda
          ? fmt::format(", beside {} set aside for the ranks' own needs", Bytes(domain.reserve()))
          : "";
  return absl::FailedPreconditionError(fmt::format(
      "{} with {} rank(s) has {} of memory, {} free; needed are {} of weights, {} of KV cache and "
      "{} of activations{}: use more hosts, or lower --kv-cache-bytes or --max-step-tokens",
      domain.name, domain.ranks, Bytes(domain.total), Bytes(domain.available()),
      Bytes(domain.weights), Bytes(cache), Bytes(activations), aside));
}

}  // namespace

absl::StatusOr<internal::v1::CacheShape> SizeCache(const MemoryNeeds& needs, int64_t budget) {
  const int64_t sliding = SlidingBlocks(needs, budget);
  const int64_t left = budget - sliding * needs.sliding_block_bytes;
  const int64_t wanted = int64_t{needs.max_running} * needs.per_sequence.full;
  const int64_t full =
      left < 0 ? 0 : std::min(wanted, left / std::max<int64_t>(1, needs.full_block_bytes));
  if (full < 1) {
    return absl::FailedPreconditionError(fmt::format(
        "a KV cache of {} bytes per rank is too small: one sequence needs {} sliding blocks of {} "
        "bytes and at least one full block of {} bytes; raise --kv-cache-bytes or free memory",
        std::max<int64_t>(0, budget), needs.per_sequence.sliding, needs.sliding_block_bytes,
        needs.full_block_bytes));
  }
  internal::v1::CacheShape cache;
  cache.set_block_tokens(kBlockTokens);
  cache.set_full_blocks(full);
  cache.set_sliding_blocks(sliding);
  cache.set_max_sequences(needs.max_running);
  return cache;
}

absl::StatusOr<internal::v1::CacheShape> FitMemory(const MemoryNeeds& needs,
                                                   std::span<const RankMemory> ranks,
                                                   int64_t kv_cache_bytes) {
  const std::vector<Domain> domains = Domains(needs, ranks);
  int64_t budget = kv_cache_bytes;
  if (budget == 0) {
    budget = std::numeric_limits<int64_t>::max();
    for (const Domain& domain : domains) {
      // What cannot hold the weights is refused for that, not for the cache it has no room for.
      RETURN_IF_ERROR(CheckFits(needs, domain, 0));
      budget = std::min(budget, Grant(needs, domain));
    }
  }
  ASSIGN_OR_RETURN(const internal::v1::CacheShape cache, SizeCache(needs, budget));
  for (const Domain& domain : domains) {
    RETURN_IF_ERROR(CheckFits(needs, domain, CacheBytes(needs, cache)));
  }
  return cache;
}

absl::Status CheckRoom(std::span<const RankMemory> ranks, std::span<const int64_t> more) {
  struct Room {
    std::string name;
    int64_t free = std::numeric_limits<int64_t>::max();
    int64_t more = 0;
  };
  std::map<std::string, Room> rooms;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    Room& room = rooms[ranks[rank].host_id];
    if (room.name.empty()) room.name = DomainName(ranks[rank], rank);
    room.free = std::min(room.free, ranks[rank].free_bytes);
    room.more += more[rank];
  }
  for (const auto& [id, room] : rooms) {
    if (room.more <= room.free) continue;
    return absl::FailedPreconditionError(
        fmt::format("{} has {} free, and the new placement needs {} more while it is loaded: use "
                    "fewer replicas, or lower --kv-cache-bytes",
                    room.name, Bytes(room.free), Bytes(room.more)));
  }
  return absl::OkStatus();
}

}  // namespace conclave::coordinator
