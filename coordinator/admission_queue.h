#ifndef CONCLAVE_COORDINATOR_ADMISSION_QUEUE_H_
#define CONCLAVE_COORDINATOR_ADMISSION_QUEUE_H_

// Sequences that wait to be admitted, and which is next:
//
//   1. those that were preempted, by rank: they have answered their users in part;
//   2. at every eighth turn, the one that has waited longest: nobody starves;
//   3. else the highest priority; among equals the user who was served least (coordinator/
//      fair_shares.h); among that user's, the earliest.
//
// The next one is never passed over because a smaller one would fit.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/fair_shares.h"
#include "coordinator/sequence.h"

namespace conclave::coordinator {

// One admission in so many goes to the sequence that has waited longest.
inline constexpr int kTurnsPerOldest = 8;

// Owned by the scheduler thread.
class AdmissionQueue {
 public:
  // Borrows `shares`, where the users of all sequences that wait have open requests.
  explicit AdmissionQueue(const FairShares& shares) : shares_(shares) {}

  void Add(std::unique_ptr<Sequence> sequence);
  // One that was admitted before.
  void AddResumed(std::unique_ptr<Sequence> sequence);

  // Null when nobody waits.
  Sequence* Next() const;

  // The sequence that waits under `id` leaves, admitted or not.
  std::unique_ptr<Sequence> Admit(RequestId id);
  std::unique_ptr<Sequence> Remove(RequestId id);

  // At most so many would be admitted before a sequence of this priority and user, if nobody else
  // came.
  int Ahead(int priority, const std::string& user) const;

  template <typename Visit>
  void ForEach(const Visit& visit) const {
    for (const auto& [id, entry] : waiting_) visit(*entry.sequence);
  }
  int size() const { return static_cast<int>(waiting_.size()); }
  bool empty() const { return waiting_.empty(); }

 private:
  struct Entry {
    std::unique_ptr<Sequence> sequence;
    bool resumed = false;
  };
  struct ByRank {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->RanksAbove(*b); }
  };
  using Ranked = std::set<Sequence*, ByRank>;
  struct User {
    const int64_t* served = nullptr;  // of shares_
    Ranked sequences;                 // not empty
  };

  const FairShares& shares_;
  std::map<RequestId, Entry> waiting_;  // ids rise with arrival
  Ranked resumed_;
  std::map<std::string, User> by_user_;  // all others
  int turn_ = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ADMISSION_QUEUE_H_
