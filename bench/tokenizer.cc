// Megabytes of text per second that one thread tokenizes.
//
//   bazel build //bench:tokenizer && bazel-bin/bench/tokenizer --tokenizer FILE TEXT...
//
// Prints one line for each text: name, bytes, tokens, MB/s (median of the rounds, time of the
// thread). With --ids DIR the ids go to DIR/NAME.ids as 32-bit words of this machine, for a
// comparison: bench/tokenizer_vs_tiktoken.py.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/utf8.h"
#include "bench/measure.h"
#include "model/tokenizer.h"

namespace conclave::bench {
namespace {

struct Flags {
  std::string tokenizer;
  std::vector<std::string> texts;
  std::string ids_dir;
  int rounds = 5;
};

bool ReadFile(const std::string& path, std::string* text) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream buffer;
  buffer << file.rdbuf();
  *text = buffer.str();
  return file.good() && base::ValidateUtf8(*text).ok();
}

void WriteIds(const Flags& flags, const std::string& name, const std::vector<int>& ids) {
  std::ofstream file(flags.ids_dir + "/" + name + ".ids", std::ios::binary);
  file.write(reinterpret_cast<const char*>(ids.data()),
             static_cast<std::streamsize>(ids.size() * sizeof(int)));
}

int Fail(const std::string& message) {
  fmt::print(stderr, "tokenizer: {}\n", message);
  return 1;
}

int Run(const Flags& flags) {
  const auto tokenizer = model::Tokenizer::Load(flags.tokenizer);
  if (!tokenizer.ok()) return Fail(std::string(tokenizer.status().message()));
  for (const std::string& path : flags.texts) {
    std::string text;
    if (!ReadFile(path, &text) || text.empty()) return Fail(path + " is not UTF-8 text");
    std::vector<double> speeds;
    std::vector<int> ids;
    for (int round = 0; round < flags.rounds; ++round) {
      const double start = ThreadSeconds();
      ids = (*tokenizer)->Encode(text);
      speeds.push_back(static_cast<double>(text.size()) * 1e-6 / (ThreadSeconds() - start));
    }
    const std::string name = std::filesystem::path(path).filename().string();
    fmt::print("{} {} {} {:.2f}\n", name, text.size(), ids.size(), Median(speeds));
    std::fflush(stdout);
    if (!flags.ids_dir.empty()) WriteIds(flags, name, ids);
  }
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Megabytes of text per second that one thread tokenizes.");
  Flags flags;
  app.add_option("--tokenizer", flags.tokenizer)->required();
  app.add_option("--ids", flags.ids_dir)->type_name("DIR");
  app.add_option("--rounds", flags.rounds)->check(CLI::Range(1, 1000));
  app.add_option("texts", flags.texts)->required();
  CLI11_PARSE(app, argc, argv);
  return Run(flags);
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) { return conclave::bench::Main(argc, argv); }
