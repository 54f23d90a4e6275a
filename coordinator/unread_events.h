#ifndef CONCLAVE_COORDINATOR_UNREAD_EVENTS_H_
#define CONCLAVE_COORDINATOR_UNREAD_EVENTS_H_

// Events of a stream that its client has not taken yet: what they hold, and how many go into one
// message.

#include <algorithm>
#include <cstddef>
#include <deque>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/engine.h"

namespace conclave::coordinator {

// With 20 others each, a message stays well under the 4 MB that gRPC's clients take by default,
// however many wait for a slow reader.
inline constexpr size_t kMaxEventsPerMessage = 4096;

// What a TokenEvent or PromptLogprob takes in memory.
template <typename Event>
size_t BytesOf(const Event& event) {
  constexpr size_t kAllocation = 16;
  const size_t top = event.top.size() * sizeof(event.top.front());
  return sizeof(Event) + (top > 0 ? top + kAllocation : 0);
}

// Of a TokenEvent or PromptLogprob. Not thread-safe.
template <typename Event>
class UnreadEvents {
 public:
  void Append(std::span<const Event> events) {
    for (const Event& event : events) bytes_ += BytesOf(event);
    events_.insert(events_.end(), events.begin(), events.end());
  }

  // The oldest that go into one message.
  std::vector<Event> Take() {
    const size_t count = std::min(events_.size(), kMaxEventsPerMessage);
    const auto end = events_.begin() + static_cast<std::ptrdiff_t>(count);
    std::vector<Event> taken(std::move_iterator(events_.begin()), std::move_iterator(end));
    events_.erase(events_.begin(), end);
    for (const Event& event : taken) bytes_ -= BytesOf(event);
    return taken;
  }

  void Clear() { *this = {}; }
  bool empty() const { return events_.empty(); }
  size_t bytes() const { return bytes_; }

 private:
  std::deque<Event> events_;
  size_t bytes_ = 0;
};

inline absl::Status ReadsTooSlowly(int max_bytes) {
  return absl::ResourceExhaustedError(
      "the client reads too slowly: " + std::to_string(max_bytes) +
      " bytes of results wait for it, the most there may be (--max-unread-bytes)");
}

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_UNREAD_EVENTS_H_
