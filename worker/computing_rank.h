#ifndef CONCLAVE_WORKER_COMPUTING_RANK_H_
#define CONCLAVE_WORKER_COMPUTING_RANK_H_

#include <algorithm>
#include <span>

namespace conclave::worker {

// The rank that computes `source`'s copies for an expert: itself when it holds it, else one of the
// holders, so that the sources share out the replicas.
inline int ComputingRank(std::span<const int> holders, int source) {
  if (std::find(holders.begin(), holders.end(), source) != holders.end()) return source;
  return holders[static_cast<size_t>(source) % holders.size()];
}

// The rank that computes an expert for all where every rank has the same rows.
inline int ReplicaFor(std::span<const int> holders, int expert) {
  return holders[static_cast<size_t>(expert) % holders.size()];
}

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_COMPUTING_RANK_H_
