// rewrite_checkpoint --in DIR --out DIR --layout bf16|original

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <string>

#include "tools/checkpoint/rewrite.h"

int main(int argc, char** argv) {
  using conclave::model::Layout;
  conclave::tools::RewriteOptions options;
  CLI::App app("Writes an MXFP4 checkpoint again in another layout, with the same values.");
  app.add_option("--in", options.in, "Folder of the checkpoint")->required();
  app.add_option("--out", options.out, "Folder to write")->required();
  const std::map<std::string, Layout> layouts = {{"bf16", Layout::kBf16},
                                                 {"original", Layout::kOriginal}};
  app.add_option("--layout", options.layout, "bf16 or original")
      ->required()
      ->transform(CLI::CheckedTransformer(layouts));
  app.add_option("--shards", options.shards, "Files of the bf16 layout")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = conclave::tools::RewriteCheckpoint(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "rewrite_checkpoint: %s\n", std::string(status.message()).c_str());
  return 1;
}
