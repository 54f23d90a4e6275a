// The loop of `conclave bench` against a server that the test paces.

#include "client/bench_load.h"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "client/fake_server.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;

using Writer = grpc::ServerWriter<v1::GenerateResponse>;

void WriteTokens(Writer& writer, int count) {
  v1::GenerateResponse part;
  for (int i = 0; i < count; ++i) part.add_tokens(1);
  writer.Write(part);
}

void WriteFinish(Writer& writer) {
  v1::GenerateResponse part;
  part.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
  part.mutable_finish()->mutable_timings()->set_queue_seconds(0.25);
  part.mutable_finish()->mutable_timings()->set_first_token_seconds(1);
  writer.Write(part);
}

class BenchLoadTest : public testing::Test {
 protected:
  BenchLoadTest() {
    options_.shape = {.id_limit = 100, .input_len = 6, .output_len = 4};
    server_.answers.generate = [this](grpc::ServerContext& context,
                                      const v1::GenerateRequest& request, Writer& writer) {
      return Generate(context, request, writer);
    };
  }

  LoadResult Run() {
    Client client(server_.address());
    LoadResult result = RunLoad(client, options_, cancellation_, [](const LoadProgress&) {});
    absl::MutexLock lock(&mutex_);  // sees what the server's threads wrote
    return result;
  }

  // As the server would, but the first `gate_` requests wait for each other.
  grpc::Status Generate(grpc::ServerContext& context, const v1::GenerateRequest& request,
                        Writer& writer) {
    const int index = Arrive(request);
    if (index < gate_) {
      absl::MutexLock lock(&mutex_);
      const auto open = [this] { return arrived_ >= gate_; };
      mutex_.Await(absl::Condition(&open));
    }
    const grpc::Status status = answer_(context, request, writer, index);
    absl::MutexLock lock(&mutex_);
    --open_;
    return status;
  }

  int Arrive(const v1::GenerateRequest& request) {
    absl::MutexLock lock(&mutex_);
    most_open_ = std::max(most_open_, ++open_);
    prompts_.insert(request.prompt().SerializeAsString());
    requests_.push_back(request);
    return arrived_++;
  }

  std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&, Writer&, int index)>
      answer_ = [](grpc::ServerContext&, const v1::GenerateRequest& request, Writer& writer, int) {
        for (uint32_t i = 0; i < request.stop().max_tokens(); ++i) WriteTokens(writer, 1);
        WriteFinish(writer);
        return grpc::Status::OK;
      };
  int gate_ = 0;
  LoadOptions options_;
  Cancellation cancellation_;

  absl::Mutex mutex_;  // guards the fields below
  int arrived_ = 0;
  int open_ = 0;
  int most_open_ = 0;
  std::set<std::string> prompts_;
  std::vector<v1::GenerateRequest> requests_;

  FakeServer server_;  // last: its threads use the rest
};

TEST_F(BenchLoadTest, EveryRequestIsMadeOnceAndCounted) {
  options_.streams = 3;
  options_.requests = 10;
  const LoadResult result = Run();
  EXPECT_TRUE(result.error.ok()) << result.error;
  EXPECT_EQ(result.begun, 10);
  EXPECT_EQ(result.statistics.completed(), 10);
  EXPECT_EQ(result.statistics.failed(), 0);
  EXPECT_EQ(result.statistics.prompt_tokens(), 60);
  EXPECT_EQ(result.statistics.output_tokens(), 40);
  EXPECT_EQ(result.statistics.first_token().count(), 10);
  EXPECT_EQ(result.statistics.between_tokens().count(), 30);
  EXPECT_EQ(result.statistics.queue().Mean(), absl::Milliseconds(250));
  EXPECT_EQ(result.statistics.prefill().Mean(), absl::Milliseconds(750));
  EXPECT_EQ(arrived_, 10);
  EXPECT_EQ(prompts_.size(), 10u);
  EXPECT_EQ(requests_[0].prompt().tokens().ids_size(), 6);
  EXPECT_TRUE(requests_[0].stop().ignore_eos());
}

TEST_F(BenchLoadTest, AllStreamsAreOpenAtOnceAndNoMore) {
  options_.streams = 5;
  options_.requests = 20;
  gate_ = 5;  // hangs unless five are open together
  EXPECT_EQ(Run().statistics.completed(), 20);
  EXPECT_EQ(most_open_, 5);
}

TEST_F(BenchLoadTest, IndexesGoOnFromTheFirst) {
  options_.requests = 2;
  options_.first_index = 7;
  Run();
  ASSERT_EQ(requests_.size(), 2u);
  EXPECT_EQ(requests_[1].SerializeAsString(),
            MakeBenchRequest(options_.shape, 8).SerializeAsString());
}

TEST_F(BenchLoadTest, TokensOfOneMessageCountEach) {
  options_.requests = 1;
  answer_ = [](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer, int) {
    WriteTokens(writer, 1);
    WriteTokens(writer, 3);
    WriteFinish(writer);
    return grpc::Status::OK;
  };
  const LoadResult result = Run();
  EXPECT_TRUE(result.error.ok()) << result.error;
  EXPECT_EQ(result.statistics.between_tokens().count(), 3);
  EXPECT_EQ(result.statistics.steady().tokens(), 3);
}

TEST_F(BenchLoadTest, DurationBeginsOnePerStreamAtLeastAndLetsThemEnd) {
  options_.streams = 4;
  options_.duration = absl::Nanoseconds(1);
  EXPECT_EQ(Run().statistics.completed(), 4);
  options_.duration = absl::Milliseconds(50);
  const absl::Time start = base::SteadyNow();
  const LoadResult result = Run();
  EXPECT_GE(base::SteadyNow() - start, absl::Milliseconds(50));
  EXPECT_EQ(result.statistics.completed(), result.begun);
}

TEST_F(BenchLoadTest, AFailedRequestEndsItsStreamAlone) {
  options_.streams = 2;
  options_.requests = 9;
  gate_ = 2;
  const auto succeed = answer_;
  answer_ = [succeed](grpc::ServerContext& context, const v1::GenerateRequest& request,
                      Writer& writer, int index) {
    if (index != 1) return succeed(context, request, writer, index);
    WriteTokens(writer, 2);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "rank 2 was lost");
  };
  const LoadResult result = Run();
  EXPECT_EQ(result.error, absl::UnavailableError("rank 2 was lost"));
  EXPECT_EQ(result.statistics.failed(), 1);
  EXPECT_EQ(result.statistics.completed(), 8);
  EXPECT_EQ(result.statistics.output_tokens(), 8 * 4 + 2);
}

TEST_F(BenchLoadTest, ATotalFailureEndsTheLoad) {
  options_.streams = 3;
  options_.duration = absl::Hours(1);
  answer_ = [](grpc::ServerContext&, const v1::GenerateRequest&, Writer&, int) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full");
  };
  const LoadResult result = Run();
  EXPECT_EQ(result.error, absl::ResourceExhaustedError("queue full"));
  EXPECT_EQ(result.statistics.failed(), 3);
}

TEST_F(BenchLoadTest, AShortStreamIsAFailure) {
  options_.requests = 1;
  answer_ = [](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer, int) {
    WriteTokens(writer, 3);
    WriteFinish(writer);
    return grpc::Status::OK;
  };
  const LoadResult result = Run();
  EXPECT_EQ(result.error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result.error.message()), HasSubstr("3 of 4 tokens"));
  EXPECT_EQ(result.statistics.completed(), 0);
}

TEST_F(BenchLoadTest, ATimeoutIsAFailure) {
  options_.requests = 1;
  options_.timeout = absl::Milliseconds(30);
  answer_ = [](grpc::ServerContext& context, const v1::GenerateRequest&, Writer& writer, int) {
    WriteTokens(writer, 1);
    EXPECT_TRUE(WaitUntil([&] { return context.IsCancelled(); }));
    return grpc::Status::CANCELLED;
  };
  EXPECT_EQ(Run().error.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(BenchLoadTest, CancellationKeepsWhatWasMeasured) {
  options_.streams = 2;
  options_.duration = absl::Hours(1);
  const auto succeed = answer_;
  answer_ = [this, succeed](grpc::ServerContext& context, const v1::GenerateRequest& request,
                            Writer& writer, int index) {
    if (index < 4) return succeed(context, request, writer, index);
    WriteTokens(writer, 1);
    if (index == 5) cancellation_.Cancel();
    EXPECT_TRUE(WaitUntil([&] { return context.IsCancelled(); }));
    return grpc::Status::CANCELLED;
  };
  const LoadResult result = Run();
  EXPECT_TRUE(result.error.ok()) << result.error;
  EXPECT_EQ(result.statistics.completed(), 4);
  EXPECT_EQ(result.statistics.cancelled(), 2);
  EXPECT_EQ(result.statistics.failed(), 0);
}

}  // namespace
}  // namespace conclave::client
