#ifndef CONCLAVE_BENCH_COST_MODEL_H_
#define CONCLAVE_BENCH_COST_MODEL_H_

// What a device's ops and the links between ranks cost, as few numbers. Times in seconds,
// bandwidths in bytes per second. docs/scaling.md says where each number comes from.

#include <cstdint>
#include <string>
#include <vector>

namespace conclave::bench {

// Linear between the points, ascending in x; the first y before them, the last slope after.
class Curve {
 public:
  struct Point {
    double x = 0;
    double y = 0;
  };
  Curve(std::vector<Point> points) : points_(std::move(points)) {}  // NOLINT: a table
  double At(double x) const;

 private:
  std::vector<Point> points_;  // at least one
};

// Bytes read and products made by one op. `overlap` of the shorter of the two hides behind the
// longer: 1 all of it, 0 none.
struct OpCost {
  double fixed = 0;
  double bytes_per_second = 1;
  double flops_per_second = 1;
  double overlap = 1;
  double Seconds(double bytes, double flops) const;
};

struct DeviceProfile {
  std::string name;
  int activation_bytes = 2;  // of a value on the wire of the dispatch, and in memory
  int partial_bytes = 4;     // of a value of a partial sum
  int kv_bytes = 2;

  OpCost dense;        // both projections of a layer, and the output matrix
  Curve dense_extra;   // by rows: both projections of a layer, beyond `dense`
  Curve output_extra;  // by sampled rows: final norm, output matrix and sampler
  OpCost full_attention;
  OpCost sliding_attention;
  OpCost experts;          // a layer's experts on one rank
  Curve small_ops;         // by rows: RoPE, residual, norm, router, residual of a layer
  OpCost sum;              // adding the parts that an all-reduce brought
  double pack = 0;         // dispatch's packing and combine's adding, together, beyond small_ops
  double exact_layer = 0;  // a layer in the exact mode: counts to the host, launches from there
  double step = 0;         // embedding, plan, hand-over of results

  // 0: every rank has a device of its own. Else ranks, each with `threads`, share this many cores:
  // a second busy core slows the first by `contention`.
  int cores = 0;
  int threads = 1;
  double contention = 0;
};

// A collective takes what its slower kind of link takes: latency + per peer + bytes / bandwidth.
struct LinkProfile {
  struct Tier {
    double latency = 0;
    double per_peer = 0;
    double bytes_per_second = 1;
  };
  std::string name;
  int ranks_per_node = 1;
  Tier local;
  Tier remote;
  // Sums of more bytes travel as reduce-scatter and all-gather, less as one all-gather; two ranks
  // always at once where `pairs_at_once`.
  int64_t direct_sum_bytes = 0;
  bool pairs_at_once = true;
};

DeviceProfile H100Device();
// The machine of docs/benchmarks.md, two cores, `world` ranks on it.
DeviceProfile TwoCoreCpu(int world);

LinkProfile NvLink();      // eight ranks of a node over NVLink, nodes over InfiniBand
LinkProfile InfiniBand();  // every rank in a node of its own
LinkProfile Loopback();    // Gloo

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_COST_MODEL_H_
