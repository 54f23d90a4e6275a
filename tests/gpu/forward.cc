// Runs a checkpoint over sequences of tokens on one device and writes what it computed as raw
// files, for scripts that compare engines (compare_transformers.py).
//
//   forward --model DIR --device cuda --input CASES.jsonl --output DIR
//
// A line of the input is a case:
//   ids     token ids
//   chunk   tokens in one step; absent or 0: all of them
//   forced  [layers][rows][k] expert ids, -1: the router decides; absent: it always does
//   inputs  raw file, f32 [layers, rows, H], of what each layer reads; absent: the layer below
//   write   of "logits", "last_logits", "hidden", "routing"; absent: logits, hidden and routing
//
// Case i becomes, row-major and little-endian,
//   i.logits.f32   [rows, V] or [1, V]    i.hidden.f32   [layers + 2, rows, H]
//   i.experts.i32  [layers, rows, k]      i.weights.f32  [layers, rows, k]
// and index.json names the device, the kernel and the sizes. Hidden states are those of
// Transformer::Trace.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "tests/gpu/offline_model.h"

namespace conclave::gpu {
namespace {

using Json = nlohmann::json;

struct Flags {
  std::string model;
  std::string device = "cpu";
  std::string input;
  std::string output;
  int threads = 1;
};

struct Case {
  TraceRequest request;
  std::string inputs;
  std::vector<std::string> write;
  bool Writes(const char* what) const {
    return std::find(write.begin(), write.end(), what) != write.end();
  }
};

Case ParseCase(const Json& json) {
  Case out;
  json.at("ids").get_to(out.request.ids);
  out.request.chunk = json.value("chunk", 0);
  out.inputs = json.value("inputs", "");
  out.write = json.value("write", std::vector<std::string>{"logits", "hidden", "routing"});
  if (!json.contains("forced")) return out;
  for (const Json& layer : json.at("forced")) {
    std::vector<int32_t>& ids = out.request.forced.emplace_back();
    for (const Json& row : layer) {
      for (const Json& id : row) ids.push_back(id.get<int32_t>());
    }
  }
  return out;
}

absl::StatusOr<std::vector<Case>> ReadCases(const std::string& path) {
  std::ifstream file(path);
  if (!file.is_open()) return absl::NotFoundError(fmt::format("cannot read {}", path));
  std::vector<Case> cases;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    try {
      cases.push_back(ParseCase(Json::parse(line)));
    } catch (const Json::exception& error) {
      return absl::InvalidArgumentError(
          fmt::format("{}, case {}: {}", path, cases.size(), error.what()));
    }
  }
  return cases;
}

// f32 [layers, values in a layer]
absl::StatusOr<std::vector<std::vector<float>>> ReadLayers(const std::string& path, int layers) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file.is_open()) return absl::NotFoundError(fmt::format("cannot read {}", path));
  const int64_t bytes = file.tellg();
  file.seekg(0);
  const int64_t values = bytes / static_cast<int64_t>(sizeof(float)) / layers;
  std::vector<std::vector<float>> out(layers, std::vector<float>(values));
  for (std::vector<float>& layer : out) {
    file.read(reinterpret_cast<char*>(layer.data()),
              values * static_cast<std::streamsize>(sizeof(float)));
  }
  if (!file) return absl::UnavailableError(fmt::format("cannot read {}", path));
  return out;
}

// Appends values to a file.
class RawFile {
 public:
  explicit RawFile(std::string path) : path_(std::move(path)), file_(path_, std::ios::binary) {}
  template <typename T>
  void Add(const T* values, size_t count) {
    file_.write(reinterpret_cast<const char*>(values),
                static_cast<std::streamsize>(count * sizeof(T)));
  }
  template <typename T>
  void Add(const std::vector<std::vector<T>>& parts) {
    for (const std::vector<T>& part : parts) Add(part.data(), part.size());
  }
  absl::Status Close() {
    file_.close();
    return file_ ? absl::OkStatus() : absl::UnavailableError("cannot write " + path_);
  }

 private:
  std::string path_;
  std::ofstream file_;
};

absl::Status WriteCase(const Case& item, const Trace& trace, size_t vocab,
                       const std::string& prefix) {
  if (item.Writes("logits") || item.Writes("last_logits")) {
    RawFile file(prefix + ".logits.f32");
    const size_t count = item.Writes("logits") ? trace.logits.size() : vocab;
    file.Add(trace.logits.data() + trace.logits.size() - count, count);
    RETURN_IF_ERROR(file.Close());
  }
  if (item.Writes("hidden")) {
    RawFile file(prefix + ".hidden.f32");
    file.Add(trace.hidden);
    RETURN_IF_ERROR(file.Close());
  }
  if (item.Writes("routing")) {
    RawFile ids(prefix + ".experts.i32");
    ids.Add(trace.expert_ids);
    RETURN_IF_ERROR(ids.Close());
    RawFile weights(prefix + ".weights.f32");
    weights.Add(trace.expert_weights);
    RETURN_IF_ERROR(weights.Close());
  }
  return absl::OkStatus();
}

Json Index(const OfflineModel& model, const std::vector<Case>& cases) {
  Json json = {{"device", model.kernel().device_name},
               {"kernel", model.kernel().kernel},
               {"layers", model.config().num_layers},
               {"hidden_size", model.config().hidden_size},
               {"vocab_size", model.config().vocab_size},
               {"experts_per_token", model.config().experts_per_token},
               {"cases", Json::array()}};
  for (const Case& item : cases) json["cases"].push_back({{"rows", item.request.ids.size()}});
  return json;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const std::vector<Case> cases, ReadCases(flags.input));
  OfflineOptions options;
  options.dir = flags.model;
  options.device = flags.device == "cuda" ? Device::kCuda : Device::kCpu;
  options.threads = flags.threads;
  options.max_tokens = 1;
  for (const Case& item : cases) {
    options.max_tokens = std::max(options.max_tokens, static_cast<int>(item.request.ids.size()));
  }
  options.max_step_tokens = options.max_tokens;
  options.max_sequences = 64;  // rows of logits made at a time
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const auto model, OfflineModel::Create(options));
  const double loaded = SecondsSince(start);
  std::error_code error;
  std::filesystem::create_directories(flags.output, error);
  for (size_t i = 0; i < cases.size(); ++i) {
    TraceRequest request = cases[i].request;
    if (!cases[i].inputs.empty()) {
      ASSIGN_OR_RETURN(request.layer_inputs,
                       ReadLayers(cases[i].inputs, model->config().num_layers));
    }
    ASSIGN_OR_RETURN(const Trace trace, model->Run(request));
    RETURN_IF_ERROR(WriteCase(cases[i], trace, model->config().vocab_size,
                              fmt::format("{}/{}", flags.output, i)));
  }
  std::ofstream index(flags.output + "/index.json");
  index << Index(*model, cases).dump() << "\n";
  index.close();
  if (!index) return absl::UnavailableError("cannot write " + flags.output + "/index.json");
  fmt::print("{} cases on {} ({}): loaded in {:.1f} s, ran in {:.1f} s\n", cases.size(),
             model->kernel().device_name, model->kernel().kernel, loaded,
             SecondsSince(start) - loaded);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Runs a checkpoint over token sequences and writes logits, hidden states, routing.");
  app.add_option("--model", flags.model, "Checkpoint folder")->required();
  app.add_option("--device", flags.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--input", flags.input, "Cases, a JSON object per line")->required();
  app.add_option("--output", flags.output, "Folder for the results")->required();
  app.add_option("--threads", flags.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  fmt::print(stderr, "forward: {}\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace conclave::gpu

int main(int argc, char** argv) { return conclave::gpu::Main(argc, argv); }
