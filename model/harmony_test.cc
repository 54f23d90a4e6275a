// Agreement with the openai-harmony library: on recorded cases (testdata/, made by
// harmony_cases.py), and, where the library is installed, on cases that it makes now.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "base/utf8.h"
#include "model/harmony.h"
#include "model/harmony_parser.h"
#include "model/harmony_render.h"
#include "model/harmony_schema.h"
#include "model/tokenizer.h"

namespace conclave::model {
namespace {

using Json = nlohmann::ordered_json;

const Tokenizer& O200k() {
  static const auto tokenizer = *Tokenizer::Load("tests/data/o200k_base.tiktoken");
  return *tokenizer;
}

const HarmonyTokens& Tokens() {
  static const HarmonyTokens tokens = *HarmonyTokens::Find(O200k());
  return tokens;
}

std::optional<std::string> OptionalText(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return std::nullopt;
  return it->get<std::string>();
}

HarmonyToolNamespaces ReadTools(const Json& content) {
  HarmonyToolNamespaces namespaces;
  const auto tools = content.find("tools");
  if (tools == content.end() || tools->is_null()) return namespaces;
  for (const auto& [name, space] : tools->items()) {
    HarmonyToolNamespace& out = namespaces[name];
    out.description = OptionalText(space, "description");
    for (const Json& tool : space["tools"]) {
      HarmonyTool& added = out.tools.emplace_back();
      added.name = tool["name"];
      added.description = tool["description"];
      if (tool.contains("parameters") && !tool["parameters"].is_null()) {
        added.parameters_json = tool["parameters"].dump();
      }
    }
    // The built-in tools are ours, word for word.
    if (name == "browser") out = HarmonyBrowserTool();
    if (name == "python") out = HarmonyPythonTool();
  }
  return namespaces;
}

HarmonyContent ReadContent(const Json& content) {
  if (content["type"] == "text") return content["text"].get<std::string>();
  if (content["type"] == "developer_content") {
    return HarmonyDeveloper{OptionalText(content, "instructions"), ReadTools(content)};
  }
  HarmonySystem system;
  system.model_identity = OptionalText(content, "model_identity");
  system.knowledge_cutoff = OptionalText(content, "knowledge_cutoff");
  system.current_date = OptionalText(content, "conversation_start_date");
  system.effort.reset();
  const std::string effort = OptionalText(content, "reasoning_effort").value_or("");
  if (effort == "Low") system.effort = HarmonyEffort::kLow;
  if (effort == "Medium") system.effort = HarmonyEffort::kMedium;
  if (effort == "High") system.effort = HarmonyEffort::kHigh;
  system.tools = ReadTools(content);
  system.channels.clear();
  for (const Json& channel : content["channel_config"]["valid_channels"]) {
    system.channels.push_back(channel);
  }
  system.channel_required = content["channel_config"]["channel_required"];
  return system;
}

std::vector<HarmonyMessage> ReadMessages(const Json& list) {
  std::vector<HarmonyMessage> messages;
  for (const Json& json : list) {
    HarmonyMessage& message = messages.emplace_back();
    message.header.role = *HarmonyRoleOf(json["role"].get<std::string>());
    message.header.name = OptionalText(json, "name");
    message.header.channel = OptionalText(json, "channel");
    message.header.recipient = OptionalText(json, "recipient");
    message.header.content_type = OptionalText(json, "content_type");
    for (const Json& content : json["content"]) message.content.push_back(ReadContent(content));
  }
  return messages;
}

uint64_t Fnv(const std::vector<int>& ids) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const int id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xFF)) * 0x100000001B3;
    }
  }
  return hash;
}

std::string Describe(const HarmonyHeader& header) {
  const auto text = [](const std::optional<std::string>& value) {
    return value.has_value() ? "'" + *value + "'" : "-";
  };
  return fmt::format("{} name {} channel {} to {} type {}", HarmonyRoleName(header.role),
                     text(header.name), text(header.channel), text(header.recipient),
                     text(header.content_type));
}

std::string OnlyText(const HarmonyMessage& message) {
  std::string text;
  for (const HarmonyContent& content : message.content) text += std::get<std::string>(content);
  return text;
}

std::string Describe(const std::vector<HarmonyMessage>& messages) {
  std::string text;
  for (const HarmonyMessage& message : messages) {
    text += fmt::format("{}: {}\n", Describe(message.header), OnlyText(message));
  }
  return text;
}

void CheckRendering(const Json& json) {
  const HarmonyRenderer renderer(O200k(), Tokens());
  const std::vector<HarmonyMessage> messages = ReadMessages(json["messages"]);
  const HarmonyHistory history =
      json["drop"] ? HarmonyHistory::kBeforeFirstFinal : HarmonyHistory::kAll;
  absl::StatusOr<std::vector<int>> ids;
  if (json["how"] == "prompt") {
    ids = renderer.Prompt(messages, *HarmonyRoleOf(json["next"].get<std::string>()), history);
  } else if (json["how"] == "training") {
    ids = renderer.Training(messages, history);
  } else {
    ids = renderer.Conversation(messages, history);
  }
  ASSERT_TRUE(ids.ok()) << ids.status();
  if (json.contains("ids")) {
    ASSERT_EQ(O200k().Decode(*ids), O200k().Decode(json["ids"].get<std::vector<int>>()));
    ASSERT_EQ(*ids, json["ids"].get<std::vector<int>>());
  }
  ASSERT_EQ(ids->size(), json["count"].get<size_t>()) << O200k().Decode(*ids);
  ASSERT_EQ(fmt::format("{:016x}", Fnv(*ids)), json["fnv"]) << O200k().Decode(*ids);
}

// What the parser finds in the rendering of `messages`: texts, of contents that are none too.
std::vector<HarmonyMessage> AsTexts(const std::vector<HarmonyMessage>& messages) {
  bool has_functions = false;
  for (const HarmonyMessage& message : messages) {
    for (const HarmonyContent& content : message.content) {
      const auto* developer = std::get_if<HarmonyDeveloper>(&content);
      if (developer == nullptr || !developer->tools.contains("functions")) continue;
      has_functions = has_functions || !developer->tools.at("functions").tools.empty();
    }
  }
  std::vector<HarmonyMessage> texts;
  for (const HarmonyMessage& message : messages) {
    std::string text;
    for (const HarmonyContent& content : message.content) {
      if (const auto* system = std::get_if<HarmonySystem>(&content)) {
        text += *HarmonySystemText(*system, has_functions);
      } else if (const auto* developer = std::get_if<HarmonyDeveloper>(&content)) {
        text += *HarmonyDeveloperText(*developer);
      } else {
        text += std::get<std::string>(content);
      }
    }
    texts.push_back({message.header, {text}});
    if (texts.back().header.recipient == "all") texts.back().header.recipient.reset();
  }
  return texts;
}

void CheckRoundTrip(const Json& json) {
  const HarmonyRenderer renderer(O200k(), Tokens());
  const std::vector<HarmonyMessage> messages = ReadMessages(json["messages"]);
  const auto ids = renderer.Conversation(messages, HarmonyHistory::kAll);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const HarmonyParse parse = ParseHarmony(O200k(), Tokens(), *ids, std::nullopt);
  ASSERT_EQ(Describe(parse.messages), Describe(AsTexts(messages)));
  ASSERT_FALSE(parse.malformed) << O200k().Decode(*ids);
  // Whatever the texts spell, special tokens are those of the format.
  size_t specials = 0;
  size_t expected = 0;
  for (const int id : *ids) specials += O200k().IsSpecial(id) ? 1 : 0;
  for (const HarmonyMessage& message : messages) {
    expected += 3 + (message.header.channel.has_value() ? 1 : 0);
    expected += message.header.content_type.value_or("").starts_with(kConstrainMarker) ? 1 : 0;
  }
  ASSERT_EQ(specials, expected) << O200k().Decode(*ids);
}

// Words alone count: the library joins what is left of a broken header by single spaces.
std::string Words(const std::string& text) {
  std::istringstream stream(text);
  std::string words;
  for (std::string word; stream >> word;) words += word + " ";
  return words;
}

// <|start|> within a header begins it anew here, while the library takes it for a word.
bool HasStartInHeader(const std::vector<int>& ids, bool begins_in_header) {
  bool in_header = begins_in_header;
  for (const int id : ids) {
    if (id == Tokens().start && in_header) return true;
    if (id == Tokens().start) in_header = true;
    if (id == Tokens().message || Tokens().Closes(id)) in_header = false;
  }
  return false;
}

// Returns whether the case is one where both parsers mean to agree.
bool CheckParsing(const Json& json) {
  const auto ids = json["ids"].get<std::vector<int>>();
  std::optional<HarmonyRole> role;
  if (json["role"].is_string()) role = HarmonyRoleOf(json["role"].get<std::string>());
  const HarmonyParse parse = ParseHarmony(O200k(), Tokens(), ids, role);
  const std::vector<HarmonyMessage> expected = ReadMessages(json["messages"]);
  if (HasStartInHeader(ids, role.has_value())) return false;
  if (!parse.malformed) {
    EXPECT_EQ(Describe(parse.messages), Describe(expected)) << O200k().Decode(ids);
    return true;
  }
  // The library's recovery drops a message without a role and one without words.
  std::vector<HarmonyMessage> ours;
  for (const HarmonyMessage& message : parse.messages) {
    if (!OnlyText(message).empty()) ours.push_back(message);
  }
  std::string our_words;
  std::string their_words;
  for (const HarmonyMessage& message : ours) our_words += Words(OnlyText(message));
  for (const HarmonyMessage& message : expected) their_words += Words(OnlyText(message));
  EXPECT_GE(our_words.size(), their_words.size()) << O200k().Decode(ids);
  return false;
}

void CheckCases(std::istream& cases, size_t at_least, bool round_trip) {
  size_t renderings = 0;
  size_t parsings = 0;
  for (std::string line; std::getline(cases, line);) {
    const Json json = Json::parse(line);
    if (json.contains("render")) {
      ASSERT_NO_FATAL_FAILURE(CheckRendering(json["render"])) << line;
      if (round_trip) {
        ASSERT_NO_FATAL_FAILURE(CheckRoundTrip(json["render"])) << line;
      }
      ++renderings;
    } else if (CheckParsing(json["parse"])) {
      ++parsings;
    }
  }
  EXPECT_GE(renderings, at_least);
  EXPECT_GE(parsings, 20u);
}

TEST(HarmonyTest, RecordedConversationsRenderAndParseAsInTheLibrary) {
  std::ifstream cases("model/harmony_cases.jsonl");
  ASSERT_TRUE(cases.is_open());
  CheckCases(cases, 500, /*round_trip=*/true);
}

TEST(HarmonyTest, NewConversationsRenderAndParseAsInTheInstalledLibrary) {
  const char* python = std::getenv("HARMONY_PYTHON");  // of an environment that has the library
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::string command = fmt::format(
      "TIKTOKEN_ENCODINGS_BASE=tests/data {} model/harmony_cases.py --seed {} --count 500 "
      "--parse 40 --ids",
      python == nullptr ? "python3" : python,
      std::chrono::duration_cast<std::chrono::seconds>(now).count());
  std::FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::stringstream cases;
  std::array<char, 65536> buffer;
  while (const size_t bytes = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    cases.write(buffer.data(), static_cast<std::streamsize>(bytes));
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status) && (WEXITSTATUS(status) == 3 || WEXITSTATUS(status) == 127)) {
    GTEST_SKIP() << "openai-harmony is not installed";
  }
  ASSERT_EQ(status, 0) << command;
  SCOPED_TRACE(command);
  CheckCases(cases, 500, /*round_trip=*/true);
}

// --- The parser on what no library understands. ---

std::string Joined(const std::vector<HarmonyEvent>& events) {
  std::string text;
  for (const HarmonyEvent& event : events) text += event.text;
  return text;
}

struct Parsed {
  std::vector<HarmonyMessage> messages;
  std::vector<std::string> surplus;
  bool malformed = false;
};

// Parses `text`, in which special tokens are spelled; checks that nothing of it is lost.
Parsed Parse(const std::string& text, std::optional<HarmonyRole> role) {
  const std::vector<int> ids = O200k().EncodeWithSpecials(text);
  HarmonyParser parser(O200k(), Tokens(), role);
  std::vector<HarmonyEvent> events;
  for (const int id : ids) parser.Append(id, events);
  parser.Finish(events);
  EXPECT_EQ(Joined(events), text);
  Parsed parsed;
  for (const HarmonyEvent& event : events) {
    if (event.kind == HarmonyEvent::Kind::kHeader) parsed.surplus.push_back(event.surplus);
  }
  const HarmonyParse whole = ParseHarmony(O200k(), Tokens(), ids, role);
  parsed.messages = whole.messages;
  parsed.malformed = whole.malformed;
  return parsed;
}

constexpr auto kAssistant = HarmonyRole::kAssistant;

TEST(HarmonyParserTest, AReplyIsReasoningAndAnAnswer) {
  const Parsed parsed = Parse(
      "<|channel|>analysis<|message|>Think.<|end|>"
      "<|start|>assistant<|channel|>final<|message|>Four.<|return|>",
      kAssistant);
  EXPECT_FALSE(parsed.malformed);
  EXPECT_EQ(Describe(parsed.messages),
            "assistant name - channel 'analysis' to - type -: Think.\n"
            "assistant name - channel 'final' to - type -: Four.\n");
}

TEST(HarmonyParserTest, ARecipientStandsBeforeOrAfterTheChannel) {
  const std::string expected =
      "assistant name - channel 'commentary' to 'functions.f' type '<|constrain|>json': {}\n";
  for (const char* header : {"<|channel|>commentary to=functions.f <|constrain|>json",
                             "<|channel|>commentary to=functions.f<|constrain|>json",
                             " to=functions.f<|channel|>commentary <|constrain|>json",
                             " to=functions.f<|channel|>commentary<|constrain|>json"}) {
    const Parsed parsed = Parse(std::string(header) + "<|message|>{}<|call|>", kAssistant);
    EXPECT_EQ(Describe(parsed.messages), expected) << header;
    EXPECT_FALSE(parsed.malformed) << header;
  }
}

TEST(HarmonyParserTest, WhatBreaksTheFormatIsKeptAsTextAndFlagged) {
  const struct {
    const char* text;
    const char* messages;
  } cases[] = {
      // No header at all.
      {"I must refuse.<|return|>", "assistant name - channel - to - type -: I must refuse.\n"},
      {"Plain text that goes on, and never has a header",
       "assistant name - channel - to - type -: Plain text that goes on, and never has a header\n"},
      // A header without <|message|>.
      {"<|channel|>commentary Hello there<|end|>",
       "assistant name - channel 'commentary' to - type -: Hello there\n"},
      // Text, or a header, where <|start|> is missing.
      {"<|channel|>analysis<|message|>a<|end|>so<|start|>assistant<|channel|>final<|message|>b",
       "assistant name - channel 'analysis' to - type -: a\n"
       "assistant name - channel - to - type -: so\n"
       "assistant name - channel 'final' to - type -: b\n"},
      {"<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
       "assistant name - channel 'analysis' to - type -: a\n"
       "assistant name - channel 'final' to - type -: b\n"},
      {"<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
       "assistant name - channel 'analysis' to - type -: a\n"
       "assistant name - channel 'final' to - type -: b\n"},
      // The header of the prompt once more.
      {"<|start|>assistant<|channel|>final<|message|>b<|return|>",
       "assistant name - channel 'final' to - type -: b\n"},
      // A control token within content.
      {"<|channel|>final<|message|>a<|channel|>b<|return|>",
       "assistant name - channel 'final' to - type -: a<|channel|>b\n"},
      {"<|channel|><|message|>b<|return|>", "assistant name - channel - to - type -: b\n"},
      {"<|message|>b<|return|><|end|>", "assistant name - channel - to - type -: b\n"},
  };
  for (const auto& [text, messages] : cases) {
    const Parsed parsed = Parse(text, kAssistant);
    EXPECT_EQ(Describe(parsed.messages), messages) << text;
    EXPECT_TRUE(parsed.malformed) << text;
  }
}

TEST(HarmonyParserTest, WordsOfAHeaderWithoutAMeaningAreSurplus) {
  const Parsed parsed =
      Parse("<|channel|>final one two three to=f<|message|>b<|return|>", kAssistant);
  EXPECT_TRUE(parsed.malformed);
  EXPECT_EQ(Describe(parsed.messages), "assistant name - channel 'final' to 'f' type -: b\n");
  EXPECT_EQ(parsed.surplus, std::vector<std::string>{"one two three"});
}

TEST(HarmonyParserTest, AReplyThatIsCutIsNotMalformedForThat) {
  for (const char* text :
       {"<|channel|>", "<|channel|>analysis", "<|channel|>analysis<|message|>Thin",
        "<|channel|>commentary to=functions.f",
        "<|channel|>commentary to=functions.f <|constrain|>",
        "<|channel|>final<|message|>a<|end|><|start|>", "<|channel|>final<|message|>a<|end|>",
        "<|channel|>final<|message|>a<|end|><|start|>assist", ""}) {
    EXPECT_FALSE(Parse(text, kAssistant).malformed) << text;
  }
}

TEST(HarmonyParserTest, TextThatNeverBecomesAHeaderIsGivenOutBeforeItEnds) {
  HarmonyParser parser(O200k(), Tokens(), kAssistant);
  std::vector<HarmonyEvent> events;
  for (const int id : O200k().Encode("Once upon a time there was a server that")) {
    parser.Append(id, events);
  }
  EXPECT_EQ(Joined(events), "Once upon a time there was a server that");
}

TEST(HarmonyParserTest, BrokenCharactersDoNotLeakIntoTheNextMessage) {
  // 9552 is " " and the first two bytes of a character.
  std::vector<int> ids = O200k().EncodeWithSpecials("<|channel|>analysis<|message|>Chicken");
  ids.push_back(9552);
  for (const int id : O200k().EncodeWithSpecials(
           "<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>")) {
    ids.push_back(id);
  }
  const HarmonyParse parse = ParseHarmony(O200k(), Tokens(), ids, kAssistant);
  EXPECT_EQ(Describe(parse.messages),
            "assistant name - channel 'analysis' to - type -: Chicken \uFFFD\n"
            "assistant name - channel 'final' to - type -: b\n");
  EXPECT_FALSE(parse.malformed);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kRandomSequences = 50'000;
#else
constexpr int kRandomSequences = 1'000'000;
#endif

// Tokens that mean something in some state, parts of characters, and any others.
std::vector<int> TokenPool() {
  std::vector<int> pool;
  for (const char* text : {"<|start|>",   "<|message|>",
                           "<|channel|>", "<|constrain|>",
                           "<|end|>",     "<|return|>",
                           "<|call|>",    "<|endoftext|>",
                           "assistant",   "user",
                           "tool",        "analysis",
                           "commentary",  "final",
                           " to",         " to=functions.f",
                           "functions",   " json",
                           ":",           " ",
                           "\n",          "\t",
                           "Hello",       " there",
                           "<",           "|",
                           "\u00e9",      "\u2019",
                           "\U0001F496",  "\U0001F468\u200D",
                           "\u6771"}) {
    for (const int id : O200k().EncodeWithSpecials(text)) pool.push_back(id);
  }
  for (int byte = 0; byte < 256; byte += 5) {
    const std::string one(1, static_cast<char>(byte));
    pool.push_back(O200k().Encode(one).front());
  }
  for (const int id : {9552, 31446, 244, 200000, 200018, 201087, 201088, 999999, -1}) {
    pool.push_back(id);
  }
  return pool;
}

TEST(HarmonyParserTest, RandomTokensNeitherCrashNorLoseText) {
  const std::vector<int> pool = TokenPool();
  std::mt19937 random(20250628);
  std::vector<HarmonyEvent> events;
  std::vector<int> ids;
  size_t messages = 0;
  for (int n = 0; n < kRandomSequences; ++n) {
    std::optional<HarmonyRole> role;
    if (random() % 2 == 0) role = kAssistant;
    HarmonyParser parser(O200k(), Tokens(), role);
    events.clear();
    ids.clear();
    const size_t length = random() % 16;
    for (size_t i = 0; i < length; ++i) {
      // The first few of the pool are the control tokens: half of all.
      const bool control = random() % 2 == 0;
      const bool any = random() % 16 == 0;
      const int id =
          any ? static_cast<int>(random() % 201088) : pool[random() % (control ? 8 : pool.size())];
      ids.push_back(id);
      parser.Append(id, events);
    }
    parser.Finish(events);
    const std::string joined = Joined(events);
    if (joined != O200k().Decode(ids)) {
      FAIL() << "'" << joined << "' is not '" << O200k().Decode(ids) << "', role "
             << role.has_value();
    }
    messages += events.size();
  }
  EXPECT_GT(messages, static_cast<size_t>(kRandomSequences));
}

TEST(HarmonyParserTest, ALongHeaderIsBoundedAndKept) {
  const std::string word(2000, 'x');
  for (const std::string& text : {word, "<|channel|>" + word, "<|start|>" + word}) {
    const Parsed parsed = Parse(text + "<|return|>", kAssistant);
    EXPECT_TRUE(parsed.malformed);
  }
}

// --- Rendering: what the cases above cannot show. ---

TEST(HarmonyRenderTest, OnlyTheReasoningOfTheOpenTurnIsKeptWhereAsked) {
  const auto message = [](HarmonyRole role, const char* channel) {
    HarmonyMessage made;
    made.header.role = role;
    if (*channel != '\0') made.header.channel = channel;
    return made;
  };
  const std::vector<HarmonyMessage> messages = {message(HarmonyRole::kUser, ""),
                                                message(kAssistant, "analysis"),
                                                message(kAssistant, "final"),
                                                message(HarmonyRole::kUser, ""),
                                                message(kAssistant, "analysis"),
                                                message(kAssistant, "commentary"),
                                                message(HarmonyRole::kTool, "commentary")};
  EXPECT_EQ(HarmonyKeptMessages(messages, HarmonyHistory::kOpenTurn),
            (std::vector<size_t>{0, 2, 3, 4, 5, 6}));
  EXPECT_EQ(HarmonyKeptMessages(messages, HarmonyHistory::kBeforeFirstFinal).size(), 7u);
  EXPECT_EQ(HarmonyKeptMessages(messages, HarmonyHistory::kAll).size(), 7u);
  EXPECT_EQ(HarmonyKeptMessages(std::span(messages).first(3), HarmonyHistory::kBeforeFirstFinal),
            (std::vector<size_t>{0, 2}));
}

TEST(HarmonyRenderTest, WhatCannotBeRenderedIsAnError) {
  const HarmonyRenderer renderer(O200k(), Tokens());
  HarmonyMessage tool;
  tool.header.role = HarmonyRole::kTool;
  EXPECT_EQ(renderer.Conversation(std::vector{tool}).status().code(),
            absl::StatusCode::kInvalidArgument);
  HarmonyMessage user;
  user.content = {HarmonySystem{}};
  EXPECT_EQ(renderer.Conversation(std::vector{user}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(HarmonySchemaType("{").ok());
  EXPECT_FALSE(HarmonySchemaType(std::string(1'000'000, '[')).ok());
  EXPECT_FALSE(HarmonySchemaType(std::string(129, '[') + std::string(129, ']')).ok());
  EXPECT_EQ(*HarmonySchemaType("[]"), "any");
}

TEST(HarmonyTokensTest, ATokenizerWithoutThemIsNamedWithWhatItLacks) {
  const auto tokenizer = *Tokenizer::Load("demo/tiny_gpt_oss/tokenizer.json");
  EXPECT_TRUE(HarmonyTokens::Find(*tokenizer).ok());
  EXPECT_NE(HarmonyTokens::Find(*tokenizer)->start, Tokens().start);
  EXPECT_EQ(Tokens().start, 200006);
  EXPECT_EQ(Tokens().call, 200012);
}

}  // namespace
}  // namespace conclave::model
