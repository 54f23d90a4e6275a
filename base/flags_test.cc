#include "base/flags.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::base {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Outcome = ParsedFlags::Outcome;

struct Values {
  std::string model = "none";
  int threads = 2;
  int64_t bytes = 0;
  uint64_t seed = 0;
  double timeout = 0;
  std::optional<std::string> text;
  std::optional<uint32_t> top_k;
  std::optional<uint64_t> big;
  std::optional<float> top_p;
  std::vector<std::string> heads;
  std::vector<uint32_t> ids;
  bool json = false;
};

// One flag of each kind, as a program without subcommands.
class FlagsTest : public testing::Test {
 protected:
  FlagsTest() {
    flags_.Add("--model", &values_.model, "Folder").Type("DIR").ShowDefault();
    flags_.Add("--threads", &values_.threads, "Threads").Range(1, 16);
    flags_.Add("--bytes", &values_.bytes, "Bytes").SilentRange(-1, int64_t{1} << 40);
    flags_.Add("--seed", &values_.seed, "Seed");
    flags_.Add("--timeout", &values_.timeout, "Timeout").NonNegative();
    flags_.Add("--text", &values_.text, "Text");
    flags_.Add("--top-k", &values_.top_k, "K");
    flags_.Add("--big", &values_.big, "Big");
    flags_.Add("--top-p", &values_.top_p, "P");
    flags_.Add("--head", &values_.heads, "Heads").Type("NAME").Repeatable();
    flags_.Add("--ids", &values_.ids, "Ids").Group("More");
    flags_.AddSwitch("--json", &values_.json, "JSON");
    flags_.SetFooter("Example:\n  program --json");
  }

  // "" when it is right.
  std::string Error(std::vector<std::string> arguments) {
    const ParsedFlags parsed = flags_.Parse(std::move(arguments));
    return parsed.outcome == Outcome::kError ? parsed.text : "";
  }

  Values values_;
  FlagSet flags_{"Does something.", "program"};
};

TEST_F(FlagsTest, ValuesGoWhereTheyBelong) {
  ASSERT_EQ(Error({"--model",
                   "m",
                   "--threads=16",
                   "--bytes",
                   "1099511627776",
                   "--seed",
                   "18446744073709551615",
                   "--timeout",
                   "1.5",
                   "--text",
                   "",
                   "--top-k",
                   "4294967295",
                   "--big",
                   "18446744073709551615",
                   "--top-p",
                   "0.25",
                   "--head",
                   "a",
                   "--head",
                   "b",
                   "--ids",
                   "1",
                   "2",
                   "--ids",
                   "3",
                   "--json"}),
            "");
  EXPECT_EQ(values_.model, "m");
  EXPECT_EQ(values_.threads, 16);
  EXPECT_EQ(values_.bytes, int64_t{1} << 40);
  EXPECT_EQ(values_.seed, UINT64_MAX);
  EXPECT_EQ(values_.timeout, 1.5);
  EXPECT_EQ(values_.text, "");
  EXPECT_EQ(values_.top_k, UINT32_MAX);
  EXPECT_EQ(values_.big, UINT64_MAX);
  EXPECT_EQ(values_.top_p, 0.25f);
  EXPECT_THAT(values_.heads, ElementsAre("a", "b"));
  EXPECT_THAT(values_.ids, ElementsAre(1u, 2u, 3u));
  EXPECT_TRUE(values_.json);
}

TEST_F(FlagsTest, WhatIsNotGivenStaysAsItWas) {
  ASSERT_EQ(Error({}), "");
  EXPECT_EQ(values_.model, "none");
  EXPECT_EQ(values_.threads, 2);
  EXPECT_FALSE(values_.text.has_value());
  EXPECT_FALSE(values_.top_k.has_value());
  EXPECT_FALSE(values_.top_p.has_value());
  EXPECT_THAT(values_.heads, ElementsAre());
  EXPECT_FALSE(values_.json);
}

TEST_F(FlagsTest, TheArgumentsOfMainSkipTheProgram) {
  const char* argv[] = {"--seed", "--threads", "5"};
  EXPECT_EQ(flags_.Parse(3, argv).outcome, Outcome::kOk);
  EXPECT_EQ(values_.threads, 5);
}

TEST_F(FlagsTest, NoArgumentsAtAllAreFine) {
  EXPECT_EQ(flags_.Parse(0, nullptr).outcome, Outcome::kOk);
}

TEST_F(FlagsTest, TheHelpTellsTypesDefaultsRangesAndGroups) {
  const ParsedFlags parsed = flags_.Parse({"--help"});
  EXPECT_EQ(parsed.outcome, Outcome::kHelp);
  EXPECT_EQ(parsed.text, R"(Does something.
Usage: program [OPTIONS]

Options:
  -h,--help                   Print this help message and exit
  --model DIR=none            Folder
  --threads INT:INT in [1 - 16]
                              Threads
  --bytes INT                 Bytes
  --seed UINT                 Seed
  --timeout FLOAT:NONNEGATIVE Timeout
  --text TEXT                 Text
  --top-k UINT                K
  --big UINT                  Big
  --top-p FLOAT               P
  --head NAME                 Heads
  --json                      JSON


More:
  --ids UINT ...              Ids

Example:
  program --json
)");
}

TEST_F(FlagsTest, WrongValuesAreErrorsThatNameTheFlag) {
  const std::vector<std::vector<std::string>> cases = {
      {"--threads", "0"},
      {"--threads", "17"},
      {"--threads", "2.5"},
      {"--threads", "99999999999999999999"},
      {"--bytes", "-2"},
      {"--bytes", "1099511627777"},
      {"--seed", "x"},
      {"--seed", "1.5"},
      {"--timeout", "-0.5"},
      {"--timeout", "soon"},
      {"--top-k", "4294967296"},
      {"--top-k", "-1"},
      {"--big", "1e3"},
      {"--top-p", "half"},
      {"--ids", "1", "x"},
      {"--json=perhaps"},
      {"--model"},
      {"--model", "a", "--model", "b"},
      {"--nonsense"},
  };
  for (const std::vector<std::string>& arguments : cases) {
    const std::string flag = arguments[0].substr(0, arguments[0].find('='));
    EXPECT_THAT(Error(arguments), HasSubstr(flag)) << testing::PrintToString(arguments);
  }
}

TEST_F(FlagsTest, AVectorTakesValuesUpToTheNextFlag) {
  EXPECT_EQ(Error({"--head", "a", "b", "--json"}), "");
  EXPECT_THAT(values_.heads, ElementsAre("a", "b"));
}

TEST_F(FlagsTest, SixtyFourUnsignedBitsWrapAndSaturate) {
  EXPECT_EQ(Error({"--seed", "-2"}), "");
  EXPECT_EQ(values_.seed, UINT64_MAX - 1);
  EXPECT_EQ(Error({"--seed", "18446744073709551616"}), "");
  EXPECT_EQ(values_.seed, UINT64_MAX);
}

TEST(FlagsRulesTest, RequiredAndOneOf) {
  const auto error = [](std::vector<std::string> arguments) {
    std::string model;
    std::string device;
    FlagSet flags("", "program");
    flags.Add("--model", &model, "").Required();
    flags.Add("--device", &device, "").OneOf({"cpu", "cuda"});
    return flags.Parse(std::move(arguments)).text;
  };
  EXPECT_EQ(error({"--model", "m", "--device", "cuda"}), "");
  EXPECT_EQ(error({"--device", "cuda"}), "--model is required");
  EXPECT_EQ(error({"--model", "m", "--device", "tpu"}), "--device: tpu not in {cpu,cuda}");
}

TEST(FlagsCallbackTest, CallbacksRunInTheOrderOfTheDeclarations) {
  std::vector<std::string> calls;
  FlagSet flags("", "program");
  flags.Add(
      "--a", [&](const std::string& value) { calls.push_back("a=" + value); }, "");
  flags.AddSwitch(
      "--b", [&] { calls.emplace_back("b"); }, "");
  flags.AddSwitch(
      "--c", [&] { calls.emplace_back("c"); }, "");
  flags.OnParsed([&] { calls.emplace_back("parsed"); });
  EXPECT_EQ(flags.Parse({"--b", "--a", "1"}).outcome, Outcome::kOk);
  EXPECT_THAT(calls, ElementsAre("a=1", "b", "parsed"));
}

TEST(FlagsCallbackTest, AnOptionalValueMayBeLeftOut) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, ""}, {{"--watch"}, "2"}, {{"--watch", "3"}, "3"}, {{"--watch", "--json"}, "2"}};
  for (const auto& [arguments, want] : cases) {
    FlagSet flags("", "test");
    std::string watch;
    bool json = false;
    flags
        .Add(
            "--watch", [&watch](const std::string& given) { watch = given; }, "Again and again")
        .ValueOptional("2");
    flags.AddSwitch("--json", &json, "JSON");
    const ParsedFlags parsed = flags.Parse(arguments);
    EXPECT_EQ(parsed.outcome, Outcome::kOk) << parsed.text;
    EXPECT_EQ(watch, want);
  }
}

TEST(FlagsCallbackTest, ASwitchMayBeSpelledOut) {
  int calls = 0;
  FlagSet flags("", "program");
  flags.AddSwitch(
      "--b", [&] { ++calls; }, "");
  EXPECT_EQ(flags.Parse({"--b=true"}).outcome, Outcome::kOk);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(flags.Parse({"--b=false"}).outcome, Outcome::kOk);
  EXPECT_EQ(calls, 1);
  const ParsedFlags parsed = flags.Parse({"--b=perhaps"});
  EXPECT_EQ(parsed.outcome, Outcome::kError);
  EXPECT_THAT(parsed.text, HasSubstr("--b"));
}

// A program with the subcommands "one" and "two".
class CommandsTest : public testing::Test {
 protected:
  CommandsTest() {
    FlagSet& one = flags_.AddCommand("one", "The first");
    one.Add("--number", &number_, "A number");
    one.OnParsed([this] { ran_ = "one"; });
    flags_.AddCommand("two", "The second").OnParsed([this] { ran_ = "two"; });
  }

  int number_ = 0;
  std::string ran_;
  FlagSet flags_{"", "program"};
};

TEST_F(CommandsTest, TheOneGivenRuns) {
  const ParsedFlags parsed = flags_.Parse({"one", "--number", "3"});
  EXPECT_EQ(parsed.outcome, Outcome::kOk);
  EXPECT_EQ(parsed.command, "one");
  EXPECT_EQ(number_, 3);
  EXPECT_EQ(ran_, "one");
}

TEST_F(CommandsTest, AnErrorTellsTheCommandAndRunsNothing) {
  const ParsedFlags parsed = flags_.Parse({"one", "--number", "x"});
  EXPECT_EQ(parsed.outcome, Outcome::kError);
  EXPECT_EQ(parsed.command, "one");
  EXPECT_EQ(ran_, "");
}

TEST_F(CommandsTest, NoneIsAnError) {
  const ParsedFlags parsed = flags_.Parse(std::vector<std::string>());
  EXPECT_EQ(parsed.outcome, Outcome::kError);
  EXPECT_EQ(parsed.command, "");
  EXPECT_EQ(parsed.text, "A subcommand is required");
}

TEST_F(CommandsTest, TwoAreAnError) {
  EXPECT_EQ(flags_.Parse({"one", "two"}).outcome, Outcome::kError);
}

TEST_F(CommandsTest, HelpListsTheCommands) {
  const ParsedFlags parsed = flags_.Parse({"-h"});
  EXPECT_EQ(parsed.outcome, Outcome::kHelp);
  EXPECT_THAT(parsed.text, HasSubstr("Usage: program [OPTIONS] SUBCOMMAND\n"));
  EXPECT_THAT(parsed.text, HasSubstr("  one                         The first\n"));
}

TEST_F(CommandsTest, HelpIsThatOfTheCommand) {
  const ParsedFlags parsed = flags_.Parse({"one", "--help"});
  EXPECT_EQ(parsed.outcome, Outcome::kHelp);
  EXPECT_THAT(parsed.text, HasSubstr("--number"));
}

TEST(FlagsDeathTest, ANameTakenIsABrokenInvariant) {
  bool json = false;
  FlagSet flags("", "program");
  flags.AddSwitch("--json", &json, "");
  EXPECT_DEATH(flags.AddSwitch("--json", &json, ""), "broken invariant");
  EXPECT_DEATH(flags.AddSwitch("not a flag", &json, ""), "broken invariant");
}

}  // namespace
}  // namespace conclave::base
