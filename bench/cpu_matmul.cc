// Weights times activations on the CPU, as bytes of weights per second against the machine's own
// read bandwidth: for few tokens nothing else should limit it.
//
//   bazel build //bench:cpu_matmul && bazel-bin/bench/cpu_matmul [--threads N] [--rounds R]
//
// The matrices are those of gpt-oss-20b: 32 experts' gate_up [5760, 2880] in MXFP4 (282 MB), and
// 49152 rows of lm_head [*, 2880] in bf16 (283 MB). Each round reads the whole of it, so that every
// byte comes from memory, and measures the read loop on the same bytes beside it. Rows are taken in
// the ranges in which the forward pass takes them.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "bench/measure.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops.h"

namespace conclave::bench {
namespace {

constexpr int64_t kCols = 2880;
constexpr int64_t kExperts = 32;
constexpr int64_t kExpertRows = 5760;
constexpr int64_t kDenseRows = 49152;
constexpr int64_t kBlocks = kCols / 32;

// Weights of one format, and the product of a range of their rows.
struct Format {
  std::string name;
  std::vector<uint64_t> memory = {};  // weights; MXFP4: blocks, then scales
  int64_t bytes = 0;
  int64_t matrices = 0;
  int64_t rows = 0;  // of one matrix
  std::function<void(int64_t matrix, int64_t begin, int64_t end, std::span<const float* const> x,
                     float* out, int64_t out_stride)>
      multiply = {};
};

Format MakeMxfp4(std::mt19937_64& random) {
  Format format = {.name = "mxfp4", .matrices = kExperts, .rows = kExpertRows};
  const int64_t blocks = kExperts * kExpertRows * kBlocks;
  format.bytes = blocks * 17;
  format.memory.resize(static_cast<size_t>(format.bytes / 8));
  for (uint64_t& word : format.memory) word = random();
  auto* data = reinterpret_cast<uint8_t*>(format.memory.data());
  uint8_t* scales = data + blocks * 16;
  for (int64_t i = 0; i < blocks; ++i) scales[i] = 119 + scales[i] % 2;
  format.multiply = [data, scales](int64_t matrix, int64_t begin, int64_t end,
                                   std::span<const float* const> x, float* out, int64_t stride) {
    const int64_t first = matrix * kExpertRows * kBlocks;
    kernels::MatmulMxfp4({data + first * 16, scales + first, kCols}, begin, end, x, out, stride);
  };
  return format;
}

Format MakeBf16(std::mt19937_64& random) {
  Format format = {.name = "bf16", .matrices = 1, .rows = kDenseRows};
  format.bytes = kDenseRows * kCols * 2;
  format.memory.resize(static_cast<size_t>(format.bytes / 8));
  // Both signs, magnitudes from 2^-8 to 2^-6.
  for (uint64_t& word : format.memory) {
    word = (random() & 0x80FF80FF80FF80FFu) | 0x3C003C003C003C00u;
  }
  const auto* data = reinterpret_cast<const uint16_t*>(format.memory.data());
  format.multiply = [data](int64_t, int64_t begin, int64_t end, std::span<const float* const> x,
                           float* out, int64_t stride) {
    kernels::MatmulBf16({data, kCols, kCols}, begin, end, x, out, stride);
  };
  return format;
}

struct Activations {
  Activations(int64_t tokens, std::mt19937_64& random) : values(tokens * kCols) {
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(random);
    for (int64_t t = 0; t < tokens; ++t) rows.push_back(values.data() + t * kCols);
  }
  std::vector<float> values;
  std::vector<const float*> rows;
};

// Weight bytes per second of all matrices times `x`.
double MultiplyAll(const Format& format, const Activations& x, base::ThreadPool& pool,
                   std::vector<float>& out) {
  const auto tokens = static_cast<int64_t>(x.rows.size());
  out.resize(static_cast<size_t>(tokens * format.rows));
  const auto now = pool.size() == 1 ? ThreadSeconds : WallSeconds;
  const double start = now();
  for (int64_t matrix = 0; matrix < format.matrices; ++matrix) {
    pool.ParallelFor(format.rows, kernels::GrainOf(kCols * tokens),
                     [&](int64_t begin, int64_t end) {
                       format.multiply(matrix, begin, end, x.rows, out.data() + begin, format.rows);
                     });
  }
  return static_cast<double>(format.bytes) / (now() - start);
}

void Measure(const Format& format, base::ThreadPool& pool, int rounds, std::mt19937_64& random) {
  std::vector<float> out;
  for (const int64_t tokens : {1, 2, 4, 8, 16}) {
    const Activations x(tokens, random);
    std::vector<double> reads;
    std::vector<double> products;
    for (int round = 0; round < rounds; ++round) {
      reads.push_back(ReadBandwidth(format.memory, pool));
      products.push_back(MultiplyAll(format, x, pool, out));
    }
    const double read = Median(reads);
    const double product = Median(products);
    const double flops = product / static_cast<double>(format.bytes) * 2 *
                         static_cast<double>(format.matrices * format.rows * kCols * tokens);
    fmt::print("| {} | {} | {:.2f} | {:.2f} | {:.0f} % | {:.1f} |\n", format.name, tokens,
               product * 1e-9, read * 1e-9, 100 * product / read, flops * 1e-9);
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  CLI::App app("Weight bytes per second of the CPU kernels against the read bandwidth.");
  int threads = 1;
  int rounds = 9;
  app.add_option("--threads", threads)->check(CLI::Range(1, 1024));
  app.add_option("--rounds", rounds)->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  const kernels::KernelInfo info = kernels::DescribeCpu();
  fmt::print("{}, {}, {} thread(s), medians of {} rounds, {}\n\n", info.device_name, info.kernel,
             threads, rounds, threads == 1 ? "time of the thread" : "wall time");
  fmt::print("| weights | tokens | GB/s of weights | GB/s read loop | ratio | GFLOP/s |\n");
  fmt::print("|---|---|---|---|---|---|\n");
  base::ThreadPool pool(threads);
  std::mt19937_64 random(1);
  Measure(MakeMxfp4(random), pool, rounds, random);
  Measure(MakeBf16(random), pool, rounds, random);
  return 0;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) { return conclave::bench::Main(argc, argv); }
