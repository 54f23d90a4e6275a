// The `conclave` command against a running service: the contract that scripts rely on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::string Join(const Tokens& tokens) {
  std::string text;
  for (uint32_t token : tokens) text += (text.empty() ? "" : ",") + std::to_string(token);
  return text;
}

CommandResult Conclave(std::vector<std::string> args, const std::string& input = "") {
  args.insert(args.begin(), BinaryPath("client/conclave"));
  return RunCommand(args, input);
}

Json LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  const size_t start = text.find_last_of('\n', end);
  return Json::parse(text.substr(start == std::string::npos ? 0 : start + 1, end - start));
}

// One line on stderr, nothing on stdout, the exit code.
void ExpectError(const CommandResult& result, int exit_code, const std::string& part) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_THAT(result.err, HasSubstr(part));
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

void ExpectBytesAddUp(const Json& rank) {
  const Json& bytes = rank["bytes"];
  EXPECT_GT(bytes["experts"].get<int64_t>(), 0);
  EXPECT_EQ(bytes["total"].get<int64_t>(), bytes["experts"].get<int64_t>() +
                                               bytes["attention"].get<int64_t>() +
                                               bytes["embedding"].get<int64_t>());
}

class CommandTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new Server({.workers = 2,
                          .args = {"--head", "mood=demo/tiny_gpt_oss/head_sequence", "--head",
                                   "ner=demo/tiny_gpt_oss/head_token"}});
    ASSERT_TRUE(server_->WaitServing()) << server_->log();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  static CommandResult Call(std::vector<std::string> args) {
    args.insert(args.begin() + 1, {"--server", server_->address()});
    return Conclave(std::move(args));
  }

  static Server* server_;
};

Server* CommandTest::server_ = nullptr;

TEST_F(CommandTest, GenerateJsonHasTokensTextFinishAndUsage) {
  const GoldenCase golden = LoadGoldens()[1];
  const CommandResult result =
      Call({"generate", "--tokens", Join(golden.prompt), "--max-tokens", "24", "--temperature", "0",
            "--ignore-eos", "--logprobs", "3", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  EXPECT_EQ(json["tokens"].get<Tokens>(), golden.greedy);
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["prompt_tokens"], golden.prompt.size());
  EXPECT_EQ(json["usage"]["completion_tokens"], 24);
  EXPECT_TRUE(json["text"].is_string());
  ASSERT_EQ(json["logprobs"].size(), 24);
  for (const Json& entry : json["logprobs"]) {
    ASSERT_EQ(entry["top"].size(), 3);
    EXPECT_EQ(entry["top"][0]["token"], entry["token"]);  // greedy takes the most likely
    EXPECT_EQ(entry["top"][0]["logprob"], entry["logprob"]);
    EXPECT_GE(entry["top"][0]["logprob"], entry["top"][1]["logprob"]);
    EXPECT_LE(entry["logprob"], 0.0);
  }
}

// What a client asks without an option, cut by hand, is what it gets with the option.
TEST_F(CommandTest, GenerateStopsAtAStringAndEchoesThePrompt) {
  const std::vector<std::string> args = {"generate",     "--prompt", "Hello", "--max-tokens",  "24",
                                         "--ignore-eos", "--seed",   "7",     "--temperature", "1",
                                         "--json"};
  const Json whole = LastLine(Call(args).out);
  const std::string text = whole["text"];
  ASSERT_GT(text.size(), 12u);
  // Two characters from the middle: the demo's random text is not all ASCII, nor all UTF-8.
  const auto ascii = [](char byte) { return byte > ' '; };
  const auto middle = text.begin() + static_cast<int64_t>(text.size() / 3);
  const auto at =
      std::adjacent_find(middle, text.end(), [&](char a, char b) { return ascii(a) && ascii(b); });
  ASSERT_NE(at, text.end()) << text;
  const std::string stop(at, at + 2);
  std::vector<std::string> stopping = args;
  stopping.insert(stopping.end(),
                  {"--stop-string", stop, "--echo", "--prompt-logprobs", "1", "--logprobs", "0"});
  const CommandResult result = Call(stopping);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  EXPECT_EQ(json["finish_reason"], "stop");
  EXPECT_EQ(json["stop_string"], stop);
  EXPECT_EQ(json["text"], text.substr(0, text.find(stop)));
  const size_t count = json["tokens"].size();
  EXPECT_LT(count, 24u);
  EXPECT_EQ(json["usage"]["completion_tokens"], count);
  EXPECT_EQ(json["tokens"],
            Json(std::vector<Json>(whole["tokens"].begin(), whole["tokens"].begin() + count)));
  EXPECT_EQ(json["prompt"]["text"], "Hello");
  EXPECT_EQ(json["prompt_logprobs"].size() + 1, json["prompt"]["tokens"].size());
}

TEST_F(CommandTest, GeneratePenalizesAndBiases) {
  const auto tokens = [](std::vector<std::string> options) {
    std::vector<std::string> args = {"generate", "--tokens",      "1,2,3", "--max-tokens", "32",
                                     "--json",   "--temperature", "0",     "--ignore-eos"};
    args.insert(args.end(), options.begin(), options.end());
    const CommandResult result = Call(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return LastLine(result.out)["tokens"].get<std::vector<int>>();
  };
  const std::vector<int> plain = tokens({});
  EXPECT_EQ(tokens({"--logit-bias", "77:100"}), std::vector<int>(32, 77));
  const std::vector<int> banned = tokens({"--logit-bias", std::to_string(plain[0]) + ":-100"});
  EXPECT_EQ(std::count(banned.begin(), banned.end(), plain[0]), 0);
  // With the largest penalties nothing comes twice, not even a token that was forced.
  const std::vector<int> distinct =
      tokens({"--logit-bias", "77:20", "--repetition-penalty", "100", "--presence-penalty", "2"});
  EXPECT_EQ(distinct[0], 77);
  EXPECT_EQ(std::count(distinct.begin(), distinct.end(), 77), 1);
}

TEST_F(CommandTest, GenerateFromTextRepeatsWithItsSeed) {
  const std::vector<std::string> args = {"generate", "--prompt",      "Hello", "--max-tokens",
                                         "12",       "--temperature", "1",     "--seed",
                                         "7",        "--json"};
  const CommandResult first = Call(args);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(LastLine(first.out)["tokens"], LastLine(Call(args).out)["tokens"]);
}

TEST_F(CommandTest, ClassifySequenceJsonListsLabelsInIdOrder) {
  const CommandResult result =
      Call({"classify", "--head", "mood", "--text", "a fine day", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json labels = LastLine(result.out)["labels"];
  ASSERT_EQ(labels.size(), 3);
  EXPECT_EQ(labels[0]["label"], "negative");
  EXPECT_EQ(labels[2]["label"], "positive");
  double sum = 0;
  for (const Json& label : labels) {
    sum += label["score"].get<double>();
    EXPECT_TRUE(label["logit"].is_number());
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
}

TEST_F(CommandTest, ClassifyTokensJsonCoversTheText) {
  const std::string text = "Zoë in Łódź";
  const CommandResult result = Call({"classify", "--head", "ner", "--text", text, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  size_t byte = 0;
  for (const Json& token : json["tokens"]) {
    EXPECT_EQ(token["start_byte"], byte);
    byte = token["end_byte"];
    EXPECT_EQ(token["logits"].size(), 5);
    EXPECT_TRUE(token["label"].is_string());
    EXPECT_TRUE(token["token"].is_number());
  }
  EXPECT_EQ(byte, text.size());
  for (const Json& span : json["spans"]) {
    const size_t start = span["start_byte"];
    const size_t end = span["end_byte"];
    EXPECT_EQ(span["text"], text.substr(start, end - start));
    EXPECT_LE(span["start_char"], span["start_byte"]);
    EXPECT_TRUE(span.contains("end_char"));
    EXPECT_TRUE(span.contains("score"));
  }
}

// Random weights say nothing of sense, but they say it in the contract's form.
TEST_F(CommandTest, ChatAnswersWithWhateverTheModelSays) {
  const std::vector<std::string> args = {"chat", "--message", "Hi", "--max-tokens",
                                         "12",   "--seed",    "3",  "--json"};
  const CommandResult result = Call(args);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  EXPECT_GT(json["usage"]["prompt_tokens"], 20);
  EXPECT_LE(json["usage"]["completion_tokens"], 12);
  EXPECT_TRUE(json["malformed"].is_boolean());
  EXPECT_EQ(LastLine(Call(args).out)["text"], json["text"]);
}

TEST_F(CommandTest, ClassifyPairsTopLabelsAndAggregation) {
  const CommandResult pair = Call({"classify", "--head", "mood", "--text", "a fine day", "--pair",
                                   "or not", "--top-k", "2", "--json"});
  ASSERT_EQ(pair.exit_code, 0) << pair.err;
  const Json labels = LastLine(pair.out)["labels"];
  ASSERT_EQ(labels.size(), 2);
  EXPECT_GE(labels[0]["score"], labels[1]["score"]);
  const std::string longer(2000, 'x');
  ExpectError(Call({"classify", "--head", "mood", "--text", longer}), 1, "inputs[0]");
  EXPECT_EQ(Call({"classify", "--head", "mood", "--text", longer, "--truncate"}).exit_code, 0);
  const CommandResult none = Call({"classify", "--head", "ner", "--text", "Anna in New York",
                                   "--aggregation", "none", "--json"});
  ASSERT_EQ(none.exit_code, 0) << none.err;
  const Json json = LastLine(none.out);
  size_t inside = 0;
  for (const Json& token : json["tokens"]) inside += token["label"] != "O" ? 1 : 0;
  EXPECT_EQ(json["spans"].size(), inside);
}

// tests/e2e/label_goldens.py made the sums from Transformers' logits.
TEST_F(CommandTest, LabelsScoreAsInTransformers) {
  std::ifstream file("tests/e2e/label_goldens.json");
  const Json cases = Json::parse(file);
  ASSERT_GE(cases.size(), 5u);
  for (const Json& golden : cases) {
    std::string labels;
    for (const auto& [label, sum] : golden["sums"].items()) {
      labels += (labels.empty() ? "" : ",") + label;
    }
    const CommandResult result = Call({"classify", "--labels", labels, "--template", "{text}",
                                       "--text", golden["prompt"].get<std::string>(), "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = LastLine(result.out);
    EXPECT_EQ(json["usage"]["prompt_tokens"], golden["tokens"]);
    double total = 0;
    for (const Json& label : json["labels"]) {
      const double expected = golden["sums"][label["label"].get<std::string>()];
      EXPECT_NEAR(label["logprob_sum"], expected, 1e-4) << label["label"];
      EXPECT_NEAR(label["logprob_mean"].get<double>() * label["tokens"].get<double>(), expected,
                  1e-4);
      total += label["score"].get<double>();
    }
    EXPECT_NEAR(total, 1.0, 1e-9);
  }
}

// Labels share the prompt's whole KV blocks: what each computes itself is a part of a block and the
// label.
TEST_F(CommandTest, APromptIsComputedOnceForAllItsLabels) {
  const auto computed = [] {
    const Json status = LastLine(Call({"status", "--json"}).out);
    return status["counters"]["tokens_computed"].get<int64_t>();
  };
  std::string text = "counted once:";
  for (int i = 0; i < 30; ++i) text += " " + std::to_string(i);
  const int64_t before = computed();
  const CommandResult result = Call({"classify", "--labels", "a,b,c,d,e,f,g,h", "--template",
                                     "{text}", "--text", text, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const int64_t cost = computed() - before;
  const Json usage = LastLine(result.out)["usage"];
  const int64_t prompt = usage["prompt_tokens"];
  constexpr int64_t kLabels = 8;
  constexpr int64_t kBlock = 16;
  ASSERT_GT(prompt, 4 * kBlock);
  EXPECT_GE(cost, prompt);
  EXPECT_LE(cost, prompt + kLabels * kBlock + usage["completion_tokens"].get<int64_t>());
}

TEST_F(CommandTest, CalibratedLabelsAreScoredAgainstNoText) {
  const auto ask = [](std::vector<std::string> more) {
    std::vector<std::string> args = {"classify", "--labels", "spam,ham", "--text", "N/A", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return LastLine(Call(args).out)["labels"];
  };
  // The text that says nothing, calibrated by itself, prefers no label.
  const Json calibrated = ask({"--calibrate"});
  EXPECT_NEAR(calibrated[0]["score"], 0.5, 1e-6);
  EXPECT_EQ(calibrated[0]["logprob_sum"], calibrated[0]["null_logprob_sum"]);
  EXPECT_NE(ask({})[0]["score"], calibrated[0]["score"]);
}

TEST_F(CommandTest, StatusJsonShowsRanksExpertsAndCounters) {
  const CommandResult result = Call({"status", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  EXPECT_EQ(json["state"], "READY");
  EXPECT_GE(json["epoch"].get<int>(), 1);
  ASSERT_EQ(json["ranks"].size(), 2);
  EXPECT_GT(json["ranks"][0]["pid"].get<int>(), 0);
  EXPECT_TRUE(json["counters"]["tokens_computed"].is_number());
  EXPECT_TRUE(json["counters"]["steps"].is_number());
  EXPECT_EQ(Call({"status"}).exit_code, 0);
}

TEST_F(CommandTest, ErrorsAreOneLineThatNamesWhatIsWrong) {
  ExpectError(Call({"generate", "--tokens", "1,512", "--max-tokens", "4"}), 1,
              "prompt.tokens.ids[1] is 512");
  ExpectError(Call({"generate", "--tokens", "1", "--max-tokens", "0"}), 1, "max_tokens");
  ExpectError(Call({"generate", "--prompt", "", "--max-tokens", "4"}), 1, "prompt is empty");
  ExpectError(Call({"generate", "--prompt", "x", "--max-tokens", "4", "--temperature", "nan"}), 1,
              "temperature");
  ExpectError(Call({"generate", "--prompt", "x", "--max-tokens", "4", "--temperature", "-1"}), 1,
              "sampling.temperature is -1");
  ExpectError(Call({"generate", "--prompt", "\xFFx", "--max-tokens", "4"}), 1, "UTF-8");
  ExpectError(Call({"generate", "--tokens", Join(Tokens(256, 1)), "--max-tokens", "4"}), 1,
              "prompt has 256 tokens");
  ExpectError(Call({"classify", "--head", "nope", "--text", "x"}), 1, "mood");
  ExpectError(
      Conclave({"generate", "--server", "127.0.0.1:1", "--prompt", "x", "--max-tokens", "4"}), 1,
      "127.0.0.1:1");
}

TEST(CommandWithoutServerTest, UsageErrorsExitTwo) {
  EXPECT_EQ(Conclave({"generate", "--no-such-flag"}).exit_code, 2);
  EXPECT_EQ(Conclave({"nonsense"}).exit_code, 2);
  const CommandResult uneven =
      Conclave({"serve", "--model", "demo/tiny_gpt_oss", "--workers", "4", "--dp", "3", "--device",
                "cpu", "--listen", "127.0.0.1:0"});
  ExpectError(uneven, 2, "3");
}

TEST(CommandWithoutServerTest, EngineFlagsThatContradictExitTwo) {
  const auto serve = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"serve", "--model", "demo/tiny_gpt_oss", "--workers", "2",
                                 "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"});
    return Conclave(flags);
  };
  ExpectError(serve({"--max-queued", "0"}), 2, "max_queued is 0");
  ExpectError(serve({"--max-running", "64", "--max-step-tokens", "32"}), 2, "max_running is 64");
  ExpectError(serve({"--dp", "2", "--exchange", "replicated"}), 2, "replicated");
}

TEST(CommandWithoutServerTest, EveryHelpHasAnExample) {
  for (const std::string command :
       {"serve", "generate", "classify", "tokenize", "status", "bench", "plan", "doctor"}) {
    const CommandResult help = Conclave({command, "--help"});
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_THAT(help.out, HasSubstr("conclave " + command)) << command;
  }
}

TEST(CommandWithoutServerTest, NoHeadLoadedIsAFailedPrecondition) {
  Server server({.workers = 1, .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ExpectError(Conclave({"classify", "--server", server.address(), "--head", "mood", "--text", "x"}),
              1, "--head NAME=DIR");
}

TEST(CommandWithoutServerTest, PlanReadsOnlyHeadersAndAddsUp) {
  const CommandResult result =
      Conclave({"plan", "--model", "demo/tiny_gpt_oss", "--workers", "3", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  ASSERT_EQ(json["ranks"].size(), 3);
  for (const Json& rank : json["ranks"]) ExpectBytesAddUp(rank);
  EXPECT_EQ(Conclave({"plan", "--model", "demo/tiny_gpt_oss", "--workers", "3"}).exit_code, 0);
  ExpectError(Conclave({"plan", "--model", "demo/tiny_gpt_oss", "--workers", "4", "--tp", "4"}), 2,
              "2 KV heads");
}

TEST(CommandWithoutServerTest, DoctorNamesTheKernelAndWhyThereIsNoGpu) {
  const CommandResult result = Conclave({"doctor", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = LastLine(result.out);
  EXPECT_THAT(json.dump(), HasSubstr("cpu_mxfp4"));
  EXPECT_THAT(json.dump(), HasSubstr("\"reason\""));
}

// A copy of the shipped checkpoint to break.
class BrokenCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::string(std::getenv("TEST_TMPDIR")) + "/broken";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    for (const auto& entry : std::filesystem::directory_iterator("demo/tiny_gpt_oss")) {
      if (entry.is_directory()) continue;
      std::filesystem::copy_file(std::filesystem::canonical(entry.path()),
                                 dir_ + "/" + entry.path().filename().string());
    }
    std::filesystem::permissions(dir_, std::filesystem::perms::owner_all,
                                 std::filesystem::perm_options::add);
  }

  CommandResult Serve() {
    return Conclave(
        {"serve", "--model", dir_, "--workers", "1", "--device", "cpu", "--listen", "127.0.0.1:0"});
  }
  void EditConfig(const std::string& key, const Json& value) {
    const std::string path = dir_ + "/config.json";
    std::ifstream in(path);
    Json config = Json::parse(in);
    in.close();
    config[key] = value;
    std::filesystem::remove(path);
    std::ofstream(path) << config;
  }

  std::string dir_;
};

TEST_F(BrokenCheckpointTest, AWrongShapeIsNamedWithBothShapes) {
  EditConfig("intermediate_size", 128);
  ExpectError(Serve(), 1, "gate_up_proj_bias has shape [16, 192]; [16, 256] is wanted");
}

TEST_F(BrokenCheckpointTest, AMissingTensorIsNamed) {
  EditConfig("num_hidden_layers", 5);
  EditConfig("layer_types", Json::array({"sliding_attention", "full_attention", "sliding_attention",
                                         "full_attention", "sliding_attention"}));
  ExpectError(Serve(), 1, "model.layers.4.");
}

TEST_F(BrokenCheckpointTest, AMissingFieldIsNamed) {
  EditConfig("hidden_size", nullptr);
  ExpectError(Serve(), 1, "hidden_size");
}

TEST_F(BrokenCheckpointTest, ATruncatedShardIsNamed) {
  const std::string shard = dir_ + "/model-00001-of-00002.safetensors";
  std::filesystem::permissions(shard, std::filesystem::perms::owner_all,
                               std::filesystem::perm_options::add);
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1000);
  ExpectError(Serve(), 1, "model-00001-of-00002.safetensors");
}

}  // namespace
}  // namespace conclave::tests
