#include "coordinator/admission_queue.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace conclave::coordinator {

void AdmissionQueue::Add(std::unique_ptr<Sequence> sequence) {
  const std::string& name = sequence->request().user;
  User& user = by_user_[name];
  user.served = &shares_.served(name);
  user.sequences.insert(sequence.get());
  const RequestId id = sequence->id();
  waiting_[id] = {.sequence = std::move(sequence), .resumed = false};
}

void AdmissionQueue::AddResumed(std::unique_ptr<Sequence> sequence) {
  resumed_.insert(sequence.get());
  const RequestId id = sequence->id();
  waiting_[id] = {.sequence = std::move(sequence), .resumed = true};
}

Sequence* AdmissionQueue::Next() const {
  if (waiting_.empty()) return nullptr;
  if (!resumed_.empty()) return *resumed_.begin();
  if (turn_ % kTurnsPerOldest == kTurnsPerOldest - 1) {
    return waiting_.begin()->second.sequence.get();
  }
  const auto precedence = [](const auto& user) {
    const Sequence& head = **user.second.sequences.begin();
    return std::make_tuple(-head.request().priority, *user.second.served, head.id());
  };
  const auto next =
      std::min_element(by_user_.begin(), by_user_.end(),
                       [&](const auto& a, const auto& b) { return precedence(a) < precedence(b); });
  return *next->second.sequences.begin();
}

std::unique_ptr<Sequence> AdmissionQueue::Admit(RequestId id) {
  if (resumed_.empty()) ++turn_;
  return Remove(id);
}

std::unique_ptr<Sequence> AdmissionQueue::Remove(RequestId id) {
  const auto entry = waiting_.find(id);
  CONCLAVE_CHECK(entry != waiting_.end());
  Sequence* sequence = entry->second.sequence.get();
  if (entry->second.resumed) {
    resumed_.erase(sequence);
  } else {
    const auto user = by_user_.find(sequence->request().user);
    user->second.sequences.erase(sequence);
    if (user->second.sequences.empty()) by_user_.erase(user);
  }
  std::unique_ptr<Sequence> removed = std::move(entry->second.sequence);
  waiting_.erase(entry);
  return removed;
}

int AdmissionQueue::Ahead(int priority, const std::string& user) const {
  int all = 0;
  int own = 0;
  int users = by_user_.contains(user) ? 0 : 1;
  for (const auto& [name, waiting] : by_user_) {
    ++users;
    const auto ahead = static_cast<int>(std::count_if(
        waiting.sequences.begin(), waiting.sequences.end(),
        [priority](const Sequence* other) { return other->request().priority >= priority; }));
    all += ahead;
    if (name == user) own = ahead;
  }
  return static_cast<int>(resumed_.size()) + std::min(all, (own + 1) * users - 1);
}

}  // namespace conclave::coordinator
