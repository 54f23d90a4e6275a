#ifndef CONCLAVE_CLIENT_CLI_TESTING_H_
#define CONCLAVE_CLIENT_CLI_TESTING_H_

// The command against a server whose answers the test chooses.

#include <algorithm>
#include <string>
#include <vector>

#include "client/fake_server.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {

// An error is one line.
inline void ExpectError(const CommandResult& result, int code, const std::string& text) {
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_THAT(result.err, ::testing::StartsWith("conclave"));
  EXPECT_THAT(result.err, ::testing::HasSubstr(text));
}

class CliTest : public testing::Test {
 protected:
  CommandResult Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin() + 1, {"--server", server_.address()});
    return RunConclave(arguments);
  }

  void AddPart(std::vector<uint32_t> tokens, const std::string& text) {
    v1::GenerateResponse part;
    for (const uint32_t token : tokens) part.add_tokens(token);
    part.set_text(text);
    server_.answers.stream.push_back(part);
  }

  void AddFinish() {
    v1::GenerateResponse part;
    part.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
    part.mutable_finish()->mutable_usage()->set_prompt_tokens(3);
    part.mutable_finish()->mutable_usage()->set_completion_tokens(2);
    server_.answers.stream.push_back(part);
  }

  void AddHead(const std::string& name, v1::HeadInfo::Kind kind) {
    v1::HeadInfo* head = server_.answers.model.add_heads();
    head->set_name(name);
    head->set_kind(kind);
  }

  FakeServer server_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CLI_TESTING_H_
