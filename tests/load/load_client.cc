#include "tests/load/load_client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/grpc_status.h"
#include "base/retry_delay.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "tests/load/history.h"
#include "tests/load/workload.h"

namespace conclave::tests {
namespace {

constexpr int kLongestDeadlineMs = 400;
constexpr int kLatestCancel = 40;  // responses

// What all streams of the process share.
struct Shared {
  explicit Shared(const LoadOptions& load) : options(load) {}

  const LoadOptions& options;
  std::unique_ptr<v1::GenerationService::Stub> stub;
  absl::Time end;

  absl::Mutex mutex;  // guards all below
  std::mt19937 random;
  int next_id = 0;
  int open = 0;  // lanes that still run
  std::ofstream out;
};

// One of the streams that are kept going: call after call, each begun when the last has ended. Runs
// on gRPC's threads, one callback at a time.
class Lane {
 public:
  explicit Lane(Shared& shared) : shared_(shared) {}

  void Begin() {
    Stream plan;
    {
      absl::MutexLock lock(&shared_.mutex);
      const auto pick = [this](int most) {
        return std::uniform_int_distribution<int>(1, most)(shared_.random);
      };
      plan.id = shared_.next_id++;
      plan.work = pick(shared_.options.works) - 1;
      plan.max_tokens = pick(kLongest);
      const int dice = pick(100);
      if (dice <= shared_.options.percent_cancelled) {
        plan.action = "cancel";
        plan.after = pick(kLatestCancel) - 1;
      } else if (dice <= shared_.options.percent_cancelled + shared_.options.percent_deadlines) {
        plan.action = "deadline";
        plan.after = int64_t{1000} * pick(kLongestDeadlineMs);
      }
    }
    call_ = std::make_unique<Call>(*this, std::move(plan));
    call_->Start();
  }

 private:
  class Call final : public grpc::ClientReadReactor<v1::GenerateResponse> {
   public:
    Call(Lane& lane, Stream plan) : lane_(lane), stream_(std::move(plan)), start_(absl::Now()) {
      request_ = MakeWork(stream_.work, stream_.max_tokens);
      stream_.completions = static_cast<int>(request_.n());
      if (stream_.action == "deadline") {
        context_.set_deadline(absl::ToChronoTime(start_ + absl::Microseconds(stream_.after)));
      }
    }

    // The call may be over, and this gone, when it returns, but no sooner: hence the hold.
    void Start() {
      lane_.shared_.stub->async()->Generate(&context_, &request_, this);
      StartRead(&response_);
      AddHold();
      StartCall();
      if (stream_.action == "cancel" && stream_.after == 0) context_.TryCancel();
      RemoveHold();
    }

    void OnReadDone(bool ok) override {
      if (!ok) return;
      Record();
      if (stream_.action == "cancel" && ++responses_ == stream_.after) context_.TryCancel();
      StartRead(&response_);
    }

    void OnDone(const grpc::Status& status) override {
      Event end{.kind = Event::Kind::kEnd, .micros = Micros()};
      end.code = static_cast<int>(status.error_code());
      stream_.events.push_back(std::move(end));
      lane_.Ended(stream_, RetryDelay(status));  // destroys this
    }

   private:
    int64_t Micros() const { return absl::ToInt64Microseconds(absl::Now() - start_); }

    void Record() {
      Event event{.kind = Event::Kind::kTokens, .micros = Micros()};
      event.index = static_cast<int>(response_.index());
      event.tokens.assign(response_.tokens().begin(), response_.tokens().end());
      stream_.events.push_back(event);
      if (!response_.has_finish()) return;
      const v1::Finish& finish = response_.finish();
      event.kind = Event::Kind::kFinish;
      event.tokens.clear();
      event.reason = finish.reason() == v1::FINISH_REASON_STOP     ? "stop"
                     : finish.reason() == v1::FINISH_REASON_LENGTH ? "length"
                                                                   : "cancelled";
      event.count = static_cast<int>(finish.usage().completion_tokens());
      event.cached = static_cast<int>(finish.usage().cached_tokens());
      stream_.events.push_back(std::move(event));
    }

    static absl::Duration RetryDelay(const grpc::Status& status);

    Lane& lane_;
    Stream stream_;
    const absl::Time start_;
    v1::GenerateRequest request_;
    grpc::ClientContext context_;
    v1::GenerateResponse response_;
    int responses_ = 0;
  };

  void Ended(const Stream& stream, absl::Duration retry_delay) {
    bool goes_on = false;
    {
      absl::MutexLock lock(&shared_.mutex);
      Write(stream, shared_.out);
      goes_on = absl::Now() < shared_.end;
      if (!goes_on) --shared_.open;
    }
    if (!goes_on) return;
    // Not from the ended call's own callback, which still uses it. A new alarm each time: the last
    // one may still be in the callback that began this call.
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(absl::ToChronoTime(absl::Now() + retry_delay), [this](bool) { Begin(); });
  }

  Shared& shared_;
  std::unique_ptr<Call> call_;
  std::unique_ptr<grpc::Alarm> alarm_;
};

absl::Duration Lane::Call::RetryDelay(const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED) return absl::ZeroDuration();
  return base::RetryDelay(base::FromGrpc(status)).value_or(absl::Seconds(1));
}

}  // namespace

int RunLoad(const LoadOptions& options) {
  Shared shared(options);
  shared.stub = v1::GenerationService::NewStub(
      grpc::CreateChannel(options.server, grpc::InsecureChannelCredentials()));
  shared.end = absl::Now() + options.duration;
  shared.random.seed(options.seed);
  shared.open = options.streams;
  shared.out.open(options.history);
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < options.streams; ++i) lanes.push_back(std::make_unique<Lane>(shared));
  for (const auto& lane : lanes) lane->Begin();
  {
    absl::MutexLock lock(&shared.mutex);
    const auto none = [&shared] { return shared.open == 0; };
    shared.mutex.Await(absl::Condition(&none));
  }
  shared.out.close();
  return shared.out.good() ? 0 : 1;
}

}  // namespace conclave::tests
