// The public services over a real in-process connection, against an engine that the test plays.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/grpc_status.h"
#include "base/logging.h"
#include "base/retry_delay.h"
#include "coordinator/api_keys.h"
#include "coordinator/classification_service.h"
#include "coordinator/cluster_service.h"
#include "coordinator/generation_service.h"
#include "coordinator/model_service.h"
#include "coordinator/unread_events.h"

namespace conclave::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// Keeps what is submitted; the test answers through the sinks.
class FakeEngine final : public Engine {
 public:
  absl::StatusOr<std::vector<RequestId>> SubmitForks(std::vector<Request>& requests) override {
    absl::MutexLock lock(&mutex_);
    if (!refusal.ok() && refusals-- > 0) return refusal;
    if (open_ + requests.size() > most_open) {
      return base::WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Seconds(2));
    }
    std::vector<RequestId> ids;
    for (Request& request : requests) {
      requests_.push_back(std::move(request));
      ids.push_back(requests_.size());
    }
    open_ += requests.size();
    return ids;
  }
  // Makes room for so many.
  void Leave(size_t count) {
    absl::MutexLock lock(&mutex_);
    open_ -= count;
  }
  size_t submitted() {
    absl::MutexLock lock(&mutex_);
    return requests_.size();
  }
  void Cancel(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    cancelled_.push_back(id);
  }
  v1::GetClusterResponse Snapshot() override {
    v1::GetClusterResponse response;
    response.set_epoch(3);
    return response;
  }
  void Rebalance(const v1::RebalanceRequest& request, RebalanceDone done) override {
    if (request.dry_run()) return done(absl::FailedPreconditionError("nothing observed"));
    v1::RebalanceResponse response;
    response.set_epoch(request.replicas());
    // From another thread, after the handler has returned.
    rebalance_ = std::thread([done, response] { done(response); });
  }
  ~FakeEngine() override {
    if (rebalance_.joinable()) rebalance_.join();
  }
  void Drain(const v1::DrainRequest& request, DrainDone done) override {
    if (request.resume()) return done(absl::FailedPreconditionError("told to stop"));
    v1::DrainResponse response;
    response.set_seconds(request.limit_seconds());
    done(response);
  }
  bool Serving() override { return true; }
  CallAccount& calls() override { return calls_; }

  // Waits for the i-th request.
  Request Wait(size_t i) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, i] { return requests_.size() > i; };
    mutex_.Await(absl::Condition(&there));
    return requests_[i];
  }
  void WaitForCancel(RequestId id) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, id] {
      return std::find(cancelled_.begin(), cancelled_.end(), id) != cancelled_.end();
    };
    mutex_.Await(absl::Condition(&there));
  }

  absl::Status refusal;
  int refusals = 1'000'000;
  size_t most_open = 1'000'000;

 private:
  CallAccount calls_;
  std::thread rebalance_;
  absl::Mutex mutex_;  // guards all below
  size_t open_ = 0;
  std::vector<Request> requests_;
  std::vector<RequestId> cancelled_;
};

Outcome Ended(FinishReason reason, int prompt, int completion) {
  Outcome outcome;
  outcome.reason = reason;
  outcome.prompt_tokens = prompt;
  outcome.completion_tokens = completion;
  return outcome;
}

class PublicServicesTest : public ::testing::Test {
 protected:
  PublicServicesTest() {
    ServingModelOptions options;
    options.dir = "demo/tiny_gpt_oss";
    options.limits.max_queued = 16;
    options.heads = {{"mood", "demo/tiny_gpt_oss/head_sequence"},
                     {"ner", "demo/tiny_gpt_oss/head_token"}};
    absl::StatusOr<ServingModel> model = LoadServingModel(options);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    grpc::ServerBuilder builder;
    builder.RegisterService(&generation_);
    builder.RegisterService(&classification_);
    builder.RegisterService(&model_service_);
    builder.RegisterService(&cluster_);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    server_ = builder.BuildAndStart();
    channel_ = server_->InProcessChannel({});
  }
  ~PublicServicesTest() override { server_->Shutdown(); }

  v1::GenerateRequest Prompt(std::initializer_list<uint32_t> ids) {
    v1::GenerateRequest request;
    for (uint32_t id : ids) request.mutable_prompt()->mutable_tokens()->add_ids(id);
    request.mutable_stop()->set_max_tokens(8);
    return request;
  }

  ServingModel model_;
  FakeEngine engine_;
  base::Executor executor_;
  GenerationServiceImpl generation_{model_, engine_, executor_};
  ClassificationServiceImpl classification_{model_, engine_, executor_};
  ModelServiceImpl model_service_{model_, engine_};
  ClusterServiceImpl cluster_{engine_};
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(PublicServicesTest, RebalanceIsAnsweredWhenTheEngineSaysSo) {
  auto stub = v1::ClusterService::NewStub(channel_);
  v1::RebalanceRequest request;
  v1::RebalanceResponse response;
  request.set_replicas(9);
  grpc::ClientContext context;
  const grpc::Status status = stub->Rebalance(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.epoch(), 9u);
  request.set_dry_run(true);
  grpc::ClientContext refused;
  EXPECT_EQ(stub->Rebalance(&refused, request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(PublicServicesTest, DrainIsAnsweredWhenTheEngineSaysSo) {
  auto stub = v1::ClusterService::NewStub(channel_);
  v1::DrainRequest request;
  v1::DrainResponse response;
  request.set_limit_seconds(7);
  grpc::ClientContext context;
  EXPECT_TRUE(stub->Drain(&context, request, &response).ok());
  EXPECT_EQ(response.seconds(), 7);
  request.set_resume(true);
  grpc::ClientContext refused;
  EXPECT_EQ(stub->Drain(&refused, request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(engine_.calls().ended(Method::kDrain, 0), 1u);
  EXPECT_EQ(engine_.calls().ended(Method::kDrain, 9), 1u);
  EXPECT_EQ(engine_.calls().open(Method::kDrain), 0);
}

std::string Trailer(const grpc::ClientContext& context, const char* key) {
  const auto entry = context.GetServerTrailingMetadata().find(key);
  if (entry == context.GetServerTrailingMetadata().end()) return "";
  return std::string(entry->second.data(), entry->second.size());
}

TEST_F(PublicServicesTest, EveryCallHasARequestIdAndKeepsItsTrace) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateResponse part;
  grpc::ClientContext refused;
  refused.AddMetadata("x-request-id", "shop-42/7");
  refused.AddMetadata("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  auto reader = stub->Generate(&refused, v1::GenerateRequest());
  EXPECT_FALSE(reader->Read(&part));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Trailer(refused, "x-request-id"), "shop-42/7");
  const std::string trace = Trailer(refused, "traceparent");
  EXPECT_TRUE(trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")) << trace;
  EXPECT_THAT(trace, ::testing::Not(HasSubstr("00f067aa0ba902b7")));
  EXPECT_TRUE(trace.ends_with("-01"));

  // What could not stand in a log is replaced; what is no trace is none.
  auto models = v1::ModelService::NewStub(channel_);
  v1::GetModelResponse model;
  for (const char* odd : {"two words", "quote\"", ""}) {
    grpc::ClientContext context;
    context.AddMetadata("x-request-id", odd);
    context.AddMetadata("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01");
    ASSERT_TRUE(models->GetModel(&context, {}, &model).ok());
    EXPECT_EQ(Trailer(context, "x-request-id").size(), 32u);
    EXPECT_EQ(Trailer(context, "traceparent"), "");
  }
}

TEST_F(PublicServicesTest, ARequestIdOfDigitsIsStillAString) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(base::InitLogging("coordinator", "info", "json").ok());
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "42");
  v1::GetModelResponse model;
  EXPECT_TRUE(v1::ModelService::NewStub(channel_)->GetModel(&context, {}, &model).ok());
  EXPECT_TRUE(base::InitLogging("coordinator", "info", "text").ok());
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("\"request_id\":\"42\""));
}

TEST_F(PublicServicesTest, CallsAreCountedWhileTheyRunAndByHowTheyEnd) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1, 2, 3}));
  const Request request = engine_.Wait(0);
  EXPECT_EQ(engine_.calls().open(Method::kGenerate), 1);
  request.sink->OnEnd(Ended(FinishReason::kLength, 3, 0));
  v1::GenerateResponse part;
  while (reader->Read(&part)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(engine_.calls().open(Method::kGenerate), 0);
  EXPECT_EQ(engine_.calls().admitted(), 0);
  EXPECT_EQ(engine_.calls().ended(Method::kGenerate, 0), 1u);

  engine_.refusal = absl::UnavailableError("draining");
  grpc::ClientContext again;
  EXPECT_EQ(stub->Generate(&again, Prompt({1}))->Finish().error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(engine_.calls().ended(Method::kGenerate, 14), 1u);
  EXPECT_EQ(engine_.calls().admitted(), 0);
}

// A refusal is a status and nothing else, whatever metadata goes with it: clients may retry it, and
// with our service config they do.
TEST_F(PublicServicesTest, ARefusedStreamIsRetriedByTheServiceConfig) {
  std::ifstream file("proto/conclave/v1/service_config.json");
  const std::string config((std::istreambuf_iterator<char>(file)), {});
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(config);
  const auto channel = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port_),
                                                 grpc::InsecureChannelCredentials(), arguments);
  engine_.refusal = absl::UnavailableError("draining");
  engine_.refusals = 2;
  grpc::ClientContext context;
  // Who asks has to wait in gRPC: it retries from there.
  std::thread caller([&] {
    auto reader = v1::GenerationService::NewStub(channel)->Generate(&context, Prompt({1, 2, 3}));
    v1::GenerateResponse part;
    EXPECT_TRUE(reader->Read(&part));
    EXPECT_TRUE(part.has_finish());
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
  });
  engine_.Wait(0).sink->OnEnd(Ended(FinishReason::kLength, 3, 0));
  caller.join();
  EXPECT_EQ(engine_.calls().ended(Method::kGenerate, 14), 2u);
  EXPECT_EQ(engine_.calls().ended(Method::kGenerate, 0), 1u);
  EXPECT_EQ(Trailer(context, "x-request-id").size(), 32u);
}

// The rest of a batch that a drain finds half submitted is marked as such.
TEST_F(PublicServicesTest, ABatchIsOneCallToADrain) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  for (uint32_t i = 0; i < 6; ++i) *batch.add_requests() = Prompt({i});
  v1::GenerateBatchResponse response;
  grpc::ClientContext context;
  std::thread caller([&] { stub->GenerateBatch(&context, batch, &response); });
  EXPECT_FALSE(engine_.Wait(0).of_open_call);
  EXPECT_TRUE(engine_.Wait(1).of_open_call);
  for (size_t i = 0; i < 6; ++i) {
    engine_.Wait(i).sink->OnEnd(Ended(FinishReason::kLength, 1, 0));
  }
  caller.join();
  EXPECT_EQ(response.results_size(), 6);
  EXPECT_TRUE(response.results(5).finish().has_timings());
  EXPECT_EQ(engine_.calls().admitted(), 0);
}

TEST_F(PublicServicesTest, StreamsTokensInOrderAndFinishesOnce) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1, 2, 3}));
  const Request request = engine_.Wait(0);
  EXPECT_THAT(request.tokens, ElementsAre(1, 2, 3));
  std::vector<uint32_t> tokens;
  v1::GenerateResponse response;
  request.sink->OnTokens(std::vector<TokenEvent>{{10, false, 0, {}}});
  ASSERT_TRUE(reader->Read(&response));  // the first chunk arrives while the request runs
  EXPECT_FALSE(response.has_finish());
  tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
  request.sink->OnTokens(std::vector<TokenEvent>{{11, false, 0, {}}});
  request.sink->OnTokens(std::vector<TokenEvent>{{12, false, 0, {}}});
  request.sink->OnEnd(Ended(FinishReason::kLength, 3, 3));
  int finishes = 0;
  while (reader->Read(&response)) {
    EXPECT_EQ(finishes, 0) << "a response after the finish";
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
    finishes += response.has_finish() ? 1 : 0;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(response.finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.finish().usage().completion_tokens(), 3);
  EXPECT_THAT(tokens, ElementsAre(10, 11, 12));
}

TEST_F(PublicServicesTest, TheStopTokenIsReportedButNotSpelled) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  const Request request = engine_.Wait(0);
  const int letter = model_.tokenizer->Encode("A").front();
  request.sink->OnTokens(std::vector<TokenEvent>{{letter, false, 0, {}}, {498, true, 0, {}}});
  request.sink->OnEnd(Ended(FinishReason::kStop, 1, 2));
  std::string text;
  std::vector<uint32_t> tokens;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    text += response.text();
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
  }
  EXPECT_EQ(text, "A");
  EXPECT_THAT(tokens, ElementsAre(letter, 498));
}

// Results for a client that takes none, until the request is cancelled for it.
void Flood(const Request& request, int events) {
  for (int i = 0; i < events; ++i) {
    request.sink->OnTokens(std::vector<TokenEvent>{{i % 400, false, 0, {}}});
  }
}

TEST_F(PublicServicesTest, AClientThatDoesNotReadEndsItsStreamAndHoldsNoMoreThanItMay) {
  constexpr size_t kEvents = 1000;
  model_.limits.max_unread_bytes = kEvents * sizeof(TokenEvent);
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::GenerateRequest wanted = Prompt({1});
  wanted.set_n(2);
  auto reader = stub->Generate(&context, wanted);
  const Request first = engine_.Wait(0);
  const Request second = engine_.Wait(1);
  Flood(first, 60'000);
  engine_.WaitForCancel(1);
  engine_.WaitForCancel(2);
  Flood(second, 60'000);
  first.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 60'000));
  second.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 60'000));
  size_t read = 0;
  for (v1::GenerateResponse response; reader->Read(&response);) {
    EXPECT_FALSE(response.has_finish());
    for (const uint32_t token : response.tokens()) EXPECT_EQ(token, read++ % 400);
  }
  EXPECT_LE(read, 2 * kEvents) << "what waited, and a message";
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("reads too slowly"));
}

TEST_F(PublicServicesTest, AChatThatIsNotReadEndsAsWell) {
  model_.limits.max_unread_bytes = 1000 * sizeof(TokenEvent);
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::ChatRequest chat;
  v1::ChatMessage* message = chat.mutable_conversation()->add_messages();
  message->set_role(v1::ChatMessage::USER);
  message->set_content("?");
  chat.mutable_stop()->set_max_tokens(64);
  auto reader = stub->Chat(&context, chat);
  const Request request = engine_.Wait(0);
  for (const int id : model_.tokenizer->EncodeWithSpecials("<|channel|>final<|message|>")) {
    request.sink->OnTokens(std::vector<TokenEvent>{{id, false, 0, {}}});
  }
  Flood(request, 60'000);
  engine_.WaitForCancel(1);
  request.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 60'000));
  int read = 0;
  for (v1::ChatResponse response; reader->Read(&response);) ++read;
  EXPECT_LE(read, 2000);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(PublicServicesTest, AClientThatTakesNothingForTooLongLosesItsStream) {
  model_.limits.max_unread_seconds = 1;
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  const Request request = engine_.Wait(0);
  v1::GenerateResponse response;
  // One that reads, however rarely anything comes, is none.
  Flood(request, 1);
  ASSERT_TRUE(reader->Read(&response));
  absl::SleepFor(absl::Milliseconds(1500));
  Flood(request, 1);
  ASSERT_TRUE(reader->Read(&response));
  Flood(request, 2 * kMaxEventsPerMessage);
  engine_.WaitForCancel(1);
  request.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 1));
  while (reader->Read(&response)) EXPECT_FALSE(response.has_finish());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(PublicServicesTest, AReplyThatNobodyTakesIsNotKept) {
  model_.limits.max_unread_seconds = 1;
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub->AsyncGenerateBatch(&context, batch, &queue);
  void* tag = nullptr;
  bool ok = false;
  call->ReadInitialMetadata(nullptr);  // this sends the request, and takes no reply
  const Request request = engine_.Wait(0);
  Flood(request, 10);
  request.sink->OnEnd(Ended(FinishReason::kLength, 1, 10));
  ASSERT_TRUE(queue.Next(&tag, &ok));
  absl::SleepFor(absl::Seconds(2));
  v1::GenerateBatchResponse reply;
  grpc::Status status;
  call->Finish(&reply, &status, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(PublicServicesTest, MoreThanOneMessageHoldsIsWrittenInSeveral) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  const Request request = engine_.Wait(0);
  Flood(request, 3 * kMaxEventsPerMessage);
  request.sink->OnEnd(Ended(FinishReason::kLength, 1, 3 * kMaxEventsPerMessage));
  size_t read = 0;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    EXPECT_LE(response.tokens_size(), static_cast<int>(kMaxEventsPerMessage));
    for (const uint32_t token : response.tokens()) EXPECT_EQ(token, read++ % 400);
  }
  EXPECT_EQ(read, 3 * kMaxEventsPerMessage);
  EXPECT_TRUE(response.has_finish());
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(PublicServicesTest, ThePromptAndItsLogprobsComeBeforeWhatIsGenerated) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::GenerateRequest wanted = Prompt({});
  wanted.mutable_prompt()->set_text("AB");
  wanted.set_echo(true);
  wanted.set_prompt_logprobs(1);
  auto reader = stub->Generate(&context, wanted);
  const Request request = engine_.Wait(0);
  EXPECT_EQ(request.prompt_logprobs, 1);
  v1::GenerateResponse response;
  request.sink->OnPromptLogprobs(std::vector<PromptLogprob>{{66, -0.5f, {{67, -0.25f}}}});
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.prompt().text(), "AB");
  EXPECT_THAT(response.prompt().tokens(),
              testing::ElementsAreArray(request.tokens.begin(), request.tokens.end()));
  ASSERT_EQ(response.prompt().logprobs_size(), 1);
  EXPECT_EQ(response.prompt().logprobs(0).token(), 66u);
  EXPECT_EQ(response.prompt().logprobs(0).top(0).token(), 67u);
  EXPECT_TRUE(response.tokens().empty());
  request.sink->OnTokens(std::vector<TokenEvent>{{10, false, 0, {}}});
  request.sink->OnEnd(Ended(FinishReason::kLength, 2, 1));
  std::vector<uint32_t> tokens;
  while (reader->Read(&response)) {
    EXPECT_FALSE(response.has_prompt());
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
  }
  EXPECT_THAT(tokens, ElementsAre(10));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(PublicServicesTest, ManyLogprobsOfAPromptComeInSeveralResponsesAndBeforeTheEnd) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::GenerateRequest wanted = Prompt({1});
  wanted.set_prompt_logprobs(20);
  auto reader = stub->Generate(&context, wanted);
  const Request request = engine_.Wait(0);
  const std::vector<std::pair<int, float>> top(20, {400, -30.5f});
  std::vector<PromptLogprob> all;
  for (int i = 0; i < 30000; ++i) all.push_back({i, -0.5f, top});
  request.sink->OnPromptLogprobs(all);  // more than one message may be: 6 MB
  request.sink->OnTokens(std::vector<TokenEvent>{{10, false, 0, {}}});
  request.sink->OnEnd(Ended(FinishReason::kLength, 1, 1));
  uint32_t next = 0;
  int tokens = 0;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    for (const auto& logprob : response.prompt().logprobs()) EXPECT_EQ(logprob.token(), next++);
    tokens += response.tokens_size();
    EXPECT_TRUE(tokens == 0 || next == 30000);
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(response.has_finish());
  EXPECT_EQ(next, 30000u);
  EXPECT_EQ(tokens, 1);
}

TEST_F(PublicServicesTest, AStopStringIsToldInTheFinishAndIsNotText) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::GenerateRequest wanted = Prompt({1});
  wanted.mutable_stop()->add_stop_strings("BC");
  auto reader = stub->Generate(&context, wanted);
  const Request request = engine_.Wait(0);
  ASSERT_NE(request.stop_strings, nullptr);
  StopMatcher matcher(request.stop_strings);
  Outcome outcome = Ended(FinishReason::kStop, 1, 0);
  for (const int token : model_.tokenizer->Encode("ABCD")) {
    const StopMatch match = matcher.Append(token);
    TokenEvent event;
    event.token = token;
    event.held_bytes = match.held_bytes;
    event.stop_string = match.string >= 0;
    request.sink->OnTokens(std::span(&event, 1));
    if (!event.stop_string) continue;
    outcome.stop_string = request.stop_strings->string(match.string);
    break;
  }
  request.sink->OnEnd(outcome);
  std::string text;
  v1::GenerateResponse response;
  while (reader->Read(&response)) text += response.text();
  EXPECT_EQ(text, "A");
  EXPECT_EQ(response.finish().stop_string(), "BC");
}

TEST_F(PublicServicesTest, SequenceOptionsArePairsTruncationFunctionAndTopK) {
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifySequenceRequest request;
  request.set_head("mood");
  v1::Prompt* longer = request.add_inputs();
  for (int i = 0; i < 300; ++i) longer->mutable_tokens()->add_ids(1);
  v1::Prompt* second = request.add_pairs();
  second->mutable_tokens()->add_ids(7);
  second->mutable_tokens()->add_ids(8);
  v1::ClassifySequenceResponse reply;
  grpc::Status refused;
  {
    grpc::ClientContext context;
    refused = stub->ClassifySequence(&context, request, &reply);
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_truncate(true);
  request.set_top_k(2);
  request.set_function_to_apply(v1::SCORE_FUNCTION_NONE);
  grpc::Status status;
  std::thread call([&] {
    grpc::ClientContext context;
    status = stub->ClassifySequence(&context, request, &reply);
  });
  const Request input = engine_.Wait(0);
  EXPECT_EQ(input.tokens.size(), 256u);  // the longer text was cut
  EXPECT_EQ(input.tokens[253], 1);
  EXPECT_EQ(input.tokens[254], 7);
  EXPECT_EQ(input.tokens[255], 8);
  input.sink->OnHeadLogits(0, 255, std::vector<float>{1.0F, -2.0F, 3.0F});
  input.sink->OnEnd(Ended(FinishReason::kHeads, 256, 0));
  call.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.function(), v1::SCORE_FUNCTION_NONE);
  ASSERT_EQ(reply.results(0).labels_size(), 2);
  EXPECT_EQ(reply.results(0).labels(0).label(), "positive");
  EXPECT_EQ(reply.results(0).labels(0).score(), 3.0F);
  EXPECT_EQ(reply.results(0).labels(1).label(), "negative");
  EXPECT_TRUE(reply.results(0).truncated());
}

TEST_F(PublicServicesTest, LabelsAreScoredAfterTheInputAndAfterTheNullPrompt) {
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ScoreLabelsRequest request;
  request.add_inputs()->set_text("A");
  request.add_labels("B");
  request.add_labels("CC");
  request.mutable_null_prompt()->set_text("N");
  request.set_priority(-3);
  request.set_user("labels");
  v1::ScoreLabelsResponse reply;
  grpc::Status status;
  std::thread call([&] {
    grpc::ClientContext context;
    status = stub->ScoreLabels(&context, request, &reply);
  });
  const std::pair<const char*, std::vector<float>> forks[] = {
      {"A|B", {-1.0F}}, {"A|CC", {-1.5F, -0.5F}}, {"N|B", {-0.5F}}, {"N|CC", {-2.0F, -1.0F}}};
  for (size_t i = 0; i < 4; ++i) {
    const Request fork = engine_.Wait(i);
    std::string text = model_.tokenizer->Decode(fork.tokens);
    text.insert(static_cast<size_t>(fork.first_prompt_logprob), "|");
    EXPECT_EQ(text, forks[i].first);
    EXPECT_EQ(fork.prompt_logprobs, 0);
    EXPECT_EQ(fork.max_tokens, 0);
    EXPECT_EQ(fork.priority, -3);
    EXPECT_EQ(fork.user, "user labels");
    for (const float logprob : forks[i].second) {
      fork.sink->OnPromptLogprobs(std::vector<PromptLogprob>{{0, logprob, {}}});
    }
    fork.sink->OnEnd(Ended(FinishReason::kHeads, 3, 0));
  }
  call.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const v1::LabelScoring& result = reply.results(0);
  EXPECT_EQ(result.labels(0).label(), "B");
  EXPECT_EQ(result.labels(0).logprob_sum(), -1.0);
  EXPECT_EQ(result.labels(1).logprob_sum(), -2.0);
  EXPECT_EQ(result.labels(1).logprob_mean(), -1.0);
  EXPECT_EQ(result.labels(1).null_logprob_sum(), -3.0);
  // exp(-1 + 0.5) to exp(-2 + 3)
  EXPECT_NEAR(result.labels(0).score(), 1 / (1 + std::exp(1.5)), 1e-9);
  EXPECT_EQ(result.usage().prompt_tokens(), 1u);
  EXPECT_EQ(result.usage().completion_tokens(), 3u);
  EXPECT_EQ(reply.null_usage().prompt_tokens(), 1u);
  request.add_labels("B");
  grpc::ClientContext context;
  status = stub->ScoreLabels(&context, request, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("labels[2]"));
  request.set_priority(101);
  grpc::ClientContext higher;
  status = stub->ScoreLabels(&higher, request, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("priority is 101"));
}

TEST_F(PublicServicesTest, AChatStreamsEventsAndFinishesOnce) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::ChatRequest chat;
  v1::ChatMessage* message = chat.mutable_conversation()->add_messages();
  message->set_role(v1::ChatMessage::USER);
  message->set_content("?");
  chat.mutable_stop()->set_max_tokens(64);
  auto reader = stub->Chat(&context, chat);
  const Request request = engine_.Wait(0);
  EXPECT_EQ(request.tokens.front(), model_.harmony->start);
  for (const int id : {model_.harmony->ret, model_.harmony->call}) {
    EXPECT_THAT(request.stop_token_ids, ::testing::Contains(id));
  }
  const std::vector<int> reply = model_.tokenizer->EncodeWithSpecials(
      "<|channel|>analysis<|message|>Hm<|end|>"
      "<|start|>assistant<|channel|>final<|message|>Yes<|return|>");
  for (const int id : reply) {
    request.sink->OnTokens(std::vector<TokenEvent>{{id, id == model_.harmony->ret, 0, {}}});
  }
  request.sink->OnEnd(Ended(FinishReason::kStop, 9, static_cast<int>(reply.size())));
  std::string reasoning;
  std::string text;
  int finishes = 0;
  v1::ChatResponse response;
  while (reader->Read(&response)) {
    EXPECT_EQ(finishes, 0) << "a response after the finish";
    reasoning += response.reasoning_delta();
    text += response.text_delta();
    finishes += response.has_finish() ? 1 : 0;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(reasoning, "Hm");
  EXPECT_EQ(text, "Yes");
  EXPECT_EQ(response.finish().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(response.finish().usage().prompt_tokens(), 9);
  EXPECT_EQ(response.finish().seed(), request.sampling.seed());
  EXPECT_FALSE(response.finish().malformed());
}

TEST_F(PublicServicesTest, ALostWorkerEndsTheStreamUnavailableAfterWhatWasSent) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  const Request request = engine_.Wait(0);
  request.sink->OnTokens(std::vector<TokenEvent>{{10, false, 0, {}}});
  Outcome lost;
  lost.status = absl::UnavailableError("rank 1 was lost");
  request.sink->OnEnd(lost);
  v1::GenerateResponse response;
  std::vector<uint32_t> tokens;
  while (reader->Read(&response)) {
    EXPECT_FALSE(response.has_finish());
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "rank 1 was lost");
  EXPECT_THAT(tokens, ElementsAre(10));
}

TEST_F(PublicServicesTest, AClientThatGoesAwayCancelsItsRequest) {
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  const Request request = engine_.Wait(0);
  context.TryCancel();
  engine_.WaitForCancel(1);
  request.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 0));
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(PublicServicesTest, TheEnginesRefusalIsTheCallsStatus) {
  engine_.refusal = absl::ResourceExhaustedError("queue full: 4 of 4");
  auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Prompt({1}));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(PublicServicesTest, InvalidUtf8NamesTheField) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateRequest request = Prompt({});
  request.mutable_prompt()->set_text("\xFF");
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("prompt.text"));
}

TEST_F(PublicServicesTest, ABatchKeepsTheOrderOfItsRequests) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  *batch.add_requests() = Prompt({2});
  v1::GenerateBatchResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->GenerateBatch(&context, batch, &reply);
  });
  const Request second = engine_.Wait(1);
  const Request first = engine_.Wait(0);
  second.sink->OnTokens(std::vector<TokenEvent>{{22, false, 0, {}}});
  second.sink->OnEnd(Ended(FinishReason::kLength, 1, 1));
  first.sink->OnTokens(std::vector<TokenEvent>{{11, false, 0, {}}});
  first.sink->OnEnd(Ended(FinishReason::kLength, 1, 1));
  caller.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.results_size(), 2);
  EXPECT_THAT(reply.results(0).tokens(), ElementsAre(11));
  EXPECT_THAT(reply.results(1).tokens(), ElementsAre(22));
}

TEST_F(PublicServicesTest, ABatchWhoseResultsTakeTooMuchMemoryFailsAndIsCancelled) {
  model_.limits.max_reply_bytes = 2000 * sizeof(TokenEvent);
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  *batch.add_requests() = Prompt({2});
  v1::GenerateBatchResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->GenerateBatch(&context, batch, &reply);
  });
  const Request first = engine_.Wait(0);
  const Request second = engine_.Wait(1);
  Flood(first, 1000);
  first.sink->OnEnd(Ended(FinishReason::kLength, 1, 1000));
  Flood(second, 1001);
  engine_.WaitForCancel(2);
  second.sink->OnEnd(Ended(FinishReason::kCancelled, 1, 1001));
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("--max-reply-bytes"));
  EXPECT_FALSE(base::RetryDelay(base::FromGrpc(status)).has_value());
}

TEST_F(PublicServicesTest, AReplyIsNoLargerThanItMayBe) {
  model_.limits.max_reply_bytes = 2048;
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifySequenceRequest request;
  request.set_head("mood");
  const auto classify = [&](size_t inputs, v1::ClassifySequenceResponse* reply) {
    request.clear_inputs();
    for (size_t i = 0; i < inputs; ++i) request.add_inputs()->mutable_tokens()->add_ids(1);
    const size_t before = engine_.submitted();
    grpc::Status status;
    std::thread caller([&] {
      grpc::ClientContext context;
      status = stub->ClassifySequence(&context, request, reply);
    });
    for (size_t i = 0; i < inputs; ++i) {
      const Request input = engine_.Wait(before + i);
      input.sink->OnHeadLogits(0, 0, std::vector<float>{1, 2, 3});  // 12 bytes, more as a reply
      input.sink->OnEnd(Ended(FinishReason::kHeads, 1, 0));
    }
    caller.join();
    return status;
  };
  v1::ClassifySequenceResponse reply;
  EXPECT_TRUE(classify(10, &reply).ok());
  EXPECT_EQ(reply.results_size(), 10);
  EXPECT_LE(reply.ByteSizeLong(), 2048u);
  const grpc::Status status = classify(40, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("more than 2048"));
  v1::DetokenizeRequest ids;
  for (int i = 0; i < 2049; ++i) ids.add_ids(65);
  v1::DetokenizeResponse text;
  grpc::ClientContext detokenize;
  EXPECT_EQ(v1::ModelService::NewStub(channel_)->Detokenize(&detokenize, ids, &text).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(PublicServicesTest, CompletionsAndLabelsDoNotMultiplyPromptsWithoutEnd) {
  model_.limits.max_call_tokens = 100;
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 4; ++i) {
    v1::GenerateRequest* request = batch.add_requests();
    *request = Prompt({1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
    request->set_n(3);
  }
  v1::GenerateBatchResponse completions;
  grpc::ClientContext generate;
  const grpc::Status many =
      v1::GenerationService::NewStub(channel_)->GenerateBatch(&generate, batch, &completions);
  EXPECT_EQ(many.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(many.error_message(), HasSubstr("more than 100 tokens"));
  v1::ScoreLabelsRequest labels;
  for (int i = 0; i < 10; ++i) {
    labels.add_labels(std::string(1, static_cast<char>('a' + i)));
    labels.add_inputs()->mutable_tokens()->add_ids(1);
  }
  const auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ScoreLabelsResponse scores;
  grpc::ClientContext score;
  EXPECT_EQ(stub->ScoreLabels(&score, labels, &scores).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  // Long labels come back with every input.
  model_.limits.max_call_tokens = 1 << 20;
  model_.limits.max_reply_bytes = 2000;
  labels.add_labels(std::string(200, 'x'));
  grpc::ClientContext again;
  EXPECT_EQ(stub->ScoreLabels(&again, labels, &scores).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(engine_.submitted(), 0u);
}

TEST_F(PublicServicesTest, AStatusDoesNotRepeatWhatWasAsked) {
  v1::ScoreLabelsRequest labels;
  for (int i = 0; i < 2; ++i) labels.add_labels("a secret");
  labels.add_inputs()->set_text("x");
  const auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ScoreLabelsResponse scores;
  grpc::ClientContext score;
  EXPECT_EQ(stub->ScoreLabels(&score, labels, &scores).error_message(), "labels[1] is there twice");
  v1::ClassifySequenceRequest classify;
  classify.set_head(std::string(1 << 20, 'h'));
  classify.add_inputs()->set_text("x");
  v1::ClassifySequenceResponse classes;
  grpc::ClientContext sequence;
  const grpc::Status status = stub->ClassifySequence(&sequence, classify, &classes);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("(a name of 1048576 bytes) is not loaded; loaded"));
}

// As when the file changed after the call was let in: then there is no account to limit it.
TEST_F(PublicServicesTest, ACallWhoseKeyIsGoneIsRefused) {
  const std::string path = testing::TempDir() + "/gone_keys";
  std::ofstream(path) << "alice alice-0123456789\n";
  const base::FakeClock clock;
  const auto keys = ApiKeys::Open(path, clock, clock);
  ASSERT_TRUE(keys.ok()) << keys.status();
  GenerationServiceImpl service(model_, engine_, executor_, keys->get());
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  const auto stub = v1::GenerationService::NewStub(server->InProcessChannel({}));
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer bob-0123456789abc");
  v1::GenerateResponse response;
  const auto reader = stub->Generate(&context, Prompt({1}));
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(engine_.submitted(), 0u);
  server->Shutdown();
}

TEST_F(PublicServicesTest, OneFailureCancelsTheRestOfABatch) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  *batch.add_requests() = Prompt({2});
  v1::GenerateBatchResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->GenerateBatch(&context, batch, &reply);
  });
  const Request second = engine_.Wait(1);
  Outcome lost;
  lost.status = absl::UnavailableError("gone");
  second.sink->OnEnd(lost);
  engine_.WaitForCancel(1);
  engine_.Wait(0).sink->OnEnd(Ended(FinishReason::kCancelled, 1, 0));
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(PublicServicesTest, CompletionsOfOnePromptAreToldApartByIndexAndEachEndsOnce) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateRequest call = Prompt({1, 2});
  call.set_n(3);
  call.mutable_sampling()->set_seed(41);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, call);
  std::vector<Request> requests;
  for (size_t i = 0; i < 3; ++i) requests.push_back(engine_.Wait(i));
  EXPECT_EQ(requests[2].sampling.seed(), 43u);
  const auto token = [](int id) { return std::vector<TokenEvent>{{id, false, 0, {}}}; };
  requests[1].sink->OnTokens(token(11));
  requests[0].sink->OnTokens(token(10));
  requests[1].sink->OnEnd(Ended(FinishReason::kLength, 2, 1));
  requests[2].sink->OnTokens(token(12));
  requests[2].sink->OnTokens(token(13));
  requests[2].sink->OnEnd(Ended(FinishReason::kLength, 2, 2));
  requests[0].sink->OnEnd(Ended(FinishReason::kLength, 2, 1));
  std::map<uint32_t, std::vector<uint32_t>> tokens;
  std::map<uint32_t, uint64_t> seeds;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    EXPECT_FALSE(seeds.contains(response.index())) << "a response after the finish";
    auto& all = tokens[response.index()];
    all.insert(all.end(), response.tokens().begin(), response.tokens().end());
    if (response.has_finish()) seeds[response.index()] = response.finish().seed();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(tokens[0], ElementsAre(10));
  EXPECT_THAT(tokens[1], ElementsAre(11));
  EXPECT_THAT(tokens[2], ElementsAre(12, 13));
  EXPECT_THAT(seeds, ElementsAre(Pair(0, 41), Pair(1, 42), Pair(2, 43)));
}

TEST_F(PublicServicesTest, OneCompletionThatFailsEndsTheOthers) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateRequest call = Prompt({1, 2});
  call.set_n(2);
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, call);
  const Request other = engine_.Wait(1);
  const Request first = engine_.Wait(0);
  Outcome late;
  late.status = absl::DeadlineExceededError("late");
  first.sink->OnEnd(late);
  engine_.WaitForCancel(2);
  other.sink->OnEnd(Ended(FinishReason::kCancelled, 2, 0));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(PublicServicesTest, ResultsOfABatchStandByRequestAndIndex) {
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  batch.mutable_requests(0)->set_n(2);
  *batch.add_requests() = Prompt({2});
  v1::GenerateBatchResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->GenerateBatch(&context, batch, &reply);
  });
  for (int i : {2, 0, 1}) {
    const Request request = engine_.Wait(i);
    request.sink->OnTokens(std::vector<TokenEvent>{{20 + i, false, 0, {}}});
    request.sink->OnEnd(Ended(FinishReason::kLength, 1, 1));
  }
  caller.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.results_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(reply.results(i).tokens(), ElementsAre(20 + i));
    EXPECT_EQ(reply.results(i).index(), i == 1 ? 1u : 0u);
  }
}

// The queue of 16 has room for four of a batch, and here for three.
TEST_F(PublicServicesTest, ABatchLargerThanTheQueueIsSubmittedAPartAtATime) {
  engine_.most_open = 3;
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifySequenceRequest request;
  request.set_head("mood");
  request.set_priority(7);
  request.set_user("batch");
  for (int i = 0; i < 100; ++i) request.add_inputs()->mutable_tokens()->add_ids(i);
  v1::ClassifySequenceResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->ClassifySequence(&context, request, &reply);
  });
  for (size_t i = 0; i < 100; ++i) {
    const Request input = engine_.Wait(i);
    EXPECT_EQ(input.priority, 7);
    EXPECT_EQ(input.user, "user batch");
    EXPECT_LE(engine_.submitted(), i + 3);
    input.sink->OnHeadLogits(0, 0, std::vector<float>{static_cast<float>(i), 0, 0});
    engine_.Leave(1);
    input.sink->OnEnd(Ended(FinishReason::kHeads, 1, 0));
  }
  caller.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.results_size(), 100);
  EXPECT_EQ(reply.results(42).labels(0).logit(), 42);
}

TEST_F(PublicServicesTest, AFullQueueCarriesARetryDelay) {
  engine_.most_open = 0;
  auto stub = v1::GenerationService::NewStub(channel_);
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt({1});
  v1::GenerateBatchResponse reply;
  grpc::ClientContext context;
  const grpc::Status status = stub->GenerateBatch(&context, batch, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(base::RetryDelay(base::FromGrpc(status)), absl::Seconds(2));
}

TEST_F(PublicServicesTest, ASequenceHeadReadsTheLastTokenThatIsNotPadding) {
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifySequenceRequest request;
  for (uint32_t id : {5, 6, 497}) request.add_inputs()->mutable_tokens()->add_ids(id);
  v1::Prompt* padded = request.add_inputs();
  for (uint32_t id : {5, 6, 497, 497}) padded->mutable_tokens()->add_ids(id);
  request.set_head("mood");
  v1::ClassifySequenceResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->ClassifySequence(&context, request, &reply);
  });
  const Request last = engine_.Wait(3);
  EXPECT_EQ(last.max_tokens, 0);
  ASSERT_EQ(last.heads.size(), 1);
  EXPECT_EQ(last.heads[0].first, 1);
  EXPECT_EQ(last.heads[0].count, 1);
  for (size_t i = 0; i < 4; ++i) {
    const Request input = engine_.Wait(i);
    input.sink->OnHeadLogits(0, 0, std::vector<float>{0, std::log(2.0F), 0});
    input.sink->OnEnd(Ended(FinishReason::kHeads, 1, 0));
  }
  caller.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.results_size(), 4);
  EXPECT_EQ(reply.results(0).labels(1).label(), "neutral");
  EXPECT_NEAR(reply.results(0).labels(1).score(), 0.5, 1e-6);
}

TEST_F(PublicServicesTest, TokenLabelsCoverTheTextByteForByte) {
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifyTokensRequest request;
  request.add_inputs()->set_text("hé!");
  v1::ClassifyTokensResponse reply;
  grpc::Status status;
  std::thread caller([&] {
    grpc::ClientContext context;
    status = stub->ClassifyTokens(&context, request, &reply);
  });
  const Request input = engine_.Wait(0);
  const size_t n = input.tokens.size();
  for (size_t i = 0; i < n; ++i) {  // in pieces, as chunks give them
    input.sink->OnHeadLogits(1, static_cast<int>(i), std::vector<float>{0, 3, 0, 0, 0});
  }
  input.sink->OnEnd(Ended(FinishReason::kHeads, static_cast<int>(n), 0));
  caller.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const v1::TokenClassification& result = reply.results(0);
  ASSERT_EQ(result.tokens_size(), static_cast<int>(n));
  uint32_t byte = 0;
  for (const v1::TokenLabel& token : result.tokens()) {
    EXPECT_EQ(token.start_byte(), byte);
    EXPECT_EQ(token.label(), "B-PER");
    byte = token.end_byte();
  }
  EXPECT_EQ(byte, 4);
}

TEST_F(PublicServicesTest, AnUnknownHeadListsTheHeads) {
  auto stub = v1::ClassificationService::NewStub(channel_);
  v1::ClassifySequenceRequest request;
  request.set_head("nope");
  request.add_inputs()->set_text("x");
  v1::ClassifySequenceResponse reply;
  grpc::ClientContext context;
  const grpc::Status status = stub->ClassifySequence(&context, request, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("mood"));
}

TEST_F(PublicServicesTest, ModelAndTokenizerAnswer) {
  auto stub = v1::ModelService::NewStub(channel_);
  v1::GetModelResponse model;
  grpc::ClientContext get;
  ASSERT_TRUE(stub->GetModel(&get, {}, &model).ok());
  EXPECT_EQ(model.name(), "tiny_gpt_oss");
  EXPECT_EQ(model.vocab_size(), 512);
  EXPECT_EQ(model.heads_size(), 2);
  EXPECT_TRUE(model.can_chat());
  EXPECT_EQ(model.limits().max_prompt_tokens(), model.context_length());
  EXPECT_EQ(model.limits().max_message_bytes(), 64 << 20);
  EXPECT_EQ(model.limits().max_unread_bytes(), 16 << 20);
  EXPECT_EQ(model.limits().max_reply_bytes(), 256 << 20);
  v1::TokenizeRequest request;
  request.set_text("hi <|start|>");
  v1::TokenizeResponse ids;
  grpc::ClientContext tokenize;
  ASSERT_TRUE(stub->Tokenize(&tokenize, request, &ids).ok());
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext detokenize;
  ASSERT_TRUE(stub->Detokenize(&detokenize, back, &text).ok());
  EXPECT_EQ(text.text(), "hi <|start|>");
  back.add_ids(512);
  grpc::ClientContext bad;
  EXPECT_THAT(stub->Detokenize(&bad, back, &text).error_message(), HasSubstr("is 512"));
}

}  // namespace
}  // namespace conclave::coordinator
