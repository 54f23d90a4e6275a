// `conclave chat` against a server whose answers the test chooses, in pipes and at a terminal.

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <string>

#include "client/cli_testing.h"
#include "client/exit_code.h"
#include "client/process.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Answers every Chat with reasoning, text, and a call where `call`.
void AnswerChats(FakeAnswers& answers, bool call) {
  answers.chat.resize(3);
  answers.chat[0].set_reasoning_delta("Hm.");
  answers.chat[1].set_text_delta("Four");
  answers.chat[2].set_text_delta(" é.");
  if (call) {
    v1::ToolCallDelta* delta = answers.chat.emplace_back().mutable_tool_call();
    delta->set_id("call_1");
    delta->set_name("add");
    delta->set_arguments("{\"a\": 1}");
  }
  v1::ChatFinish* finish = answers.chat.emplace_back().mutable_finish();
  finish->set_reason(call ? v1::FINISH_REASON_TOOL_CALLS : v1::FINISH_REASON_STOP);
  finish->mutable_usage()->set_prompt_tokens(9);
}

TEST_F(CliTest, ChatSaysOneMessageAndPrintsTheAnswer) {
  AnswerChats(server_.answers, false);
  const CommandResult result =
      Run({"chat", "--message", "2+2?", "--system", "Be brief.", "--effort", "low", "--seed", "7",
           "--temperature", "0", "--max-tokens", "50", "--no-tool-calls", "--priority", "-5",
           "--user", "ann"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "Four é.\n");  // a pipe gets the answer alone, and no colors
  const v1::ChatRequest& sent = server_.requests.chat;
  ASSERT_EQ(sent.conversation().messages_size(), 2);
  EXPECT_EQ(sent.conversation().messages(0).role(), v1::ChatMessage::SYSTEM);
  EXPECT_EQ(sent.conversation().messages(1).content(), "2+2?");
  EXPECT_EQ(sent.conversation().reasoning_effort(), v1::REASONING_EFFORT_LOW);
  EXPECT_EQ(sent.conversation().tool_choice(), v1::TOOL_CHOICE_NONE);
  EXPECT_EQ(sent.stop().max_tokens(), 50u);
  EXPECT_EQ(sent.priority(), -5);
  EXPECT_EQ(sent.user(), "ann");
  EXPECT_EQ(sent.sampling().seed(), 7u);
  EXPECT_EQ(sent.sampling().temperature(), 0.0F);
  EXPECT_EQ(Run({"chat", "--message", "2+2?", "--show-reasoning"}).out, "Hm.\nFour é.\n");
  ExpectError(Run({"chat", "--message", "?", "--effort", "extreme"}), kExitUsage, "--effort");
}

TEST_F(CliTest, AnOutputThatCannotBeWrittenIsAnError) {
  AnswerChats(server_.answers, false);
  const auto process = Spawn({.argv = {"/bin/sh", "-c",
                                       ConclaveBinary() + " chat --message ? --server " +
                                           server_.address() + " >/dev/full"},
                              .log_file = ""});
  ASSERT_TRUE(process.ok()) << process.status();
  int status = 0;
  ASSERT_TRUE(WaitUntil([&] { return waitpid(process->pid, &status, WNOHANG) == process->pid; }));
  EXPECT_EQ(WEXITSTATUS(status), kExitError);
  close(process->stdout_fd);
  close(process->stderr_fd);
}

TEST_F(CliTest, ChatSaysWhichToolIsWrong) {
  const std::string path = ::testing::TempDir() + "/tools.json";
  std::ofstream(path) << R"([{"name": "a"}, {"description": "b"}])";
  ExpectError(Run({"chat", "--message", "?", "--tools", path}), kExitError,
              path + ", tool 1: key 'name' not found");
}

TEST_F(CliTest, ChatJsonIsTheObjectOfTheContract) {
  AnswerChats(server_.answers, true);
  const CommandResult result = Run({"chat", "--message", "2+2?", "--json"});
  EXPECT_EQ(
      result.out,
      "{\"reasoning\":\"Hm.\",\"text\":\"Four é.\",\"tool_calls\":[{\"id\":\"call_1\",\"name\":"
      "\"add\",\"arguments\":\"{\\\"a\\\": 1}\"}],\"finish_reason\":\"tool_calls\",\"malformed\":"
      "false,\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":0}}\n");
}

// `conclave chat` at a terminal of the test's.
class ChatTerminalTest : public CliTest {
 protected:
  ChatTerminalTest() { server_.answers.model.set_can_chat(true); }

  void Start(const char* term = "xterm") {
    const std::string binary = ConclaveBinary();
    const std::string address = server_.address();
    winsize size = {24, 80, 0, 0};
    pid_ = forkpty(&terminal_, nullptr, nullptr, &size);
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      setenv("NO_COLOR", "1", 1);
      setenv("TERM", term, 1);
      execl(binary.c_str(), "conclave", "chat", "--server", address.c_str(), nullptr);
      _exit(127);
    }
    fcntl(terminal_, F_SETFL, O_NONBLOCK);
  }
  void TearDown() override {
    if (pid_ > 0) kill(pid_, SIGKILL);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
    if (terminal_ >= 0) close(terminal_);
  }

  void Type(const std::string& keys) {
    ASSERT_EQ(write(terminal_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  // Waits until what the terminal shows from now on holds `text`; forgets it up to there.
  void WaitFor(const std::string& text) {
    const bool found = WaitUntil([&] {
      std::array<char, 4096> buffer;
      const ssize_t size = read(terminal_, buffer.data(), buffer.size());
      if (size > 0) shown_.append(buffer.data(), static_cast<size_t>(size));
      if (size > 0) all_.append(buffer.data(), static_cast<size_t>(size));
      return shown_.find(text) != std::string::npos;
    });
    ASSERT_TRUE(found) << "no '" << text << "' in: " << shown_;
    shown_.erase(0, shown_.find(text) + text.size());
  }
  const v1::Conversation& sent() const { return server_.requests.chat.conversation(); }
  int WaitForExit() {
    int status = 0;
    EXPECT_TRUE(WaitUntil([&] { return waitpid(pid_, &status, WNOHANG) == pid_; }));
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  pid_t pid_ = -1;
  int terminal_ = -1;
  std::string shown_;
  std::string all_;  // since the start
};

TEST_F(ChatTerminalTest, AConversationGoesOnAndLinesComeBack) {
  AnswerChats(server_.answers, false);
  Start();
  WaitFor("you> ");
  Type("Grüße 日本\r");
  WaitFor("Hm.");  // a terminal shows the reasoning
  WaitFor("Four é.");
  WaitFor("you> ");
  ASSERT_EQ(sent().messages_size(), 1);
  EXPECT_EQ(sent().messages(0).content(), "Grüße 日本");
  // The window changes, and the last line comes back by the arrow key.
  winsize narrow = {24, 40, 0, 0};
  ioctl(terminal_, TIOCSWINSZ, &narrow);
  Type("\x1b[A\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  ASSERT_EQ(sent().messages_size(), 3);
  EXPECT_EQ(sent().messages(1).role(), v1::ChatMessage::ASSISTANT);
  EXPECT_EQ(sent().messages(1).content(), "Four é.");
  EXPECT_EQ(sent().messages(1).reasoning(), "Hm.");
  EXPECT_EQ(sent().messages(2).content(), "Grüße 日本");
  EXPECT_EQ(shown_.find("\x1b[2m"), std::string::npos);
  Type("\x04");
  WaitFor("\n");  // the shell's prompt gets a line of its own
  EXPECT_EQ(WaitForExit(), kExitOk);
}

TEST_F(ChatTerminalTest, PastedLinesAreOneMessage) {
  AnswerChats(server_.answers, false);
  Start();
  WaitFor("you> ");
  Type("\x1b[200~one\rtwo\nthree\x1b[201~\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  EXPECT_EQ(sent().messages(0).content(), "one\ntwo\nthree");
  // From a terminal that does not mark what is pasted.
  Type("four\rfive\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  EXPECT_EQ(sent().messages(2).content(), "four\nfive");
}

TEST_F(ChatTerminalTest, WhatIsPastedIsText) {
  AnswerChats(server_.answers, false);
  Start();
  WaitFor("you> ");
  Type("\x1b[200~if x:\r\n\ty\x1b[31m\x01 = 1\x7f\x1b[201~\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  EXPECT_EQ(sent().messages(0).content(), "if x:\n\ty[31m = 1");
}

TEST_F(ChatTerminalTest, AWrappedLineIsDrawnAnewWhereItBegan) {
  Start();
  WaitFor("you> ");
  std::string text(103, 'x');  // 108 cells with the prompt
  text.back() = '!';
  Type(text);
  WaitFor("x!");
  winsize wide = {24, 120, 0, 0};
  ioctl(terminal_, TIOCSWINSZ, &wide);
  WaitFor("\r\x1b[J");  // on one row now
  WaitFor("you> " + text);
  winsize narrow = {24, 40, 0, 0};
  ioctl(terminal_, TIOCSWINSZ, &narrow);
  WaitFor("\r\x1b[2A\x1b[J");
  WaitFor("x!");
  Type("\x01");
  WaitFor("\x1b[6G");  // at the beginning of the line
  Type("\x03");
  WaitFor("\x1b[2B\x1b[29G^C\r\n");
}

TEST_F(ChatTerminalTest, ADumbTerminalGetsNoEscapes) {
  AnswerChats(server_.answers, false);
  Start("dumb");
  WaitFor("you> ");
  Type("one\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  winsize narrow = {24, 40, 0, 0};
  ioctl(terminal_, TIOCSWINSZ, &narrow);
  Type("two\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  EXPECT_EQ(sent().messages(2).content(), "two");
  EXPECT_THAT(all_, Not(HasSubstr("\x1b")));
}

TEST_F(ChatTerminalTest, AReplyCannotCommandTheTerminal) {
  AnswerChats(server_.answers, false);
  server_.answers.chat[1].set_text_delta("\x1b]0;title\x07\xC2\x9B\x32J\tFour");
  Start();
  WaitFor("you> ");
  Type("?\r");
  WaitFor("␛]0;title␇\uFFFD2J\tFour é.");
}

TEST_F(ChatTerminalTest, ATurnThatFailsIsTakenBack) {
  AnswerChats(server_.answers, false);
  Start();
  WaitFor("you> ");
  server_.answers.status = {grpc::StatusCode::UNAVAILABLE, "rank 2 was lost"};
  Type("first\r");
  WaitFor("Four é.\r\nconclave chat: UNAVAILABLE: rank 2 was lost\r\n");
  WaitFor("you> ");
  server_.answers.status = grpc::Status::OK;
  Type("second\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  ASSERT_EQ(sent().messages_size(), 1);
  EXPECT_EQ(sent().messages(0).content(), "second");
}

TEST_F(ChatTerminalTest, ResultsOfCallsAreAskedFor) {
  AnswerChats(server_.answers, true);
  Start();
  WaitFor("you> ");
  Type("2+2?\r");
  WaitFor("[call add] {\"a\": 1}");
  WaitFor("result of add> ");
  AnswerChats(server_.answers, false);
  Type("4\r");
  WaitFor("Four é.");
  WaitFor("you> ");
  ASSERT_EQ(sent().messages_size(), 3);
  EXPECT_EQ(sent().messages(1).tool_calls(0).id(), "call_1");
  EXPECT_EQ(sent().messages(2).tool_call_id(), "call_1");
  EXPECT_EQ(sent().messages(2).content(), "4");
}

TEST_F(ChatTerminalTest, WhatCannotWorkIsSaidBeforeAnythingIsTyped) {
  server_.answers.model.set_can_chat(false);
  server_.answers.model.set_name("mute");
  Start();
  WaitFor("conclave chat: FAILED_PRECONDITION: mute cannot chat");
  EXPECT_EQ(WaitForExit(), kExitError);
}

TEST_F(ChatTerminalTest, CtrlCGivesUpALineAndStopsAReply) {
  AnswerChats(server_.answers, false);
  server_.answers.chat.resize(2);  // no finish
  server_.answers.hang = true;
  Start();
  WaitFor("you> ");
  Type("not this");
  WaitFor("not this");
  Type("\x03");
  WaitFor("you> ");
  Type("this\r");
  WaitFor("Four");
  EXPECT_EQ(sent().messages(0).content(), "this");
  Type("\x03");
  WaitFor("^C\r\n");
  WaitFor("[cancelled]");
  WaitFor("you> ");
  Type("and this\r");
  WaitFor("Four");
  ASSERT_EQ(sent().messages_size(), 3);
  EXPECT_EQ(sent().messages(1).content(), "Four");  // what had arrived
  Type("\x03");
  WaitFor("you> ");
  server_.answers.chat.clear();
  Type("never mind\r");
  ASSERT_TRUE(WaitUntil([&] { return sent().messages_size() == 5; }));
  Type("\x03");
  WaitFor("[cancelled before the reply began: what was said is taken back]");
  WaitFor("you> ");
  Type("/clear\r");
  WaitFor("[forgotten]");
  WaitFor("you> ");
  Type("/quit\r");
  EXPECT_EQ(WaitForExit(), kExitOk);
}

}  // namespace
}  // namespace conclave::client
