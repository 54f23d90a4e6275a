#include "client/shape_table.h"

#include <fmt/format.h>

#include <utility>

#include "client/format.h"

namespace conclave::client {
namespace {

// docs/benchmarks.md has the whole measurement. The better of with and without --direct-kib 1024.
const ShapeTable& Gpt120b() {
  static const auto* const table = new ShapeTable{
      .measured =
          "gpt-oss-120b, random weights, prompts of 1,024 tokens, H100 80GB over NVLink, "
          "2026-11-27",
      .layers = 36,
      .experts = 128,
      .sequences = {1, 8, 32, 128, 256, 512, 1024},
      .shapes =
          {
              {{1, 1}, {380, 1167, 2111, 5002, 7795, 0, 0}},
              {{1, 2}, {382, 1606, 3289, 7883, 0, 18449, 0}},
              {{2, 1}, {306, 1416, 3117, 8166, 12260, 20822, 0}},
              {{1, 4}, {425, 2099, 4876, 11833, 0, 27411, 0}},
              {{2, 2}, {277, 1617, 4174, 12069, 0, 28889, 0}},
              {{4, 1}, {307, 1704, 4496, 11898, 0, 31267, 45036}},
          },
  };
  return *table;
}

std::string ShapeName(const model::ParallelShape& shape) {
  return fmt::format("dp {} x tp {}", shape.dp, shape.tp);
}

}  // namespace

const ShapeTable* FindShapeTable(const model::Config& config) {
  const ShapeTable& table = Gpt120b();
  const bool fits = config.num_layers == table.layers && config.num_experts == table.experts;
  return fits ? &table : nullptr;
}

std::vector<FastestShape> FastestShapes(const ShapeTable& table, int world) {
  std::vector<FastestShape> all;
  for (size_t i = 0; i < table.sequences.size(); ++i) {
    FastestShape found;
    found.sequences = table.sequences[i];
    double second = 0;
    for (const MeasuredShape& measured : table.shapes) {
      const double rate = measured.shape.world() == world ? measured.tokens_per_second[i] : 0;
      if (rate > found.tokens_per_second) {
        second = std::exchange(found.tokens_per_second, rate);
        found.best = measured.shape;
      } else {
        second = std::max(second, rate);
      }
    }
    if (found.tokens_per_second == 0) continue;
    if (second > 0) found.margin = found.tokens_per_second / second - 1;
    all.push_back(found);
  }
  return all;
}

Json FastestJson(const model::Config& config, int world) {
  const ShapeTable* const table = FindShapeTable(config);
  if (table == nullptr) return nullptr;
  Json rows = Json::array();
  for (const FastestShape& row : FastestShapes(*table, world)) {
    rows.push_back({{"sequences", row.sequences},
                    {"dp", row.best.dp},
                    {"tp", row.best.tp},
                    {"tokens_per_second", row.tokens_per_second},
                    {"margin", row.margin}});
  }
  if (rows.empty()) return nullptr;
  return {{"measured", std::string(table->measured)}, {"shapes", std::move(rows)}};
}

std::string FastestText(const model::Config& config, int world) {
  const ShapeTable* const table = FindShapeTable(config);
  if (table == nullptr) return "";
  Table rows({"sequences", "fastest shape", "tokens/s", "before the next"});
  const std::vector<FastestShape> all = FastestShapes(*table, world);
  if (all.empty()) return "";
  for (const FastestShape& row : all) {
    rows.AddRow({fmt::format("{}", row.sequences), ShapeName(row.best),
                 fmt::format("{:.0f}", row.tokens_per_second),
                 row.margin == 0 ? "-" : fmt::format("{:.0f} %", 100 * row.margin)});
  }
  return fmt::format("\nFastest shape of {} workers by sequences at once ({})\n{}", world,
                     table->measured, rows.ToString());
}

}  // namespace conclave::client
