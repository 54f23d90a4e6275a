#include "client/tokenize_command.h"

#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "client/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

constexpr char kTiny[] = "demo/tiny_gpt_oss/tokenizer.json";

struct Result {
  int code;
  std::string out;
  std::string err;
};

Result Tokenize(TokenizeOptions options, const std::string& input) {
  std::istringstream in(input);
  std::ostringstream out;
  CaptureStderr();
  const int code = RunTokenize(options, in, out);
  return {code, out.str(), GetCapturedStderr()};
}

TEST(TokenizeCommandTest, LinesAreAnsweredInOrderAndBack) {
  const std::string input =
      "{\"text\":\"the other\"}\n{\"text\":\"\"}\n{\"text\":\"naïve 💖\\n\"}\n";
  const Result ids = Tokenize({.tokenizer = kTiny, .jsonl = true}, input);
  EXPECT_EQ(ids.code, kExitOk) << ids.err;
  EXPECT_THAT(ids.out, HasSubstr("\n{\"ids\":[]}\n"));
  const Result text = Tokenize({.tokenizer = kTiny, .jsonl = true, .decode = true}, ids.out);
  EXPECT_EQ(text.code, kExitOk) << text.err;
  EXPECT_EQ(text.out, input);
}

TEST(TokenizeCommandTest, O200kCasesThroughTheCommand) {
  std::ifstream file("tests/data/o200k_harmony_cases.jsonl");
  std::string texts;
  std::string ids;
  for (std::string line; std::getline(file, line);) {
    auto parsed = nlohmann::json::parse(line);
    // The one wrong line of the file: tests/data/README.md.
    if (parsed["text"] == "\uFEFFBOM") parsed["ids"] = {5574, 33, 2760};
    texts += nlohmann::json{{"text", parsed["text"]}}.dump() + "\n";
    ids += nlohmann::json{{"ids", parsed["ids"]}}.dump() + "\n";
  }
  ASSERT_FALSE(texts.empty());
  const TokenizeOptions encode = {.tokenizer = "tests/data/o200k_base.tiktoken", .jsonl = true};
  TokenizeOptions decode = encode;
  decode.decode = true;
  // Not EXPECT_EQ: a difference would print 400 kB.
  EXPECT_TRUE(Tokenize(encode, texts).out == ids);
  EXPECT_TRUE(Tokenize(decode, ids).out == texts);
}

TEST(TokenizeCommandTest, PlainTextIsOneText) {
  const std::string text = "two\nlines of text";
  const Result ids = Tokenize({.tokenizer = "demo/tiny_gpt_oss"}, text);
  EXPECT_EQ(ids.code, kExitOk) << ids.err;
  EXPECT_EQ(Tokenize({.tokenizer = "demo/tiny_gpt_oss", .decode = true}, ids.out).out, text);
}

TEST(TokenizeCommandTest, SpecialTokensOnlyWhenAllowed) {
  EXPECT_EQ(Tokenize({.tokenizer = kTiny, .allow_special = true}, "<|start|>").out, "501\n");
  EXPECT_THAT(Tokenize({.tokenizer = kTiny}, "<|start|>").out, ::testing::Not(HasSubstr("501")));
}

TEST(TokenizeCommandTest, ErrorIsOneLineThatNamesTheLine) {
  struct Case {
    std::string input;
    bool decode;
    std::string message;
  };
  const std::vector<Case> cases = {
      {"{\"text\":\"ok\"}\nnot json\n", false, "line 2: not a JSON object"},
      {"{\"text\":5}\n", false, "line 1: expected {\"text\""},
      {"{\"text\":\"\xFF\"}\n", false, "line 1: not a JSON object"},
      {"{\"text\":\"\\ud800\"}\n", false, "line 1: not a JSON object"},
      {"{\"ids\":[1,505]}\n", true, "line 1: token id 505 is not in the vocabulary (0..504)"},
      {"{\"ids\":[-1]}\n", true, "token id -1"},
      {"{\"ids\":[18446744073709551615]}\n", true, "not in the vocabulary"},
      {"{\"ids\":[1.5]}\n", true, "\"1.5\" is not a token id"},
      {"{\"ids\":1}\n", true, "expected {\"ids\""},
  };
  for (const Case& c : cases) {
    const Result result =
        Tokenize({.tokenizer = kTiny, .jsonl = true, .decode = c.decode}, c.input);
    EXPECT_EQ(result.code, kExitError) << c.input;
    EXPECT_THAT(result.err, HasSubstr(c.message));
    EXPECT_EQ(result.err.find('\n'), result.err.size() - 1);
  }
  EXPECT_THAT(Tokenize({.tokenizer = kTiny}, "a\xC3").err, HasSubstr("byte 1"));
  EXPECT_THAT(Tokenize({.tokenizer = kTiny, .decode = true}, "1 x").err, HasSubstr("\"x\""));
  const Result missing = Tokenize({.tokenizer = "no/such.json"}, "");
  EXPECT_EQ(missing.code, kExitError);
  EXPECT_THAT(missing.err, HasSubstr("no/such.json"));
}

// What `arguments` parse to; `run` is what main would call.
base::ParsedFlags Parse(std::vector<std::string> arguments, std::function<int()>* run) {
  base::FlagSet app("", "conclave");
  AddTokenizeCommand(app, run);
  return app.Parse(std::move(arguments));
}

TEST(TokenizeCommandTest, FlagsOfTheContract) {
  std::function<int()> run;
  Parse({"tokenize", "--tokenizer", "no/such.tiktoken", "--jsonl", "--decode"}, &run);
  ASSERT_TRUE(run);
  CaptureStderr();
  EXPECT_EQ(run(), kExitError);
  EXPECT_THAT(GetCapturedStderr(), HasSubstr("no/such.tiktoken"));
  run = nullptr;
  const base::ParsedFlags parsed = Parse({"tokenize", "--jsonl"}, &run);
  EXPECT_EQ(parsed.outcome, base::ParsedFlags::Outcome::kError);
  EXPECT_THAT(parsed.text, HasSubstr("--tokenizer"));
  EXPECT_FALSE(run);
}

}  // namespace
}  // namespace conclave::client
