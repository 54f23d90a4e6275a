// random_checkpoint --config FILE --out DIR [--bytes N] [--shards N] [--seed N]

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "tools/checkpoint/random.h"

int main(int argc, char** argv) {
  conclave::tools::RandomCheckpointOptions options;
  CLI::App app("Writes a checkpoint with random weights in the released layout.");
  app.add_option("--config", options.config, "A config.json")->required();
  app.add_option("--out", options.out, "Folder to write")->required();
  app.add_option("--tokenizer", options.tokenizer, "A tokenizer.json to copy");
  app.add_option("--bytes", options.bytes, "Add layers until the tensors take this many bytes")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--shards", options.shards, "Number of files")->capture_default_str();
  app.add_option("--seed", options.seed, "Of the weights")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = conclave::tools::WriteRandomCheckpoint(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "random_checkpoint: %s\n", std::string(status.message()).c_str());
  return 1;
}
