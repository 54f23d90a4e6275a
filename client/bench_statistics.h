#ifndef CONCLAVE_CLIENT_BENCH_STATISTICS_H_
#define CONCLAVE_CLIENT_BENCH_STATISTICS_H_

// What a load of equal requests measures: counts, latencies, and the rate of decoding while all
// streams decode. Pure arithmetic on the times it is given.
//
//   RunStatistics run({.streams = 2, .input_len = 8, .output_len = 4}, now);
//   RequestTrace request(now);
//   run.OnTokens(request, now, 1);  // a message with one token arrived
//   run.OnEnd(request, now, RequestEnd::kCompleted);

#include <cstdint>
#include <map>
#include <optional>

#include "absl/time/time.h"

namespace conclave::client {

// A set of durations. Memory grows with the distinct microseconds, not with the values.
class Distribution {
 public:
  // The value `count` times.
  void Add(absl::Duration value, int64_t count = 1);

  int64_t count() const { return count_; }
  // Of the values as given; zero when there is none.
  absl::Duration Mean() const;
  // Nearest rank: the smallest value that at least `percent` % of the values do not exceed, to the
  // microsecond. Zero when there is none. 100 is the largest value.
  absl::Duration Percentile(int percent) const;

 private:
  std::map<int64_t, int64_t> counts_;  // microseconds -> how often
  int64_t count_ = 0;
  absl::Duration sum_;
};

// The time in which `streams` requests were past their first token and none of them had ended: the
// time of decoding with the whole batch. It may open many times; tokens count from after an
// opening up to and with the message that closes it. Times must not fall.
class SteadyWindow {
 public:
  explicit SteadyWindow(int streams) : streams_(streams) {}

  void OnFirstTokens(absl::Time now);
  // Tokens after the first message of their request.
  void OnTokens(int64_t tokens);
  // A request that had a first token ended.
  void OnEnd(absl::Time now);

  // Of the windows that have closed.
  absl::Duration length() const { return length_; }
  int64_t tokens() const { return tokens_; }
  int64_t windows() const { return windows_; }

 private:
  const int streams_;
  int decoding_ = 0;
  std::optional<absl::Time> opened_;  // set while all decode
  int64_t open_tokens_ = 0;           // since then
  absl::Duration length_;
  int64_t tokens_ = 0;
  int64_t windows_ = 0;
};

// One request under way.
struct RequestTrace {
  explicit RequestTrace(absl::Time now) : start(now) {}

  absl::Time start;
  absl::Time first;  // message with tokens
  absl::Time last;   // message with tokens
  int64_t first_tokens = 0;
  int64_t tokens = 0;
  bool decoding = false;  // past its first token, and more are to come
};

enum class RequestEnd { kCompleted, kFailed, kCancelled };

// Of one completed request, as the server tells it.
struct ServerTimes {
  absl::Duration queue;
  // From admission until the first token left the scheduler.
  absl::Duration prefill;
};

class RunStatistics {
 public:
  struct Shape {
    int streams = 1;
    int64_t input_len = 0;   // tokens of each prompt
    int64_t output_len = 0;  // tokens that each request generates
  };

  RunStatistics(const Shape& shape, absl::Time start);

  // A message with `tokens` tokens, at least one, arrived at `now`. Times must not fall over all
  // requests together.
  void OnTokens(RequestTrace& request, absl::Time now, int64_t tokens);
  // `server`: when the request completed and the server sent its timings.
  void OnEnd(RequestTrace& request, absl::Time now, RequestEnd end,
             const std::optional<ServerTimes>& server = std::nullopt);

  const Shape& shape() const { return shape_; }
  int64_t completed() const { return completed_; }
  int64_t failed() const { return failed_; }
  int64_t cancelled() const { return cancelled_; }
  // Of the prompts whose first token arrived, and all tokens that arrived, completed or not.
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t output_tokens() const { return output_tokens_; }
  // From the start until the last request ended.
  absl::Duration length() const { return end_ - start_; }

  // From the request until the first message with tokens.
  const Distribution& first_token() const { return first_token_; }
  // For each token after the first message: the gap before its message over the message's tokens.
  const Distribution& between_tokens() const { return between_tokens_; }
  // For each completed request: from first to last message, over the tokens after the first.
  const Distribution& per_token() const { return per_token_; }
  // For each completed request: from the request until the stream's end.
  const Distribution& whole() const { return whole_; }
  // On the server, for each completed request.
  const Distribution& queue() const { return queue_; }
  const Distribution& prefill() const { return prefill_; }
  const SteadyWindow& steady() const { return steady_; }

 private:
  const Shape shape_;
  const absl::Time start_;
  absl::Time end_;
  int64_t completed_ = 0;
  int64_t failed_ = 0;
  int64_t cancelled_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;
  Distribution first_token_;
  Distribution between_tokens_;
  Distribution per_token_;
  Distribution whole_;
  Distribution queue_;
  Distribution prefill_;
  SteadyWindow steady_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_STATISTICS_H_
