// Checks recorded histories:
//
//   load_check TRUTHS HISTORY...
//
// Exit codes: 0 nothing is wrong; 1 a guarantee was broken, or a file cannot be read.

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "tests/load/checker.h"

namespace conclave::tests {
namespace {

int Main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: load_check TRUTHS HISTORY...\n", stderr);
    return 1;
  }
  std::ifstream truths_file(argv[1]);
  const auto truths = ParseTruths(truths_file);
  if (!truths.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[1], std::string(truths.status().message()).c_str());
    return 1;
  }
  std::vector<Stream> streams;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i]);
    auto part = ParseHistory(file);
    if (!file.eof() || !part.ok()) {
      std::fprintf(stderr, "%s: %s\n", argv[i],
                   part.ok() ? "cannot be read" : std::string(part.status().message()).c_str());
      return 1;
    }
    streams.insert(streams.end(), part->begin(), part->end());
  }
  const CheckReport report = Check(*truths, streams, {});
  std::fputs(Describe(report).c_str(), stdout);
  return report.violations.empty() ? 0 : 1;
}

}  // namespace
}  // namespace conclave::tests

int main(int argc, char** argv) { return conclave::tests::Main(argc, argv); }
