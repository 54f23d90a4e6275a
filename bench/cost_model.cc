#include "bench/cost_model.h"

#include <algorithm>

namespace conclave::bench {
namespace {

constexpr double kMicro = 1e-6;

// In microseconds, as they stand in the tables of docs/benchmarks.md.
Curve Micros(std::vector<Curve::Point> points) {
  for (Curve::Point& point : points) point.y *= kMicro;
  return points;
}

constexpr LinkProfile::Tier kNvLinkTier = {9 * kMicro, 0.3 * kMicro, 335e9};
constexpr LinkProfile::Tier kInfiniBandTier = {20 * kMicro, 1 * kMicro, 46e9};

}  // namespace

double Curve::At(double x) const {
  if (points_.size() == 1 || x <= points_.front().x) return points_.front().y;
  size_t end = 1;
  while (end + 1 < points_.size() && points_[end].x < x) ++end;
  const Point& a = points_[end - 1];
  const Point& b = points_[end];
  return a.y + (b.y - a.y) * (x - a.x) / (b.x - a.x);
}

double OpCost::Seconds(double bytes, double flops) const {
  const double reading = bytes / bytes_per_second;
  const double computing = flops / flops_per_second;
  return fixed + std::max(reading, computing) + (1 - overlap) * std::min(reading, computing);
}

DeviceProfile H100Device() {
  return {
      .name = "h100",
      .dense = {0, 3087e9, 798e12, 1},
      .dense_extra = Micros({{1, 3.6},
                             {8, 7.8},
                             {16, 11.2},
                             {32, 11.8},
                             {64, 10.0},
                             {128, 9.9},
                             {256, 12.8},
                             {512, 13.1},
                             {1024, 18.0},
                             {2048, 28.2}}),
      .output_extra = Micros({{1, 14}, {8, 27}, {32, 56}, {64, 84}, {128, 110}, {256, 181}}),
      .full_attention = {5.5 * kMicro, 2900e9, 440e12, 1},
      .sliding_attention = {3.0 * kMicro, 2500e9, 125e12, 1},
      .experts = {9 * kMicro, 2780e9, 452e12, 0.5},
      .small_ops = Micros({{1, 7.4},
                           {8, 8.0},
                           {32, 8.9},
                           {64, 10.6},
                           {128, 16.3},
                           {256, 18.2},
                           {512, 22.6},
                           {1024, 32.4},
                           {2048, 61.6}}),
      .sum = {1.5 * kMicro, 2500e9, 1e15, 1},
      .pack = 12 * kMicro,
      .exact_layer = 283 * kMicro,
      .step = 320 * kMicro,
  };
}

DeviceProfile TwoCoreCpu(int world) {
  const int threads = std::max(1, 2 / world);
  return {
      .name = "cpu2",
      .activation_bytes = 4,
      .partial_bytes = 8,
      .kv_bytes = 4,
      .dense = {0, 22e9, 55e9, 0},
      .dense_extra = Micros({{1, 0}}),
      .output_extra = Micros({{1, 200}, {16, 3200}}),
      .full_attention = {0, 8e9, 10e9, 0},
      .sliding_attention = {0, 8e9, 10e9, 0},
      .experts = {0, 16.5e9, 58e9, 0},
      .small_ops = Micros({{1, 20}, {16, 320}}),
      .sum = {0, 4e9, 1e15, 1},
      .pack = 5 * kMicro,
      .step = 300 * kMicro,
      .cores = 2,
      .threads = threads,
      .contention = 0.39,
  };
}

LinkProfile NvLink() {
  return {.name = "nvlink",
          .ranks_per_node = 8,
          .local = kNvLinkTier,
          .remote = kInfiniBandTier,
          .direct_sum_bytes = int64_t{256} << 10};
}

LinkProfile InfiniBand() {
  return {.name = "infiniband",
          .ranks_per_node = 1,
          .local = kNvLinkTier,
          .remote = kInfiniBandTier,
          .direct_sum_bytes = int64_t{256} << 10};
}

LinkProfile Loopback() {
  return {.name = "loopback",
          .ranks_per_node = 1 << 20,
          .local = {60 * kMicro, 20 * kMicro, 1.5e9},
          .remote = {},
          .direct_sum_bytes = int64_t{64} << 10,
          .pairs_at_once = false};
}

}  // namespace conclave::bench
