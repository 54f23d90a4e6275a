#include "coordinator/drainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/logging.h"
#include "base/retry_delay.h"

namespace conclave::coordinator {
namespace {

constexpr double kMostSeconds = 86'400;

// After the limit, for clients to hear how their calls ended; one that does not read is left.
constexpr absl::Duration kFlushLimit = absl::Seconds(2);

// Another coordinator, or this one resumed: soon.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

}  // namespace

void Drainer::Begin(const v1::DrainRequest& request, Engine::DrainDone done) {
  if (request.resume()) {
    if (request.has_limit_seconds()) {
      return done(absl::InvalidArgumentError("limit_seconds is set beside resume"));
    }
    if (const absl::Status resumed = Resume(); !resumed.ok()) return done(resumed);
    return done(v1::DrainResponse());
  }
  const double seconds = request.limit_seconds();
  if (request.has_limit_seconds() && !(seconds >= 0 && seconds <= kMostSeconds)) {
    return done(absl::InvalidArgumentError(
        fmt::format("limit_seconds is {}: it must be between 0 and {}", seconds, kMostSeconds)));
  }
  Start(request.has_limit_seconds() ? absl::Seconds(seconds) : default_limit_, std::move(done));
}

void Drainer::BeginForGood(Engine::DrainDone done) {
  for_good_ = true;
  Start(default_limit_, std::move(done));
}

void Drainer::Start(absl::Duration limit, Engine::DrainDone done) {
  const absl::Time now = clock_.Now();
  if (!draining_) {
    draining_ = true;
    calls_at_begin_ = static_cast<uint32_t>(std::max(0, calls_.admitted()));
    cut_ = 0;
    was_cut_ = false;
    limit_ = absl::InfiniteFuture();
    base::Log().info("event=drain_begins calls={} limit={} for_good={}", calls_at_begin_,
                     absl::FormatDuration(limit), for_good_);
  }
  limit_ = std::min(limit_, now + limit);
  waiting_.emplace_back(now, std::move(done));
}

absl::Status Drainer::Resume() {
  if (for_good_) return absl::FailedPreconditionError("the coordinator has been told to stop");
  if (!draining_) return absl::OkStatus();
  draining_ = false;
  base::Log().info("event=drain_undone");
  Fail(absl::AbortedError("another call resumed the service"));
  return absl::OkStatus();
}

void Drainer::Advance(int posted) {
  if (!draining_ || waiting_.empty()) return;
  const absl::Time now = clock_.Now();
  const auto open = [&] { return posted > 0 || !scheduler_.idle() || calls_.admitted() > 0; };
  if (open() && now >= limit_ && !was_cut_) {
    was_cut_ = true;
    cut_ = static_cast<uint32_t>(std::max(0, calls_.admitted()));
    scheduler_.EndAll(base::WithRetryDelay(
        absl::UnavailableError("the service is drained, and the limit for what was running has "
                               "passed; what was sent until now is a prefix of the output"),
        kRetryDelay));
  }
  if (open() && !(was_cut_ && now >= limit_ + kFlushLimit)) return;
  base::Log().info("event=drained calls={} cut={}", calls_at_begin_, cut_);
  v1::DrainResponse response;
  response.set_calls(calls_at_begin_);
  response.set_cut(cut_);
  response.set_draining(true);
  for (auto& [since, done] : std::exchange(waiting_, {})) {
    response.set_seconds(absl::ToDoubleSeconds(now - since));
    done(response);
  }
}

void Drainer::Fail(const absl::Status& status) {
  for (auto& [since, done] : std::exchange(waiting_, {})) done(status);
}

}  // namespace conclave::coordinator
