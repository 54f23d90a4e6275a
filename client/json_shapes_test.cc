#include "client/json_shapes.h"

#include <google/protobuf/text_format.h>

#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace conclave::client {
namespace {

template <typename Message>
Message Parse(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

TEST(JsonShapesTest, FloatsHaveTheFewestDigitsThatReadBack) {
  EXPECT_EQ(Dump(ShortFloat(0.1f)), "0.1");
  EXPECT_EQ(Dump(ShortFloat(-1.5f)), "-1.5");
  const float third = 1.0f / 3;
  EXPECT_EQ(ShortFloat(third).get<float>(), third);
  EXPECT_TRUE(ShortFloat(std::numeric_limits<float>::quiet_NaN()).is_null());
}

TEST(JsonShapesTest, TextThatIsNotUtf8IsReplaced) {
  EXPECT_EQ(Dump(Json{{"a", "x\xff"}}), "{\"a\":\"x\xEF\xBF\xBD\"}");
}

TEST(JsonShapesTest, GenerationHasExactlyTheFieldsOfTheContract) {
  const auto all = Parse<v1::GenerateResponse>(R"(
    tokens: 5 tokens: 7 text: "hi"
    finish { reason: FINISH_REASON_STOP usage { prompt_tokens: 3 completion_tokens: 2 } seed: 9 }
    logprobs { token: 5 logprob: -0.5 top { token: 5 logprob: -0.5 } top { token: 6 logprob: -2 } }
    logprobs { token: 7 logprob: -0.25 })");
  EXPECT_EQ(Dump(GenerationJson(all, false)),
            R"({"tokens":[5,7],"text":"hi","finish_reason":"stop",)"
            R"("usage":{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":0}})");
  EXPECT_EQ(Dump(GenerationJson(all, true)["logprobs"]),
            R"([{"token":5,"logprob":-0.5,"top":[{"token":5,"logprob":-0.5},)"
            R"({"token":6,"logprob":-2.0}]},{"token":7,"logprob":-0.25,"top":[]}])");
}

TEST(JsonShapesTest, WhatWasAskedOfThePromptIsThere) {
  const auto all = Parse<v1::GenerateResponse>(R"(
    prompt { tokens: 1 tokens: 2 text: "ab" logprobs { token: 2 logprob: -0.5 } }
    finish { reason: FINISH_REASON_STOP stop_string: "end" })");
  const Json json = GenerationJson(all, false);
  EXPECT_EQ(Dump(json["prompt"]), R"({"tokens":[1,2],"text":"ab"})");
  EXPECT_EQ(Dump(json["prompt_logprobs"]), R"([{"token":2,"logprob":-0.5,"top":[]}])");
  EXPECT_EQ(json["stop_string"], "end");
  EXPECT_FALSE(json.contains("stop_token"));
}

TEST(JsonShapesTest, AnEmptyGenerationHasEmptyArrays) {
  const auto all = Parse<v1::GenerateResponse>("finish { reason: FINISH_REASON_CANCELLED }");
  EXPECT_EQ(
      Dump(GenerationJson(all, true)),
      R"({"tokens":[],"text":"","finish_reason":"cancelled",)"
      R"("usage":{"prompt_tokens":0,"completion_tokens":0,"cached_tokens":0},"logprobs":[]})");
}

TEST(JsonShapesTest, SequenceLabelsAreAnArrayOfObjects) {
  const auto one =
      Parse<v1::SequenceClassification>(R"(labels { label: "good" score: 0.75 logit: 1.5 })");
  EXPECT_EQ(Dump(SequenceJson(one)),
            R"({"labels":[{"label":"good","score":0.75,"logit":1.5}],"truncated":false})");
}

TEST(JsonShapesTest, TokenLabelsAndSpans) {
  const auto result = Parse<v1::TokenClassification>(R"(
    tokens { token: 3 label: "B-X" score: 0.5 logits: 1 logits: -1 start_byte: 0 end_byte: 4 }
    spans { label: "X" score: 0.5 start_byte: 0 end_byte: 4 start_char: 0 end_char: 3
            text: "abc" })");
  EXPECT_EQ(Dump(TokensJson(result)),
            R"({"tokens":[{"token":3,"label":"B-X","score":0.5,"logits":[1.0,-1.0],)"
            R"("start_byte":0,"end_byte":4}],"spans":[{"label":"X","score":0.5,"start_byte":0,)"
            R"("end_byte":4,"start_char":0,"end_char":3,"text":"abc"}],"truncated":false})");
}

TEST(JsonShapesTest, ClusterNamesEveryField) {
  const auto cluster = Parse<v1::GetClusterResponse>(R"(
    state: READY epoch: 4 dp: 1 tp: 1 load_progress: 1
    ranks { rank: 0 device: "cpu" host: "h" pid: 12 memory { weight_bytes: 1 total_bytes: 9 }
            layers { experts: 0 experts: 1 load: 5 load: 6 } kernel: "k" expert_format: "mxfp4" }
    counters { tokens_computed: 8 steps: 2 max_plans_in_flight: 2
               full_blocks { used: 1 total: 3 max_per_sequence: 2 cached: 1 }
               prefix_cache { enabled: true prompt_tokens: 9 hit_tokens: 4 } })");
  const Json json = ClusterJson(cluster);
  EXPECT_EQ(json["state"], "READY");
  EXPECT_EQ(json["epoch"], 4);
  const Json& rank = json["ranks"][0];
  EXPECT_EQ(Dump(rank["layers"]), R"([{"experts":[0,1],"load":[5,6]}])");
  EXPECT_EQ(Dump(rank["memory"]),
            R"({"weight_bytes":1,"kv_bytes":0,"total_bytes":9,"free_bytes":0})");
  EXPECT_EQ(rank["pid"], 12);
  EXPECT_EQ(rank["expert_format"], "mxfp4");
  EXPECT_EQ(json["counters"]["max_plans_in_flight"], 2);
  EXPECT_EQ(Dump(json["counters"]["full_blocks"]),
            R"({"used":1,"total":3,"max_per_sequence":2,"cached":1})");
  EXPECT_EQ(Dump(json["counters"]["prefix_cache"]),
            R"({"enabled":true,"prompt_tokens":9,"hit_tokens":4,"evicted_blocks":0})");
  // A field of the message that no field of the object shows would be forgotten here.
  EXPECT_EQ(rank.size(), static_cast<size_t>(v1::Rank::descriptor()->field_count()));
  EXPECT_EQ(json["counters"].size(),
            static_cast<size_t>(v1::Counters::descriptor()->field_count()));
  EXPECT_EQ(json.size(), static_cast<size_t>(v1::GetClusterResponse::descriptor()->field_count()));
}

}  // namespace
}  // namespace conclave::client
