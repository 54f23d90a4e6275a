// The MoE layer alone at the released shapes: microseconds, bytes, achieved rates, floor and ratio,
// by tokens. Bytes are those of the experts that have tokens.

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/gpu_ops/moe_layer.h"

namespace conclave::bench {
namespace {

using kernels::cuda::StreamOptions;

ExpertPlan Stream(const StreamOptions& gate_up, const StreamOptions& down) {
  ExpertPlan plan;
  plan.kernel = ExpertPlan::Kernel::kStream;
  plan.gate_up = gate_up;
  plan.down = down;
  return plan;
}

std::string Describe(const StreamOptions& options) {
  return fmt::format("{} tokens {} chunks {} stages {} blocks interleave {} prefetch {}",
                     options.token_blocks * 8, options.warp_chunks, options.stages,
                     options.blocks_per_multiprocessor, options.interleave, options.prefetch);
}

// Every kernel at the sizes where it may be the best.
void PrintVariants(MoeBench& bench, const MoeInputs& inputs, int tokens) {
  std::vector<ExpertPlan> variants;
  const auto add = [&](StreamOptions gate_up, StreamOptions down, int prefetch) {
    down.interleave = gate_up.interleave;
    gate_up.prefetch = prefetch;
    variants.push_back(Stream(gate_up, down));
  };
  if (tokens <= 4) {
    for (const int prefetch : {0, 3, 6}) {
      for (const int chunks : {3, 5}) {
        add({.token_blocks = 1, .warp_chunks = chunks, .stages = 3},
            {.token_blocks = 1, .warp_chunks = chunks, .stages = 5}, prefetch);
      }
      add({.token_blocks = 1, .warp_chunks = 3, .stages = 2, .blocks_per_multiprocessor = 2},
          {.token_blocks = 1, .warp_chunks = 3, .stages = 2, .blocks_per_multiprocessor = 2},
          prefetch);
    }
  }
  if (tokens <= 256) {
    for (const int stages : {3, 4, 5}) {
      for (const int interleave : {1, 6, 12}) {
        for (const int prefetch : {0, 4}) {
          const StreamOptions options = {
              .token_blocks = 2, .warp_chunks = 3, .stages = stages, .interleave = interleave};
          if (stages == 4 || prefetch == 4) add(options, options, prefetch);
        }
      }
    }
  }
  for (const ExpertPlan& plan : variants) {
    std::printf("  %8.1f us, %s | %d\n", bench.Time(inputs, tokens, plan, MoeBench::kBoth),
                Describe(plan.gate_up).c_str(), plan.down.stages);
  }
  const ExpertPlan tile;
  std::printf("  %8.1f us, gate_up %.1f, down %.1f, tile\n",
              bench.Time(inputs, tokens, tile, MoeBench::kBoth),
              bench.Time(inputs, tokens, tile, MoeBench::kGateUp),
              bench.Time(inputs, tokens, tile, MoeBench::kDown));
}

void Run(const MoeModel& model, const std::vector<int>& sizes, bool variants) {
  MoeBench bench(model, *std::max_element(sizes.begin(), sizes.end()));
  const double pair_flops = 6.0 * model.shape.hidden * model.shape.intermediate;
  for (const int tokens : sizes) {
    const MoeInputs inputs = MakeInputs(model.shape, tokens);
    const double us = bench.Time(inputs, tokens, std::nullopt, MoeBench::kBoth);
    const double bytes =
        inputs.distinct * static_cast<double>(kernels::cuda::ExpertBytes(model.shape, false));
    PrintRow(fmt::format("experts {}: {}", model.name, bench.Chosen(inputs, tokens)),
             fmt::format("{} tokens", tokens), us,
             {.bytes = bytes, .flops = pair_flops * tokens * model.shape.experts_per_token});
    if (variants) PrintVariants(bench, inputs, tokens);
  }
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) {
  using conclave::bench::MoeShape;
  using conclave::bench::Run;
  CLI::App app("The MoE layer alone, at the released shapes, on one GPU.");
  std::vector<int> sizes = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
  bool variants = false;
  std::string only;
  app.add_option("--tokens", sizes, "numbers of tokens");
  app.add_flag("--variants", variants, "time every kernel, not only the table's");
  app.add_option("--model", only, "120b or 20b; both if not given");
  CLI11_PARSE(app, argc, argv);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9) {
    fmt::print("skipped: no Hopper GPU\n");
    return 0;
  }
  conclave::bench::PrintHeader("MoE layer");
  if (only != "20b") Run({"120b", MoeShape(128), 3}, sizes, variants);
  if (only != "120b") Run({"20b", MoeShape(32), 8}, sizes, variants);
  return 0;
}
