// A trained model as people would use it: questions answered, functions called (both through Chat),
// texts labelled, over four workers; and that broken experts show. The cases are held out
// (tools/demo_model/README.md).

#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Span = std::tuple<uint32_t, uint32_t, std::string>;  // begin and end in bytes, label

constexpr char kModel[] = "demo/small_gpt_oss";
constexpr int kWorkers = 4;
constexpr int kMaxTokens = 160;

struct Cases {
  std::vector<Json> chat, pii, language;
};

Cases LoadCases() {
  Cases cases;
  std::ifstream file("tests/goldens/small_gpt_oss.jsonl");
  for (std::string line; std::getline(file, line);) {
    Json json = Json::parse(line);
    auto& list = json.contains("conversation") ? cases.chat
                 : json.contains("spans")      ? cases.pii
                                               : cases.language;
    list.push_back(std::move(json));
  }
  return cases;
}

// Of what the bars are set for.
struct Shares {
  double chat = 0;         // the answer, or the one call and its arguments, is right
  double well_formed = 0;  // ends with an answer or a call, and nothing breaks the format
  double sentences = 0;
  double span_f1 = 0;
};

bool Passes(const Shares& shares) {
  return shares.chat >= 0.95 && shares.well_formed >= 0.99 && shares.sentences >= 0.97 &&
         shares.span_f1 >= 0.95;
}

std::string Text(const Shares& shares) {
  char text[120];
  std::snprintf(text, sizeof text, "chat %.4f, well-formed %.4f, sentences %.4f, span F1 %.4f",
                shares.chat, shares.well_formed, shares.sentences, shares.span_f1);
  return text;
}

// What a Chat said, all events together.
struct Reply {
  std::string text;
  std::vector<v1::ToolCallDelta> calls;
  v1::ChatFinish finish;
  grpc::Status status;
};

v1::ChatRequest ChatRequest(const Json& conversation) {
  v1::ChatRequest request;
  const auto parsed = google::protobuf::util::JsonStringToMessage(conversation.dump(),
                                                                  request.mutable_conversation());
  EXPECT_TRUE(parsed.ok()) << parsed.ToString();
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(kMaxTokens);
  return request;
}

Reply Chat(const Server& server, const v1::ChatRequest& request) {
  Reply reply;
  grpc::ClientContext context;
  const auto stub = v1::GenerationService::NewStub(server.channel());
  const auto reader = stub->Chat(&context, request);
  for (v1::ChatResponse event; reader->Read(&event);) {
    reply.text += event.text_delta();
    if (event.has_finish()) reply.finish = event.finish();
    if (!event.has_tool_call()) continue;
    reply.calls.resize(std::max<size_t>(reply.calls.size(), event.tool_call().index() + 1));
    v1::ToolCallDelta& call = reply.calls[event.tool_call().index()];
    call.set_name(event.tool_call().name());
    call.mutable_arguments()->append(event.tool_call().arguments());
  }
  reply.status = reader->Finish();
  return reply;
}

bool WellFormed(const Reply& reply) {
  const auto wanted = reply.calls.empty() ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_TOOL_CALLS;
  return !reply.finish.malformed() && reply.finish.reason() == wanted;
}

bool IsRight(const Reply& reply, const Json& wanted) {
  if (!wanted.contains("call")) return reply.calls.empty() && reply.text == wanted["answer"];
  return reply.calls.size() == 1 && reply.text.empty() &&
         reply.calls[0].name() == wanted["call"]["name"] &&
         Json::parse(reply.calls[0].arguments(), nullptr, /*allow_exceptions=*/false) ==
             wanted["call"]["arguments"];
}

// All conversations at once.
void MeasureChat(const Server& server, const std::vector<Json>& cases, Shares* shares) {
  std::vector<Reply> replies(cases.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < cases.size(); ++i) {
    threads.emplace_back([&, i, request = ChatRequest(cases[i]["conversation"])] {
      replies[i] = Chat(server, request);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < cases.size(); ++i) {
    ASSERT_TRUE(replies[i].status.ok()) << replies[i].status.error_message();
    // The prompt is rendered as in training.
    EXPECT_EQ(replies[i].finish.usage().prompt_tokens(), cases[i]["prompt_tokens"]) << i;
    const bool formed = WellFormed(replies[i]);
    shares->well_formed += formed;
    shares->chat += formed && IsRight(replies[i], cases[i]);
  }
  shares->well_formed /= static_cast<double>(cases.size());
  shares->chat /= static_cast<double>(cases.size());
}

// Spaces before a span are not part of it.
Span Trimmed(const v1::TokenSpan& span) {
  const size_t spaces = std::min(span.text().find_first_not_of(' '), span.text().size());
  return {span.start_byte() + static_cast<uint32_t>(spaces), span.end_byte(), span.label()};
}

void MeasureSpans(const Server& server, const std::vector<Json>& cases, Shares* shares) {
  v1::ClassifyTokensRequest request;
  request.set_head("pii");
  for (const Json& json : cases) request.add_inputs()->set_text(json["text"]);
  v1::ClassifyTokensResponse response;
  grpc::ClientContext context;
  const grpc::Status status = v1::ClassificationService::NewStub(server.channel())
                                  ->ClassifyTokens(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  double right = 0, total = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    std::vector<Span> wanted;
    for (const Json& span : cases[i]["spans"]) {
      wanted.emplace_back(span["begin"], span["end"], span["label"]);
    }
    const auto& spans = response.results(static_cast<int>(i)).spans();
    for (const v1::TokenSpan& span : spans) {
      right += static_cast<double>(std::count(wanted.begin(), wanted.end(), Trimmed(span)));
    }
    total += static_cast<double>(wanted.size() + static_cast<size_t>(spans.size()));
  }
  shares->span_f1 = 2 * right / total;
}

void MeasureSentences(const Server& server, const std::vector<Json>& cases, Shares* shares) {
  v1::ClassifySequenceRequest request;
  request.set_head("language");
  for (const Json& json : cases) request.add_inputs()->set_text(json["text"]);
  v1::ClassifySequenceResponse response;
  grpc::ClientContext context;
  const grpc::Status status = v1::ClassificationService::NewStub(server.channel())
                                  ->ClassifySequence(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto less = [](const v1::LabelScore& a, const v1::LabelScore& b) {
    return a.logit() < b.logit();
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto& labels = response.results(static_cast<int>(i)).labels();
    const auto best = std::max_element(labels.begin(), labels.end(), less);
    shares->sentences += best->label() == cases[i]["language"].get<std::string>();
  }
  shares->sentences /= static_cast<double>(cases.size());
}

Shares Measure(const std::string& model) {
  Shares shares;
  const Cases cases = LoadCases();
  EXPECT_GE(cases.chat.size(), 100U);
  Server server({.workers = kWorkers,
                 .model = model,
                 .args = {"--head", std::string("language=") + kModel + "/head_language", "--head",
                          std::string("pii=") + kModel + "/head_pii"}});
  EXPECT_TRUE(server.WaitServing()) << server.log();
  if (!server.channel()) return shares;
  MeasureChat(server, cases.chat, &shares);
  MeasureSpans(server, cases.pii, &shares);
  MeasureSentences(server, cases.language, &shares);
  return shares;
}

// A copy of the model whose experts can be changed.
class ChangedModel {
 public:
  explicit ChangedModel(const std::string& name) : dir_(testing::TempDir() + "/" + name) {
    fs::create_directories(dir_);
    for (const auto& entry : fs::directory_iterator(kModel)) {
      if (!entry.is_regular_file()) continue;
      fs::copy_file(fs::canonical(entry.path()), dir_ + "/" + entry.path().filename().string(),
                    fs::copy_options::overwrite_existing);
    }
    fs::permissions(Weights(), fs::perms::owner_write, fs::perm_options::add);
  }
  ~ChangedModel() { fs::remove_all(dir_); }
  ChangedModel(const ChangedModel&) = delete;
  ChangedModel& operator=(const ChangedModel&) = delete;

  const std::string& dir() const { return dir_; }

  // Calls `change(bytes of all experts, bytes of one)` for every expert tensor of `layer`.
  template <typename Change>
  void OfExperts(int layer, int experts, const Change& change) {
    std::fstream file(Weights(), std::ios::in | std::ios::out | std::ios::binary);
    uint64_t header_bytes = 0;  // little-endian, as this machine
    file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    std::string header(header_bytes, '\0');
    file.read(header.data(), static_cast<std::streamsize>(header_bytes));
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    const Json tensors = Json::parse(header);
    int changed = 0;
    for (const auto& [name, tensor] : tensors.items()) {
      if (name.rfind(prefix, 0) != 0) continue;
      const uint64_t begin = tensor["data_offsets"][0];
      const uint64_t end = tensor["data_offsets"][1];
      std::string bytes(end - begin, '\0');
      const auto at = static_cast<std::streamoff>(8 + header_bytes + begin);
      file.seekg(at);
      file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      change(bytes, bytes.size() / static_cast<size_t>(experts));
      file.seekp(at);
      file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      ++changed;
    }
    ASSERT_EQ(changed, 6);  // blocks, scales and biases, of two matrices
    ASSERT_TRUE(file.good());
  }

 private:
  std::string Weights() const { return dir_ + "/model-00000-of-00000.safetensors"; }

  const std::string dir_;
};

constexpr int kLayers = 6;
constexpr int kExperts = 16;

class SmallModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (base::TimeScale() > 1) GTEST_SKIP() << "too slow under sanitizers; others cover the path";
  }
};

TEST_F(SmallModelTest, AnswersCallsFunctionsAndLabelsTexts) {
  const Shares shares = Measure(kModel);
  EXPECT_TRUE(Passes(shares)) << Text(shares);
  RecordProperty("shares", Text(shares));
}

TEST_F(SmallModelTest, AZeroedShardOfExpertsShows) {
  ChangedModel changed("zeroed");
  for (int layer = 0; layer < kLayers; ++layer) {
    changed.OfExperts(layer, kExperts, [](std::string& bytes, size_t one) {
      // Those of the last of four ranks.
      std::fill(bytes.end() - static_cast<std::ptrdiff_t>(one * kExperts / kWorkers), bytes.end(),
                '\0');
    });
  }
  const Shares shares = Measure(changed.dir());
  EXPECT_FALSE(Passes(shares)) << Text(shares);
  EXPECT_LT(shares.chat, 0.95);
  RecordProperty("shares", Text(shares));
}

TEST_F(SmallModelTest, TwoSwappedExpertsOfOneLayerShow) {
  ChangedModel changed("swapped");
  changed.OfExperts(2, kExperts, [](std::string& bytes, size_t one) {
    const auto begin = bytes.begin();
    std::swap_ranges(begin, begin + static_cast<std::ptrdiff_t>(one),
                     begin + static_cast<std::ptrdiff_t>(one));
  });
  const Shares shares = Measure(changed.dir());
  EXPECT_FALSE(Passes(shares)) << Text(shares);
  EXPECT_LT(shares.chat, 0.95);
  RecordProperty("shares", Text(shares));
}

}  // namespace
}  // namespace conclave::tests
