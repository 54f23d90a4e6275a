#include "client/bench_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "client/json_shapes.h"

namespace conclave::client {
namespace {

constexpr absl::Duration kProgressPeriod = absl::Milliseconds(500);

std::optional<ServerTimes> TimesOf(const v1::Finish& finish) {
  if (!finish.has_timings()) return std::nullopt;
  const v1::Timings& timings = finish.timings();
  const double prefill = timings.first_token_seconds() - timings.queue_seconds();
  return ServerTimes{absl::Seconds(timings.queue_seconds()), absl::Seconds(std::max(0.0, prefill))};
}

class Load {
 public:
  Load(Client& client, const LoadOptions& options, Cancellation& cancellation)
      : client_(client),
        options_(options),
        cancellation_(cancellation),
        start_(base::SteadyNow()),
        running_(options.streams),
        statistics_({.streams = options.streams,
                     .input_len = options.shape.input_len,
                     .output_len = options.shape.output_len},
                    start_) {}

  LoadResult Run(const std::function<void(const LoadProgress&)>& on_progress) {
    std::vector<std::thread> streams;
    for (int i = 0; i < options_.streams; ++i) streams.emplace_back([this] { RunStream(); });
    while (!WaitForEnd()) on_progress(Progress());
    for (std::thread& stream : streams) stream.join();
    absl::MutexLock lock(&mutex_);
    return {std::move(statistics_), begun_, std::move(error_)};
  }

 private:
  // One at a time per stream: what is recorded is the time between the server and this thread.
  void RunStream() {
    while (const auto index = Begin()) {
      if (!RunRequest(MakeBenchRequest(options_.shape, options_.first_index + *index))) break;
    }
    absl::MutexLock lock(&mutex_);
    --running_;
  }

  std::optional<uint64_t> Begin() {
    absl::MutexLock lock(&mutex_);
    if (cancellation_.cancelled()) return std::nullopt;
    const bool more = options_.requests > 0 ? begun_ < options_.requests
                                            : begun_ < options_.streams ||
                                                  base::SteadyNow() < start_ + options_.duration;
    if (!more) return std::nullopt;
    return static_cast<uint64_t>(begun_++);
  }

  // Whether it completed.
  bool RunRequest(const v1::GenerateRequest& request) {
    RequestTrace trace(base::SteadyNow());
    const auto finish =
        client_.Generate(request, [&](const v1::GenerateResponse& part) { OnPart(trace, part); },
                         {.timeout = options_.timeout, .cancellation = &cancellation_});
    absl::Status status = finish.status();
    if (status.ok() && trace.tokens != options_.shape.output_len) {
      status = absl::InternalError(fmt::format("the server sent {} of {} tokens, finish reason {}",
                                               trace.tokens, options_.shape.output_len,
                                               FinishReasonName(finish->reason())));
    }
    return OnEnd(trace, status, finish.ok() ? TimesOf(*finish) : std::nullopt);
  }

  void OnPart(RequestTrace& trace, const v1::GenerateResponse& part) {
    if (part.tokens().empty()) return;
    absl::MutexLock lock(&mutex_);
    // Read under the mutex: the times of all streams together do not fall.
    statistics_.OnTokens(trace, base::SteadyNow(), part.tokens_size());
  }

  bool OnEnd(RequestTrace& trace, const absl::Status& status,
             const std::optional<ServerTimes>& server) {
    RequestEnd end = RequestEnd::kCompleted;
    if (!status.ok()) {
      end = cancellation_.cancelled() ? RequestEnd::kCancelled : RequestEnd::kFailed;
    }
    absl::MutexLock lock(&mutex_);
    statistics_.OnEnd(trace, base::SteadyNow(), end, server);
    if (end == RequestEnd::kFailed && error_.ok()) error_ = status;
    return end == RequestEnd::kCompleted;
  }

  // False after a period in which streams still ran.
  bool WaitForEnd() {
    absl::MutexLock lock(&mutex_);
    const auto ended = [this] { return running_ == 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&ended), kProgressPeriod);
  }

  LoadProgress Progress() {
    absl::MutexLock lock(&mutex_);
    return {statistics_.completed(), statistics_.output_tokens(), base::SteadyNow() - start_};
  }

  Client& client_;
  const LoadOptions& options_;
  Cancellation& cancellation_;
  const absl::Time start_;

  absl::Mutex mutex_;  // guards the fields below, and the traces while statistics_ uses them
  int running_;        // streams
  int64_t begun_ = 0;
  absl::Status error_;
  RunStatistics statistics_;
};

}  // namespace

LoadResult RunLoad(Client& client, const LoadOptions& options, Cancellation& cancellation,
                   const std::function<void(const LoadProgress&)>& on_progress) {
  return Load(client, options, cancellation).Run(on_progress);
}

}  // namespace conclave::client
