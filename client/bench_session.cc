#include "client/bench_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/status_macros.h"

namespace conclave::client {
namespace {

constexpr absl::Duration kSparsePeriod = absl::Seconds(10);
constexpr char kEraseLine[] = "\r\x1b[K";
constexpr int64_t kRequestsPerStream = 4;

class Session {
 public:
  Session(Client& client, const BenchPlan& plan, Cancellation& cancellation,
          BenchProgress& progress)
      : client_(client), plan_(plan), cancellation_(cancellation), progress_(progress) {}

  absl::Status Run(std::vector<BenchRun>* runs) {
    for (const int streams : plan_.concurrency) {
      const int64_t warmup = plan_.warmup.has_value() ? int64_t{*plan_.warmup} : streams;
      RETURN_IF_ERROR(WarmUp(streams, warmup));
      if (cancellation_.cancelled()) return absl::OkStatus();
      LoadResult result = Measure(streams);
      runs->push_back({std::move(result.statistics), warmup, std::move(result.error)});
      if (!runs->back().error.ok() || cancellation_.cancelled()) return absl::OkStatus();
    }
    return absl::OkStatus();
  }

 private:
  absl::Status WarmUp(int streams, int64_t requests) {
    if (requests == 0) return absl::OkStatus();
    LoadOptions options = Options(static_cast<int>(std::min<int64_t>(streams, requests)));
    options.requests = requests;
    const absl::Status error = Load(options, fmt::format("warm-up, {} streams", streams)).error;
    if (error.ok()) return absl::OkStatus();
    return absl::Status(error.code(), fmt::format("in the warm-up with {} streams: {}", streams,
                                                  std::string(error.message())));
  }

  LoadResult Measure(int streams) {
    LoadOptions options = Options(streams);
    if (plan_.duration_seconds.has_value()) {
      options.duration = absl::Seconds(*plan_.duration_seconds);
    } else {
      options.requests =
          plan_.requests.has_value() ? int64_t{*plan_.requests} : kRequestsPerStream * streams;
    }
    return Load(options, fmt::format("{} streams", streams));
  }

  LoadOptions Options(int streams) const {
    LoadOptions options;
    options.streams = streams;
    options.shape = plan_.shape;
    options.first_index = next_index_;
    options.timeout = plan_.timeout;
    return options;
  }

  LoadResult Load(const LoadOptions& options, const std::string& what) {
    LoadResult result = RunLoad(client_, options, cancellation_, [&](const LoadProgress& progress) {
      progress_.Show(what, progress);
    });
    progress_.End();
    next_index_ += static_cast<uint64_t>(result.begun);
    return result;
  }

  Client& client_;
  const BenchPlan& plan_;
  Cancellation& cancellation_;
  BenchProgress& progress_;
  uint64_t next_index_ = 0;  // no prompt is sent twice
};

}  // namespace

void BenchProgress::Show(const std::string& what, const LoadProgress& progress) {
  if (!terminal_ && progress.elapsed < shown_ + kSparsePeriod) return;
  shown_ = progress.elapsed;
  const std::string text = fmt::format("{}: {:.0f} s, {} requests done, {} tokens generated", what,
                                       absl::ToDoubleSeconds(progress.elapsed), progress.completed,
                                       progress.output_tokens);
  if (terminal_) {
    fmt::print(out_, "{}{}", kEraseLine, text);
    drawn_ = true;
  } else {
    fmt::print(out_, "conclave bench: {}\n", text);
  }
  std::fflush(out_);
}

void BenchProgress::End() {
  shown_ = absl::ZeroDuration();
  if (!std::exchange(drawn_, false)) return;
  fmt::print(out_, "{}", kEraseLine);
  std::fflush(out_);
}

absl::Status RunBench(Client& client, const BenchPlan& plan, Cancellation& cancellation,
                      BenchProgress& progress, std::vector<BenchRun>* runs) {
  return Session(client, plan, cancellation, progress).Run(runs);
}

}  // namespace conclave::client
