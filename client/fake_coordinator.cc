// Stands in for conclave-coordinator in the tests of `conclave serve`: prints its addresses and is
// SERVING once $FAKE_DIR/pids has a line for each worker. $FAKE_DIR/coordinator_args holds its
// arguments, one start per line. With $FAKE_COORDINATOR_EXIT it fails at once.

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "client/fake_server.h"

namespace conclave::client {
namespace {

std::string Flag(int argc, char** argv, const std::string& name) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (name == argv[i]) return argv[i + 1];
  }
  return "";
}

int CountLines(const std::string& path) {
  std::ifstream file(path);
  int count = 0;
  for (std::string line; std::getline(file, line);) ++count;
  return count;
}

int Main(int argc, char** argv) {
  if (const char* code = std::getenv("FAKE_COORDINATOR_EXIT"); code != nullptr) {
    std::fprintf(stderr, "the fake coordinator was told to fail\n");
    return std::atoi(code);
  }
  const std::string dir = std::getenv("FAKE_DIR");
  FakeServer server(Flag(argc, argv, "--listen"));
  server.SetServing(false);
  server.answers.cluster.set_state(v1::FORMING);
  std::ofstream args(dir + "/coordinator_args", std::ios::app);
  args << getpid();
  for (int i = 1; i < argc; ++i) args << " " << argv[i];
  args << std::endl;
  std::printf("internal %s\n", Flag(argc, argv, "--internal-listen").c_str());
  const std::string health = Flag(argc, argv, "--health-listen");
  if (!health.empty()) std::printf("health %s\n", health.c_str());
  std::printf("listening %s\n", server.address().c_str());
  std::fflush(stdout);
  const int workers = std::atoi(Flag(argc, argv, "--workers").c_str());
  for (bool serving = false;; std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
    if (serving || CountLines(dir + "/pids") < workers) continue;
    server.answers.cluster.set_state(v1::READY);
    server.SetServing(true);
    serving = true;
  }
}

}  // namespace
}  // namespace conclave::client

int main(int argc, char** argv) { return conclave::client::Main(argc, argv); }
