// RoPE with the cache write, the plan, attention and sampling at the shapes of gpt-oss.
//
//   attention_bench [rope] [sample] [decode] [prefill] [sweep]
//
// All but sweep, which tries other tunings, unless some are named.

#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/gpu_ops/attention_step.h"
#include "kernels/cuda/sample.h"

namespace conclave::bench {
namespace {

// Bytes and operations that the runs cannot do without.
OpCost CostOf(const std::vector<RunSpec>& runs, bool sliding) {
  OpCost cost;
  for (const RunSpec& run : runs) {
    const double rows = run.rows;
    const double last = run.start_position + rows;
    const double window = kShape.window;
    const double keys = sliding ? std::min(last, window + rows - 1) : last;
    cost.bytes += keys * kTokenBytes + rows * (2.0 * kOutputBytes);
    double pairs = 0;
    for (int row = 0; row < run.rows; ++row) {
      const double seen = run.start_position + row + 1.0;
      pairs += sliding ? std::min(seen, window) : seen;
    }
    cost.flops += 4.0 * kShape.head_dim * kShape.heads * pairs;
  }
  return cost;
}

struct Case {
  std::string size;
  std::vector<RunSpec> runs;
  double yardstick_us = 0;  // PyTorch's attention, without sinks, on an H100; printed in brackets
};

std::vector<RunSpec> DecodeRuns(int batch, int context) {
  return std::vector<RunSpec>(batch, RunSpec{1, context - 1});
}

std::vector<Case> DecodeCases() {
  return {{"1 x 1k", DecodeRuns(1, 1024)},         {"1 x 8k", DecodeRuns(1, 8192), 18},
          {"1 x 32k", DecodeRuns(1, 32768), 39.5}, {"1 x 128k", DecodeRuns(1, 131072)},
          {"8 x 1k", DecodeRuns(8, 1024)},         {"32 x 1k", DecodeRuns(32, 1024), 37.7},
          {"32 x 8k", DecodeRuns(32, 8192), 227},  {"32 x 32k", DecodeRuns(32, 32768), 853},
          {"64 x 1k", DecodeRuns(64, 1024)},       {"128 x 1k", DecodeRuns(128, 1024)},
          {"256 x 1k", DecodeRuns(256, 1024)}};
}

std::vector<Case> PrefillCases() {
  std::vector<RunSpec> mixed = DecodeRuns(64, 1024);
  mixed.push_back({512, 1024});
  return {{"8192 at 0", {{8192, 0}}, 1180},
          {"2048 at 0", {{2048, 0}}},
          {"2048 at 6144", {{2048, 6144}}},
          {"512 at 8192", {{512, 8192}}},
          {"64 at 32k", {{64, 32704}}},
          {"5 at 32k", {{5, 32763}}},
          {"8 x 1024 at 0", std::vector<RunSpec>(8, RunSpec{1024, 0})},
          {"64 decode + 512", mixed}};
}

void Measure(GpuTimer& timer, const char* op, const Case& c, bool sliding,
             const AttentionTuning& tuning, const std::string& note) {
  const AttentionStep step(c.runs, sliding);
  step.Plan(tuning, timer.stream());
  const double us = timer.Median(std::max(8, step.layers()), [&](int call, cudaStream_t stream) {
    step.Attend(call, tuning, stream);
  });
  std::string size = c.size + note;
  if (c.yardstick_us > 0 && !sliding) {
    char ratio[32];
    std::snprintf(ratio, sizeof(ratio), " (%.4g)", c.yardstick_us);
    size += ratio;
  }
  PrintRow(op, size, us, CostOf(c.runs, sliding));
}

void MeasureDecode(GpuTimer& timer) {
  for (const Case& c : DecodeCases()) Measure(timer, "decode full", c, false, {}, "");
  for (const Case& c : DecodeCases()) {
    if (c.size.find("1k") != std::string::npos) Measure(timer, "decode sliding", c, true, {}, "");
  }
}

void MeasurePrefill(GpuTimer& timer) {
  for (const Case& c : PrefillCases()) Measure(timer, "prefill full", c, false, {}, "");
  for (const Case& c : PrefillCases()) Measure(timer, "prefill sliding", c, true, {}, "");
}

void SweepTunings(GpuTimer& timer) {
  for (const Case& c : DecodeCases()) {
    for (const int warps : {4, 8}) {
      AttentionTuning tuning;
      tuning.decode_warps = warps;
      const std::string note = " w" + std::to_string(warps);
      Measure(timer, "decode full", c, false, tuning, note);
      Measure(timer, "decode sliding", c, true, tuning, note);
    }
  }
  for (const Case& c : PrefillCases()) {
    for (const int waves : {1, 2}) {
      AttentionTuning tuning;
      tuning.prefill_waves = waves;
      Measure(timer, "prefill full", c, false, tuning, " v" + std::to_string(waves));
    }
  }
}

void MeasureRopeAndPlan(GpuTimer& timer) {
  const DeviceArray<float> frequencies(kShape.head_dim / 2);
  constexpr int kPositions = 16384;
  const DeviceArray<char> memory(RopeTableBytes(kPositions, kShape.head_dim));
  const RopeTable table = {reinterpret_cast<float2*>(memory.data()), kPositions,
                           kShape.head_dim / 2};
  FillRopeTable(frequencies.data(), 1, table, timer.stream());
  for (const Case& c : {Case{"1 row", DecodeRuns(1, 1024)}, Case{"32 rows", DecodeRuns(32, 1024)},
                        Case{"256 rows", DecodeRuns(256, 1024)}, Case{"8192 rows", {{8192, 0}}}}) {
    const AttentionStep step(c.runs, false);
    const double rows = static_cast<double>(step.Rows());
    const double rope = timer.Median(16, [&](int call, cudaStream_t stream) {
      RopeAndCacheWrite(step.View(), kShape, table, step.Cache(call), step.qkv(), stream);
    });
    PrintRow("rope", c.size, rope, {.bytes = rows * (2.0 * kRowBytes), .flops = 0});
    const double plan = timer.Median(16, [&](int, cudaStream_t stream) { step.Plan({}, stream); });
    PrintRow("plan", c.size, plan, {});
  }
}

void MeasureSample(GpuTimer& timer) {
  constexpr int kVocabulary = 201088;
  struct Kind {
    const char* name;
    SampleRow row;
  };
  const Kind kinds[] = {
      {"greedy", {.temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0, .logprobs = -1}},
      {"temperature 1", {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .logprobs = -1}},
      {"top-p 0.9", {.temperature = 1, .top_k = 0, .top_p = 0.9f, .min_p = 0, .logprobs = -1}},
      {"top-k 50 p 0.9",
       {.temperature = 1, .top_k = 50, .top_p = 0.9f, .min_p = 0, .logprobs = -1}},
      {"greedy, 20 logprobs",
       {.temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0, .logprobs = 20}}};
  for (const int n : {1, 32, 256}) {
    std::vector<float> host(int64_t{n} * kVocabulary);
    uint32_t state = 7;
    for (float& logit : host) {
      float sum = 0;
      for (int i = 0; i < 4; ++i) {
        state = state * 1664525u + 1013904223u;
        sum += static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
      }
      logit = 4.3f * sum;  // deviation 2.5
    }
    const DeviceArray<float> logits(host);
    const DeviceArray<int32_t> tokens(n);
    const DeviceArray<float> logprobs(n);
    const DeviceArray<int32_t> top_tokens(n * kTopLogprobs);
    const DeviceArray<float> top_logprobs(n * kTopLogprobs);
    for (const Kind& kind : kinds) {
      const DeviceArray<SampleRow> rows(std::vector<SampleRow>(n, kind.row));
      const double us = timer.Median(8, [&](int, cudaStream_t stream) {
        SampleRows(logits.data(), n, kVocabulary, rows.data(),
                   {tokens.data(), logprobs.data(), top_tokens.data(), top_logprobs.data()},
                   stream);
      });
      PrintRow(std::string("sample ") + kind.name, std::to_string(n) + " rows", us,
               {.bytes = 4.0 * n * kVocabulary, .flops = 0});
    }
  }
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) {
  using namespace conclave::bench;  // NOLINT(google-build-using-namespace)
  const struct {
    const char* name;
    void (*measure)(GpuTimer&);
    bool unasked;
  } sections[] = {{"rope", MeasureRopeAndPlan, true},
                  {"sample", MeasureSample, true},
                  {"decode", MeasureDecode, true},
                  {"prefill", MeasurePrefill, true},
                  {"sweep", SweepTunings, false}};
  GpuTimer timer;
  PrintHeader("attention, rope, sample");
  for (const auto& section : sections) {
    bool wanted = argc == 1 && section.unasked;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], section.name) == 0;
    if (wanted) section.measure(timer);
  }
  return 0;
}
