#include "tests/e2e/server.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"

extern char** environ;

namespace conclave::tests {
namespace {

std::string ScratchFile(const std::string& name) {
  const char* dir = std::getenv("TEST_TMPDIR");
  static int counter = 0;
  return std::string(dir != nullptr ? dir : "/tmp") + "/" + name + "." +
         std::to_string(::getpid()) + "." + std::to_string(counter++);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Starts `command`; fd[i] becomes the child's descriptor i where it is not negative.
pid_t Spawn(const std::vector<std::string>& command, int in, int out, int err) {
  std::vector<char*> argv;
  for (const std::string& arg : command) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (in >= 0) posix_spawn_file_actions_adddup2(&actions, in, 0);
  if (out >= 0) posix_spawn_file_actions_adddup2(&actions, out, 1);
  if (err >= 0) posix_spawn_file_actions_adddup2(&actions, err, 2);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? pid : -1;
}

std::vector<std::string> ServeCommand(const ServerOptions& options) {
  std::vector<std::string> command = {
      BinaryPath("client/conclave"),   "serve",    "--model", options.model, "--workers",
      std::to_string(options.workers), "--device", "cpu",     "--listen",    "127.0.0.1:0"};
  if (options.dp > 0) command.insert(command.end(), {"--dp", std::to_string(options.dp)});
  if (options.tp > 0) command.insert(command.end(), {"--tp", std::to_string(options.tp)});
  command.insert(command.end(), options.args.begin(), options.args.end());
  return command;
}

}  // namespace

absl::Duration Scaled(absl::Duration duration) { return duration * base::TimeScale(); }

std::string BinaryPath(const std::string& path) {
  const char* root = std::getenv("TEST_SRCDIR");
  if (root == nullptr) return "bazel-bin/" + path;
  return std::string(root) + "/conclave/" + path;
}

Server::Server(const ServerOptions& options) : log_path_(ScratchFile("serve.log")) {
  int out[2];
  if (::pipe2(out, O_CLOEXEC) != 0) return;
  const int log = ::open(log_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  pid_ = Spawn(ServeCommand(options), -1, out[1], log);
  ::close(out[1]);
  ::close(log);
  stdout_ = out[0];
}

Server::~Server() {
  if (pid_ > 0) Stop(SIGTERM);
  if (stdout_ >= 0) ::close(stdout_);
  ::unlink(log_path_.c_str());
}

bool Server::WaitServing() {
  ReadUntilServing(absl::Now() + Scaled(absl::Seconds(60)));
  if (address_.empty()) return false;
  channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  return true;
}

namespace {

// What follows `word` on a whole line that begins with it.
std::string LineAfter(const std::string& text, const std::string& word) {
  const size_t at = text.rfind(word + " ");
  if (at == std::string::npos || (at > 0 && text[at - 1] != '\n')) return "";
  const size_t begin = at + word.size() + 1;
  const size_t end = text.find('\n', begin);
  return end == std::string::npos ? "" : text.substr(begin, end - begin);
}

}  // namespace

void Server::ReadUntilServing(absl::Time deadline) {
  std::string text;
  while (address_.empty() && absl::Now() < deadline) {
    pollfd poll_fd = {stdout_, POLLIN, 0};
    if (::poll(&poll_fd, 1, 100) <= 0) continue;
    char buffer[512];
    const ssize_t n = ::read(stdout_, buffer, sizeof(buffer));
    if (n <= 0) return;
    text.append(buffer, static_cast<size_t>(n));
    internal_ = LineAfter(text, "internal");
    metrics_ = LineAfter(text, "metrics");
    address_ = LineAfter(text, "serving");
  }
}

int Server::Stop(int signal) {
  if (pid_ <= 0) return -1;
  ::kill(pid_, signal);
  int status = 0;
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(30));
  while (::waitpid(pid_, &status, WNOHANG) == 0) {
    if (absl::Now() > end) ::kill(pid_, SIGKILL);
    absl::SleepFor(absl::Milliseconds(10));
  }
  pid_ = -1;
  return status;
}

std::string Server::log() const { return ReadFile(log_path_); }

v1::GetClusterResponse Server::Cluster() const {
  v1::GetClusterResponse response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(10))));
  v1::ClusterService::NewStub(channel_)->GetCluster(&context, {}, &response);
  return response;
}

pid_t Server::CoordinatorPid() const {
  std::stringstream children(
      ReadFile("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) + "/children"));
  for (pid_t child = 0; children >> child;) {
    const std::string name = ReadFile("/proc/" + std::to_string(child) + "/comm");
    if (name.starts_with("conclave-coord")) return child;
  }
  return -1;
}

bool Server::WaitForLog(const std::string& part) const {
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(20));
  while (log().find(part) == std::string::npos) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

bool Server::Healthy() const {
  grpc::health::v1::HealthCheckResponse response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(10))));
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(channel_)->Check(&context, {}, &response);
  return status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

CommandResult RunCommand(const std::vector<std::string>& command, const std::string& input) {
  const std::string in_path = ScratchFile("in");
  const std::string out_path = ScratchFile("out");
  const std::string err_path = ScratchFile("err");
  std::ofstream(in_path) << input;
  const int in = ::open(in_path.c_str(), O_RDONLY | O_CLOEXEC);
  const int out = ::open(out_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  const int err = ::open(err_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  const pid_t pid = Spawn(command, in, out, err);
  int status = 0;
  rusage usage = {};
  if (pid > 0) ::wait4(pid, &status, 0, &usage);
  for (int fd : {in, out, err}) ::close(fd);
  CommandResult result{pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(out_path),
                       ReadFile(err_path), int64_t{usage.ru_maxrss} << 10};
  for (const std::string& path : {in_path, out_path, err_path}) ::unlink(path.c_str());
  return result;
}

}  // namespace conclave::tests
