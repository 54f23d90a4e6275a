#ifndef CONCLAVE_COORDINATOR_FAIR_SHARES_H_
#define CONCLAVE_COORDINATOR_FAIR_SHARES_H_

// Tokens served to each user that has requests: who had the fewest is next.

#include <cstdint>
#include <map>
#include <string>

namespace conclave::coordinator {

// Owned by the scheduler thread. Knows only users with open requests, so it does not grow.
class FairShares {
 public:
  // One more request of the user. A user who was away starts level with the one admitted last:
  // neither does absence earn a claim, nor does having been served before cost one.
  void Open(const std::string& user) {
    const auto [entry, fresh] = users_.try_emplace(user);
    if (fresh) entry->second.served = level_;
    ++entry->second.open;
  }
  void Close(const std::string& user) {
    const auto entry = users_.find(user);
    if (entry != users_.end() && --entry->second.open == 0) users_.erase(entry);
  }

  // The user's request was admitted, and may take so many tokens.
  void Charge(const std::string& user, int64_t tokens) {
    level_ = users_[user].served;
    users_[user].served += tokens;
  }
  // It did not take that many.
  void Refund(const std::string& user, int64_t tokens) {
    const auto entry = users_.find(user);
    if (entry != users_.end()) entry->second.served -= tokens;
  }

  // Of a user with open requests, as long as there are some.
  const int64_t& served(const std::string& user) const { return users_.at(user).served; }
  int users() const { return static_cast<int>(users_.size()); }

 private:
  struct User {
    int64_t served = 0;
    int open = 0;
  };
  std::map<std::string, User> users_;
  int64_t level_ = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_FAIR_SHARES_H_
