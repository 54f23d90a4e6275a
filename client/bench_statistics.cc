#include "client/bench_statistics.h"

#include <algorithm>
#include <utility>

namespace conclave::client {

void Distribution::Add(absl::Duration value, int64_t count) {
  // To the nearest microsecond.
  counts_[absl::ToInt64Microseconds(value + absl::Nanoseconds(500))] += count;
  count_ += count;
  sum_ += value * count;
}

absl::Duration Distribution::Mean() const {
  return count_ == 0 ? absl::ZeroDuration() : sum_ / count_;
}

absl::Duration Distribution::Percentile(int percent) const {
  // At least one, so that 0 % is the smallest value.
  const int64_t rank = std::max<int64_t>(1, (count_ * percent + 99) / 100);
  int64_t seen = 0;
  for (const auto& [micros, count] : counts_) {
    seen += count;
    if (seen >= rank) return absl::Microseconds(micros);
  }
  return absl::ZeroDuration();
}

void SteadyWindow::OnFirstTokens(absl::Time now) {
  ++decoding_;
  if (decoding_ != streams_) return;
  opened_ = now;
  open_tokens_ = 0;
}

void SteadyWindow::OnTokens(int64_t tokens) { open_tokens_ += tokens; }

void SteadyWindow::OnEnd(absl::Time now) {
  --decoding_;
  const auto opened = std::exchange(opened_, std::nullopt);
  if (!opened.has_value() || now == *opened) return;
  length_ += now - *opened;
  tokens_ += open_tokens_;
  ++windows_;
}

RunStatistics::RunStatistics(const Shape& shape, absl::Time start)
    : shape_(shape), start_(start), end_(start), steady_(shape.streams) {}

void RunStatistics::OnTokens(RequestTrace& request, absl::Time now, int64_t tokens) {
  output_tokens_ += tokens;
  if (request.tokens == 0) {
    prompt_tokens_ += shape_.input_len;
    first_token_.Add(now - request.start);
    request.first = now;
    request.first_tokens = tokens;
    request.decoding = true;
    steady_.OnFirstTokens(now);
  } else {
    between_tokens_.Add((now - request.last) / tokens, tokens);
    steady_.OnTokens(tokens);
  }
  request.last = now;
  request.tokens += tokens;
  // The last token ends the decoding; the stream's own end may come later.
  if (request.decoding && request.tokens >= shape_.output_len) {
    request.decoding = false;
    steady_.OnEnd(now);
  }
}

void RunStatistics::OnEnd(RequestTrace& request, absl::Time now, RequestEnd end,
                          const std::optional<ServerTimes>& server) {
  end_ = now;
  if (std::exchange(request.decoding, false)) steady_.OnEnd(now);
  if (end != RequestEnd::kCompleted) {
    ++(end == RequestEnd::kFailed ? failed_ : cancelled_);
    return;
  }
  ++completed_;
  whole_.Add(now - request.start);
  if (request.tokens > request.first_tokens) {
    per_token_.Add((request.last - request.first) / (request.tokens - request.first_tokens));
  }
  if (server.has_value()) {
    queue_.Add(server->queue);
    prefill_.Add(server->prefill);
  }
}

}  // namespace conclave::client
