// The command against a server whose answers the test chooses: exit codes, output, and what is
// sent.

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli_testing.h"
#include "client/exit_code.h"
#include "client/fake_server.h"
#include "client/process.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace conclave::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

std::string LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  const size_t begin = text.rfind('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - begin);
}

TEST(CliUsageTest, EverySubcommandHasHelpWithAnExample) {
  for (const char* name : {"serve", "generate", "chat", "classify", "tokenize", "status",
                           "rebalance", "drain", "bench", "plan", "doctor"}) {
    const CommandResult result = RunConclave({name, "--help"});
    EXPECT_EQ(result.code, kExitOk) << name;
    EXPECT_THAT(result.out, HasSubstr("Example")) << name;
    EXPECT_THAT(result.out, HasSubstr(std::string("conclave ") + name)) << name;
    EXPECT_EQ(result.err, "") << name;
  }
}

TEST(CliUsageTest, WrongUsageIsOneLineAndExits2) {
  ExpectError(RunConclave({}), kExitUsage, "see 'conclave --help'");
  ExpectError(RunConclave({"nonsense"}), kExitUsage, "nonsense");
  ExpectError(RunConclave({"generate", "--nonsense"}), kExitUsage, "--nonsense");
  ExpectError(RunConclave({"generate"}), kExitUsage, "exactly one of --prompt TEXT and --tokens");
  ExpectError(RunConclave({"generate", "--prompt", "a", "--tokens", "1"}), kExitUsage,
              "exactly one of");
  ExpectError(RunConclave({"generate", "--tokens", "1,x"}), kExitUsage, "'x'");
  ExpectError(RunConclave({"generate", "--prompt", "a", "--max-tokens", "many"}), kExitUsage,
              "--max-tokens");
  for (const char* bias : {"42", "42:", ":1", "x:1", "42:1x", "-1:2"}) {
    ExpectError(RunConclave({"generate", "--prompt", "a", std::string("--logit-bias=") + bias}),
                kExitUsage, "--logit-bias is");
  }
  ExpectError(RunConclave({"serve", "--workers", "2"}), kExitUsage, "--model");
  ExpectError(RunConclave({"serve", "--model", "m", "--device", "tpu"}), kExitUsage, "--device");
  ExpectError(RunConclave({"serve", "--model", "m", "--head", "nameless"}), kExitUsage, "NAME=DIR");
  ExpectError(RunConclave({"serve", "--model", "m", "--head", "a=b", "--head", "a=c"}), kExitUsage,
              "twice");
}

TEST(CliUsageTest, AShapeThatContradictsExits2) {
  for (const char* command : {"serve", "plan"}) {
    ExpectError(RunConclave({command, "--model", "m", "--workers", "3", "--tp", "2"}), kExitUsage,
                "3");
    ExpectError(RunConclave({command, "--model", "m", "--workers", "4", "--dp", "4", "--tp", "2"}),
                kExitUsage, "4");
    // The model has 2 KV heads.
    ExpectError(
        RunConclave({command, "--model", "demo/tiny_gpt_oss", "--workers", "4", "--tp", "4"}),
        kExitUsage, "4");
  }
}

TEST(CliUsageTest, AMissingModelExits1) {
  ExpectError(RunConclave({"plan", "--model", "/nonexistent", "--workers", "1"}), kExitError,
              "/nonexistent");
  ExpectError(RunConclave({"serve", "--model", "/nonexistent", "--workers", "1"}), kExitError,
              "/nonexistent");
}

TEST(CliUsageTest, AServerThatIsNotThereIsSaidSo) {
  ExpectError(RunConclave({"status", "--server", "127.0.0.1:1"}), kExitError,
              "no server answers at 127.0.0.1:1");
}

TEST_F(CliTest, GeneratePrintsTextAsItIs) {
  AddPart({5}, "Hel");
  AddPart({7}, "lo");
  AddFinish();
  const CommandResult result = Run({"generate", "--prompt", "x"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "Hello\n");
  EXPECT_THAT(result.err, HasSubstr("length: 3 prompt + 2 generated tokens"));
}

TEST_F(CliTest, GenerateJsonIsTheObjectOfTheContract) {
  AddPart({5}, "Hel");
  AddPart({7}, "lo");
  AddFinish();
  const CommandResult result = Run({"generate", "--prompt", "x", "--json"});
  EXPECT_EQ(result.out, R"({"tokens":[5,7],"text":"Hello","finish_reason":"length",)"
                        R"("usage":{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":0}})"
                        "\n");
  EXPECT_EQ(result.err, "");
}

TEST_F(CliTest, GenerateSendsItsFlags) {
  AddFinish();
  const CommandResult result = Run({"generate",
                                    "--tokens",
                                    "1,2,3",
                                    "--max-tokens",
                                    "9",
                                    "--temperature",
                                    "0.5",
                                    "--seed",
                                    "18446744073709551615",
                                    "--top-k",
                                    "4",
                                    "--top-p",
                                    "0.5",
                                    "--min-p",
                                    "0.25",
                                    "--ignore-eos",
                                    "--stop-token",
                                    "8",
                                    "--stop-token",
                                    "9",
                                    "--stop-string",
                                    "\n\n",
                                    "--stop-string",
                                    "end of it",
                                    "--min-tokens",
                                    "3",
                                    "--repetition-penalty",
                                    "1.5",
                                    "--presence-penalty",
                                    "-0.5",
                                    "--frequency-penalty=-.25",
                                    "--logit-bias",
                                    "42:-100",
                                    "--logit-bias",
                                    "7:1.5",
                                    "--logprobs",
                                    "0",
                                    "--prompt-logprobs",
                                    "2",
                                    "--echo",
                                    "--json"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  const v1::GenerateRequest& sent = server_.requests.generate;
  EXPECT_THAT(sent.prompt().tokens().ids(), ElementsAre(1, 2, 3));
  EXPECT_EQ(sent.stop().max_tokens(), 9u);
  EXPECT_TRUE(sent.stop().ignore_eos());
  EXPECT_THAT(sent.stop().stop_token_ids(), ElementsAre(8, 9));
  EXPECT_EQ(sent.sampling().temperature(), 0.5f);
  EXPECT_EQ(sent.sampling().seed(), 18446744073709551615u);
  EXPECT_EQ(sent.sampling().top_k(), 4u);
  EXPECT_EQ(sent.sampling().top_p(), 0.5f);
  EXPECT_EQ(sent.sampling().min_p(), 0.25f);
  EXPECT_THAT(sent.stop().stop_strings(), ElementsAre("\n\n", "end of it"));
  EXPECT_EQ(sent.stop().min_tokens(), 3u);
  EXPECT_EQ(sent.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(sent.sampling().presence_penalty(), -0.5f);
  EXPECT_EQ(sent.sampling().frequency_penalty(), -0.25f);
  EXPECT_EQ(sent.sampling().logit_bias_size(), 2);
  EXPECT_EQ(sent.sampling().logit_bias().at(42), -100.0f);
  EXPECT_EQ(sent.sampling().logit_bias().at(7), 1.5f);
  EXPECT_TRUE(sent.has_logprobs());
  EXPECT_EQ(sent.prompt_logprobs(), 2u);
  EXPECT_TRUE(sent.echo());
  EXPECT_TRUE(Json::parse(result.out).contains("logprobs"));
}

TEST_F(CliTest, GenerateLeavesUnsetWhatWasNotGiven) {
  AddFinish();
  Run({"generate", "--prompt=-starts with a dash"});
  const v1::GenerateRequest& sent = server_.requests.generate;
  EXPECT_EQ(sent.prompt().text(), "-starts with a dash");
  EXPECT_FALSE(sent.sampling().has_temperature());
  EXPECT_FALSE(sent.sampling().has_seed());
  EXPECT_FALSE(sent.has_logprobs());
  EXPECT_FALSE(sent.has_prompt_logprobs());
  EXPECT_FALSE(sent.echo());
  EXPECT_FALSE(sent.sampling().has_repetition_penalty());
}

TEST_F(CliTest, GeneratePrintsTheEchoedPromptAndItsLogprobs) {
  v1::GenerateResponse part;
  part.mutable_prompt()->add_tokens(5);
  part.mutable_prompt()->set_text("Once ");
  v1::TokenLogprobs* logprob = part.mutable_prompt()->add_logprobs();
  logprob->set_token(6);
  logprob->set_logprob(-0.5f);
  server_.answers.stream.push_back(part);
  AddPart({7}, "upon");
  AddFinish();
  const CommandResult result = Run({"generate", "--prompt", "Once ", "--echo"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.out, StartsWith("Once upon\n"));
  EXPECT_THAT(result.out, HasSubstr("-0.5000"));
  const Json json = Json::parse(Run({"generate", "--prompt", "Once ", "--echo", "--json"}).out);
  EXPECT_EQ(json["prompt"]["text"], "Once ");
  EXPECT_EQ(json["prompt_logprobs"][0]["token"], 6);
  EXPECT_EQ(json["text"], "upon");
}

TEST_F(CliTest, WhatTheServerShouldRefuseReachesIt) {
  server_.answers.status = {grpc::StatusCode::INVALID_ARGUMENT, "refused: 17"};
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"--prompt", ""},
                                             {"--tokens", ""},
                                             {"--prompt", "a", "--max-tokens", "0"},
                                             {"--prompt", "a", "--temperature", "nan"},
                                             {"--prompt", "a", "--temperature", "-1"}}) {
    std::vector<std::string> arguments = {"generate"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    ExpectError(Run(arguments), kExitError, "INVALID_ARGUMENT: refused: 17");
  }
  EXPECT_EQ(server_.requests.generate.sampling().temperature(), -1);
}

TEST_F(CliTest, TextThatIsNotUtf8IsRefused) {
  ExpectError(Run({"generate", "--prompt", "ab\xff"}), kExitError,
              "INVALID_ARGUMENT: --prompt is not UTF-8 at byte 2");
}

TEST_F(CliTest, AnErrorInMidStreamKeepsTheTextAndExits1) {
  AddPart({5}, "Hel");
  server_.answers.status = {grpc::StatusCode::UNAVAILABLE, "rank 2 was lost"};
  const CommandResult result = Run({"generate", "--prompt", "x"});
  EXPECT_EQ(result.code, kExitError);
  EXPECT_EQ(result.out, "Hel\n");
  EXPECT_EQ(result.err, "conclave generate: UNAVAILABLE: rank 2 was lost\n");
}

TEST_F(CliTest, CtrlCCancelsAndKeepsWhatArrived) {
  AddPart({5, 6}, "Hel");
  server_.answers.hang = true;
  const auto process = Spawn({.argv = {ConclaveBinary(), "generate", "--server", server_.address(),
                                       "--tokens", "1,2,3", "--json"},
                              .log_file = ""});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(WaitUntil([&] { return server_.requests.generate.has_prompt(); }));
  ASSERT_EQ(kill(process->pid, SIGINT), 0);
  int status = 0;
  const bool ended =
      WaitUntil([&] { return waitpid(process->pid, &status, WNOHANG) == process->pid; });
  if (!ended) kill(process->pid, SIGKILL);
  ASSERT_TRUE(ended);
  ASSERT_TRUE(WIFEXITED(status)) << DescribeExit(status);
  EXPECT_EQ(WEXITSTATUS(status), kExitInterrupted);
  std::string out(4096, '\0');
  const ssize_t size = read(process->stdout_fd, out.data(), out.size());
  ASSERT_GT(size, 0);
  const Json json = Json::parse(LastLine(out.substr(0, size)));
  EXPECT_EQ(json["finish_reason"], "cancelled");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(json["usage"]["completion_tokens"], json["tokens"].size());
  close(process->stdout_fd);
  close(process->stderr_fd);
}

TEST_F(CliTest, ClassifyAsksTheMethodOfTheHead) {
  AddHead("mood", v1::HeadInfo::SEQUENCE);
  AddHead("names", v1::HeadInfo::TOKEN);
  v1::LabelScore* label = server_.answers.sequence.add_results()->add_labels();
  label->set_label("good");
  label->set_score(0.75);
  label->set_logit(1.5);
  server_.answers.tokens.add_results()->add_tokens()->set_token(4);

  const CommandResult sequence = Run({"classify", "--head", "mood", "--text", "a", "--json"});
  EXPECT_EQ(
      sequence.out,
      "{\"labels\":[{\"label\":\"good\",\"score\":0.75,\"logit\":1.5}],\"truncated\":false}\n");
  EXPECT_EQ(server_.requests.sequence.head(), "mood");
  EXPECT_EQ(server_.requests.sequence.inputs(0).text(), "a");

  const CommandResult tokens = Run({"classify", "--head", "names", "--tokens", "4", "--json"});
  const Json json = Json::parse(tokens.out);
  EXPECT_EQ(json["tokens"][0]["token"], 4);
  EXPECT_TRUE(json["spans"].is_array());
  EXPECT_EQ(json["truncated"], false);
  EXPECT_THAT(server_.requests.tokens.inputs(0).tokens().ids(), ElementsAre(4));
}

TEST_F(CliTest, ClassifyPrintsTables) {
  AddHead("names", v1::HeadInfo::TOKEN);
  v1::TokenClassification* result = server_.answers.tokens.add_results();
  v1::TokenLabel* token = result->add_tokens();
  token->set_token(4);
  token->set_label("B-CITY");
  token->set_end_byte(5);
  v1::TokenSpan* span = result->add_spans();
  span->set_label("CITY");
  span->set_text("Paris");
  const CommandResult tokens = Run({"classify", "--text", "Paris"});
  EXPECT_EQ(tokens.code, kExitOk) << tokens.err;
  EXPECT_THAT(tokens.out, HasSubstr("B-CITY"));
  EXPECT_THAT(tokens.out, HasSubstr("Paris"));
}

TEST_F(CliTest, ClassifySaysThatATextWasCut) {
  AddHead("mood", v1::HeadInfo::SEQUENCE);
  v1::SequenceClassification* result = server_.answers.sequence.add_results();
  result->set_truncated(true);
  result->mutable_usage()->set_prompt_tokens(4096);
  const CommandResult cut = Run({"classify", "--text", "-", "--truncate"});
  EXPECT_EQ(cut.code, kExitOk);
  EXPECT_THAT(cut.err, HasSubstr("its first 4096 tokens were read"));
  EXPECT_EQ(server_.requests.sequence.inputs(0).text(), "");  // standard input was /dev/null
}

TEST_F(CliTest, AnUnknownHeadIsForTheServerToRefuse) {
  AddHead("names", v1::HeadInfo::TOKEN);
  server_.answers.status = {grpc::StatusCode::INVALID_ARGUMENT, "head 'x' is unknown: names"};
  ExpectError(Run({"classify", "--head", "x", "--text", "a"}), kExitError,
              "INVALID_ARGUMENT: head 'x' is unknown: names");
  // By the method that the server has a head for.
  EXPECT_EQ(server_.requests.tokens.head(), "x");
}

TEST_F(CliTest, ClassifyByLabelsAsksTheLanguageModel) {
  server_.answers.model.set_can_chat(false);
  v1::LabelScoring* result = server_.answers.labels.add_results();
  result->add_labels()->set_score(0.75);
  result->add_labels()->set_score(0.25);
  const CommandResult json = Run({"classify", "--labels", "spam, ham", "--text", "hi",
                                  "--calibrate", "--json", "--priority", "2", "--user", "bob"});
  EXPECT_EQ(json.code, kExitOk) << json.err;
  EXPECT_EQ(Json::parse(json.out)["labels"][0]["label"], "spam");
  EXPECT_EQ(Json::parse(json.out)["labels"][1]["score"], 0.25);
  EXPECT_THAT(server_.requests.labels.labels(), ElementsAre(" spam", " ham"));
  EXPECT_EQ(server_.requests.labels.priority(), 2);
  EXPECT_EQ(server_.requests.labels.user(), "bob");
  EXPECT_THAT(server_.requests.labels.inputs(0).text(), HasSubstr("Text: hi\nLabel:"));
  EXPECT_THAT(server_.requests.labels.null_prompt().text(), HasSubstr("Text: N/A\nLabel:"));
  server_.answers.model.set_can_chat(true);
  EXPECT_THAT(Run({"classify", "--labels", "spam,ham", "--text", "hi"}).out, HasSubstr("0.7500"));
  EXPECT_THAT(server_.requests.labels.labels(), ElementsAre("spam", "ham"));
  EXPECT_TRUE(server_.requests.labels.inputs(0).has_conversation());
  ExpectError(Run({"classify", "--labels", "a,b", "--text", "x", "--head", "h"}), kExitUsage,
              "--labels");
  ExpectError(Run({"classify", "--labels", "", "--text", "x"}), kExitUsage, "--labels is empty");
  ExpectError(Run({"classify", "--labels", "a,b", "--text", "x", "--template", "T:"}), kExitUsage,
              "--template needs {text}");
}

TEST_F(CliTest, ClassifySendsItsOptions) {
  AddHead("mood", v1::HeadInfo::SEQUENCE);
  AddHead("names", v1::HeadInfo::TOKEN);
  server_.answers.sequence.add_results();
  server_.answers.tokens.add_results();
  Run({"classify", "--head", "mood", "--text", "a", "--pair", "b", "--top-k", "2", "--function",
       "sigmoid", "--truncate", "--priority", "3", "--user", "cy"});
  EXPECT_EQ(server_.requests.sequence.pairs(0).text(), "b");
  EXPECT_EQ(server_.requests.sequence.top_k(), 2u);
  EXPECT_EQ(server_.requests.sequence.function_to_apply(), v1::SCORE_FUNCTION_SIGMOID);
  EXPECT_TRUE(server_.requests.sequence.truncate());
  EXPECT_EQ(server_.requests.sequence.priority(), 3);
  EXPECT_EQ(server_.requests.sequence.user(), "cy");
  Run({"classify", "--head", "names", "--text", "a", "--aggregation", "max", "--scheme", "bioes",
       "--priority", "4"});
  EXPECT_EQ(server_.requests.tokens.aggregation(), v1::AGGREGATION_MAX);
  EXPECT_EQ(server_.requests.tokens.scheme(), v1::LABEL_SCHEME_BIOES);
  EXPECT_EQ(server_.requests.tokens.priority(), 4);
  ExpectError(Run({"classify", "--head", "mood", "--text", "a", "--function", "tanh"}), kExitUsage,
              "--function is one of softmax, sigmoid, none");
  ExpectError(Run({"classify", "--head", "mood", "--text", "a", "--scheme", "bio"}), kExitUsage,
              "'mood' labels whole texts");
  ExpectError(Run({"classify", "--head", "names", "--text", "a", "--pair", "b"}), kExitUsage,
              "'names' labels tokens");
}

TEST_F(CliTest, StatusShowsRanksAndCounters) {
  v1::GetClusterResponse& cluster = server_.answers.cluster;
  cluster.set_state(v1::READY);
  cluster.set_dp(1);
  cluster.set_tp(1);
  v1::Rank* rank = cluster.add_ranks();
  rank->set_device("cpu: Some CPU");
  rank->set_pid(4321);
  for (int layer = 0; layer < 2; ++layer) {
    v1::LayerExperts* experts = rank->add_layers();
    for (uint32_t expert = 0; expert < 8; ++expert) {
      experts->add_experts(expert);
      experts->add_load(1);
    }
  }
  cluster.mutable_counters()->set_tokens_computed(77);
  const CommandResult human = Run({"status"});
  EXPECT_EQ(human.code, kExitOk) << human.err;
  for (const char* text : {"READY", "Some CPU", "4321", "0-7", "100 %", "77 tokens"}) {
    EXPECT_THAT(human.out, HasSubstr(text));
  }
  EXPECT_THAT(human.out, ::testing::Not(HasSubstr("imbalance"))) << "of one rank";
  *cluster.add_ranks() = *rank;
  for (auto& layer : *cluster.mutable_ranks(0)->mutable_layers()) layer.set_load(0, 9);
  EXPECT_THAT(Run({"status"}).out, HasSubstr("imbalance 1.33 (mean of 2 layers), 1.33"));
  const CommandResult json = Run({"status", "--json"});
  EXPECT_EQ(Json::parse(json.out)["ranks"][0]["pid"], 4321);
  EXPECT_EQ(std::count(json.out.begin(), json.out.end(), '\n'), 1);
}

// Elsewhere than on a terminal: one object, or one table, for each look.
TEST_F(CliTest, StatusWatchLooksAgainAndAgain) {
  server_.answers.cluster.set_state(v1::READY);
  server_.answers.cluster.set_epoch(5);
  for (const bool json : {true, false}) {
    std::vector<std::string> argv = {ConclaveBinary(), "status", "--server", server_.address(),
                                     "--watch=0.05"};
    if (json) argv.emplace_back("--json");
    const auto process = Spawn({.argv = argv, .log_file = ""});
    ASSERT_TRUE(process.ok()) << process.status();
    std::string out;
    const auto looks = [&] {
      std::array<char, 4096> buffer;
      const ssize_t size = read(process->stdout_fd, buffer.data(), buffer.size());
      if (size > 0) out.append(buffer.data(), static_cast<size_t>(size));
      int count = 0;
      const std::string mark = json ? "\"epoch\":5" : "READY";
      for (size_t at = 0; (at = out.find(mark, at)) != out.npos; ++at) ++count;
      return count;
    };
    EXPECT_TRUE(WaitUntil([&] { return looks() >= 3; })) << out;
    kill(process->pid, SIGKILL);
    waitpid(process->pid, nullptr, 0);
    close(process->stdout_fd);
    close(process->stderr_fd);
    if (json) {
      EXPECT_EQ(Json::parse(out.substr(0, out.find('\n')))["epoch"], 5);
    } else {
      EXPECT_THAT(out, HasSubstr("tokens/s computed"));
      EXPECT_THAT(out, ::testing::Not(HasSubstr("\x1b")));
    }
  }
  EXPECT_EQ(Run({"status", "--watch", "never"}).code, kExitUsage);
}

// What a terminal shows after the bytes it got. Knows the sequences of a live table alone.
class Screen {
 public:
  void Take(std::string_view bytes) {
    pending_ += bytes;
    while (!pending_.empty()) {
      const size_t taken = TakeOne(pending_);
      if (taken == 0) return;  // the rest of it has not come
      pending_.erase(0, taken);
    }
  }
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  size_t TakeOne(std::string_view text) {
    if (text[0] == '\x1b') {
      if (text.size() < 3) return 0;
      if (text.starts_with("\x1b[H")) {
        row_ = column_ = 0;
      } else if (text.starts_with("\x1b[K") || text.starts_with("\x1b[J")) {
        Line().resize(column_);
        if (text[2] == 'J') lines_.resize(row_ + 1);
      } else {
        ADD_FAILURE() << "what is ESC " << text.substr(1, 8);
      }
      return 3;
    }
    if (text[0] == '\n') {
      ++row_;
    } else if (text[0] == '\r') {
      column_ = 0;
    } else {
      if (Line().size() <= column_) Line().resize(column_ + 1, ' ');
      Line()[column_++] = text[0];
    }
    return 1;
  }
  std::string& Line() {
    if (lines_.size() <= row_) lines_.resize(row_ + 1);
    return lines_[row_];
  }

  std::string pending_;
  std::vector<std::string> lines_;
  size_t row_ = 0;
  size_t column_ = 0;
};

TEST_F(CliTest, OnATerminalStatusWatchShowsTheLastLookAndNothingOfThoseBefore) {
  v1::GetClusterResponse few;
  few.set_state(v1::READY);
  few.add_ranks()->set_device("cpu");
  server_.answers.cluster = few;
  std::vector<std::string> expected;  // below the time and the rates
  std::istringstream once(Run({"status"}).out);
  for (std::string line; std::getline(once, line);) expected.push_back(line);
  ASSERT_GT(expected.size(), 3u);

  v1::GetClusterResponse many = few;
  many.set_state(v1::RECOVERING);
  many.set_problem(std::string(150, 'x'));
  for (int rank = 1; rank < 8; ++rank) *many.add_ranks() = few.ranks(0);
  server_.answers.look = [&few, &many, looks = 0]() mutable { return ++looks < 4 ? many : few; };
  const std::string binary = ConclaveBinary();
  int terminal = -1;
  const winsize size = {100, 300, 0, 0};
  const pid_t pid = forkpty(&terminal, nullptr, nullptr, &size);
  if (pid == 0) {
    execl(binary.c_str(), "conclave", "status", "--server", server_.address().c_str(),
          "--watch=0.05", nullptr);
    _exit(127);
  }
  ASSERT_GT(pid, 0);
  fcntl(terminal, F_SETFL, O_NONBLOCK);
  Screen screen;
  const auto shows = [&] {
    std::array<char, 4096> buffer;
    const ssize_t got = read(terminal, buffer.data(), buffer.size());
    if (got > 0) screen.Take({buffer.data(), static_cast<size_t>(got)});
    std::vector<std::string> lines = screen.lines();
    if (lines.size() < 2 || !lines[1].starts_with("rates ")) return false;
    while (lines.back().empty()) lines.pop_back();
    return std::equal(lines.begin() + 2, lines.end(), expected.begin(), expected.end());
  };
  EXPECT_TRUE(WaitUntil(shows)) << ::testing::PrintToString(screen.lines());
  EXPECT_THAT(screen.lines()[0], HasSubstr(server_.address()));
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  close(terminal);
}

TEST_F(CliTest, DrainSaysHowItWent) {
  v1::DrainResponse& answer = server_.answers.drain;
  answer.set_draining(true);
  answer.set_calls(7);
  answer.set_cut(2);
  answer.set_seconds(1.5);
  const CommandResult human = Run({"drain", "--limit", "20"});
  EXPECT_EQ(human.code, kExitOk) << human.err;
  EXPECT_EQ(server_.requests.drain.limit_seconds(), 20);
  EXPECT_THAT(human.out, HasSubstr("in 1.50 s: 7 calls were under way, 2 were cut short"));
  EXPECT_EQ(Json::parse(Run({"drain", "--json"}).out)["cut"], 2);
  EXPECT_FALSE(server_.requests.drain.has_limit_seconds());
  answer.set_draining(false);
  EXPECT_THAT(Run({"drain", "--resume"}).out, HasSubstr("work is taken again"));
  EXPECT_TRUE(server_.requests.drain.resume());
}

TEST_F(CliTest, RebalanceSaysWhatMovedAndWhatItGained) {
  v1::RebalanceResponse& answer = server_.answers.rebalance;
  answer.set_epoch(4);
  answer.set_seconds(1.25);
  for (const double before : {3.0, 2.0}) {
    answer.add_layers()->set_imbalance_before(before);
    answer.mutable_layers(answer.layers_size() - 1)->set_imbalance_after(1.1);
  }
  answer.add_ranks()->set_held(40);
  answer.add_ranks()->set_gained(3);
  answer.mutable_ranks(1)->set_loaded_bytes(5 << 20);
  const CommandResult human = Run({"rebalance", "--replicas", "8"});
  EXPECT_EQ(human.code, kExitOk) << human.err;
  EXPECT_EQ(server_.requests.rebalance.replicas(), 8u);
  EXPECT_FALSE(server_.requests.rebalance.dry_run());
  for (const char* text : {"2.50 -> 1.10", "3.00 -> 1.10", "1.25 s, epoch 4", "40", "5.0 MiB"}) {
    EXPECT_THAT(human.out, HasSubstr(text));
  }
  answer.set_seconds(0);
  const CommandResult json = Run({"rebalance", "--dry-run", "--json"});
  EXPECT_TRUE(server_.requests.rebalance.dry_run());
  EXPECT_EQ(server_.requests.rebalance.replicas(), 0u);
  EXPECT_EQ(Json::parse(json.out)["ranks"][1]["gained"], 3);
  EXPECT_THAT(Run({"rebalance", "--dry-run"}).out, HasSubstr("nothing was moved"));
  server_.answers.status = {grpc::StatusCode::FAILED_PRECONDITION, "no expert load"};
  const CommandResult failed = Run({"rebalance"});
  EXPECT_EQ(failed.code, kExitError);
  EXPECT_THAT(failed.err, HasSubstr("conclave rebalance: FAILED_PRECONDITION: no expert load"));
}

TEST(CliPlanTest, EveryExpertHasARankAndBytesAddUp) {
  const CommandResult result =
      RunConclave({"plan", "--model", "demo/tiny_gpt_oss", "--workers", "3", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["dp"], 3);
  EXPECT_EQ(json["tp"], 1);
  ASSERT_EQ(json["ranks"].size(), 3u);
  for (size_t layer = 0; layer < 4; ++layer) {
    std::vector<int> experts;
    for (const Json& rank : json["ranks"]) {
      for (const Json& expert : rank["experts"][layer]) experts.push_back(expert);
    }
    std::sort(experts.begin(), experts.end());
    ASSERT_EQ(experts.size(), 16u);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(experts[i], i);
  }
  for (const Json& rank : json["ranks"]) {
    const Json& bytes = rank["bytes"];
    EXPECT_GT(bytes["experts"], 0);
    EXPECT_EQ(bytes["total"].get<int64_t>(), bytes["experts"].get<int64_t>() +
                                                 bytes["attention"].get<int64_t>() +
                                                 bytes["embedding"].get<int64_t>());
    // 4 layers x K and V x 2 heads x 64 values x 4 bytes.
    EXPECT_EQ(rank["kv_bytes_per_token"], 4096);
  }
}

TEST(CliPlanTest, TheExpertMapIsReadable) {
  const CommandResult result =
      RunConclave({"plan", "--model", "demo/tiny_gpt_oss", "--workers", "4"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("12-15"));
  EXPECT_THAT(result.out, HasSubstr("rank 3"));
}

}  // namespace
}  // namespace conclave::client
