#include "bench/workload.h"

#include <algorithm>
#include <random>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "bench/measure.h"

namespace conclave::bench {
namespace {

// Workers send theirs twice a second.
constexpr absl::Duration kSettled = absl::Milliseconds(1500);

v1::GenerateRequest MakeRequest(const Workload& workload, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<uint32_t> id(1, static_cast<uint32_t>(workload.vocab_size - 1));
  v1::GenerateRequest request;
  for (int i = 0; i < workload.prompt_tokens; ++i) {
    request.mutable_prompt()->mutable_tokens()->add_ids(id(random));
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(static_cast<uint32_t>(workload.max_tokens));
  request.mutable_stop()->set_ignore_eos(true);
  return request;
}

// What one stream's thread saw.
struct Stream {
  absl::Status status;
  std::vector<double> token_times;
};

double DecodeRate(const std::vector<Stream>& streams) {
  double begin = 0;
  double end = WallSeconds();
  for (const Stream& stream : streams) {
    begin = std::max(begin, stream.token_times.front());
    end = std::min(end, stream.token_times.back());
  }
  if (end <= begin) return 0;
  int64_t tokens = 0;
  for (const Stream& stream : streams) {
    tokens += std::count_if(stream.token_times.begin(), stream.token_times.end(),
                            [&](double time) { return time > begin && time <= end; });
  }
  return static_cast<double>(tokens) / (end - begin);
}

std::string Totals(const v1::GetClusterResponse& cluster) {
  std::string totals = std::to_string(cluster.counters().steps());
  for (const auto& rank : cluster.ranks()) {
    totals += ' ' + std::to_string(rank.compute_seconds() + rank.exchange_seconds());
  }
  return totals;
}

}  // namespace

absl::StatusOr<Throughput> Run(client::Client& client, const Workload& workload) {
  std::vector<Stream> streams(static_cast<size_t>(workload.batch));
  std::vector<std::thread> threads;
  const double start = WallSeconds();
  for (int i = 0; i < workload.batch; ++i) {
    threads.emplace_back([&, i] {
      Stream& stream = streams[static_cast<size_t>(i)];
      const auto on_part = [&stream](const v1::GenerateResponse& part) {
        stream.token_times.insert(stream.token_times.end(), static_cast<size_t>(part.tokens_size()),
                                  WallSeconds());
      };
      stream.status =
          client.Generate(MakeRequest(workload, static_cast<uint32_t>(i)), on_part).status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  Throughput result;
  result.seconds = WallSeconds() - start;
  for (const Stream& stream : streams) {
    RETURN_IF_ERROR(stream.status);
    if (stream.token_times.empty()) return absl::InternalError("a stream without tokens");
  }
  result.decode_per_second = DecodeRate(streams);
  return result;
}

std::vector<RankTime> TimesBetween(const v1::GetClusterResponse& before,
                                   const v1::GetClusterResponse& after, double seconds) {
  std::vector<RankTime> times;
  for (int i = 0; i < after.ranks_size(); ++i) {
    const v1::Rank& a = before.ranks(i);
    const v1::Rank& b = after.ranks(i);
    const double wait = b.wait_seconds() - a.wait_seconds();
    times.push_back({.compute = (b.compute_seconds() - a.compute_seconds()) / seconds,
                     .exchange = (b.exchange_seconds() - a.exchange_seconds() - wait) / seconds,
                     .wait = wait / seconds});
  }
  return times;
}

absl::StatusOr<v1::GetClusterResponse> SettledCluster(client::Client& client) {
  ASSIGN_OR_RETURN(v1::GetClusterResponse last, client.GetCluster());
  absl::Time since = absl::Now();
  while (absl::Now() - since < kSettled) {
    absl::SleepFor(absl::Milliseconds(50));
    ASSIGN_OR_RETURN(v1::GetClusterResponse now, client.GetCluster());
    if (Totals(now) != Totals(last)) since = absl::Now();
    last = std::move(now);
  }
  return last;
}

}  // namespace conclave::bench
