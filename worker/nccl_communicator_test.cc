// Groups of 1 to 8 ranks, a process each, on one GPU: every collective against values computed on
// the host, eager and in CUDA graphs.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "absl/time/clock.h"
#include "worker/nccl_testing.h"

namespace conclave::worker {
namespace {

using kernels::cuda::Bf16Of;
using kernels::cuda::SameBits;

// A value that is different for every (from, to, index) of a round.
int32_t Mark(int from, int to, int64_t index, int round = 0) {
  return static_cast<int32_t>(from * 1000003 + to * 10007 + index + round * 77);
}

std::vector<int32_t> Marks(int size, int64_t values, int round,
                           const std::function<int32_t(int, int64_t, int)>& mark) {
  std::vector<int32_t> out(size * values);
  for (int r = 0; r < size; ++r) {
    for (int64_t i = 0; i < values; ++i) out[r * values + i] = mark(r, i, round);
  }
  return out;
}

std::vector<int32_t> Sent(const RankProcess& self, int64_t values, int round = 0) {
  return Marks(self.size, values, round,
               [&](int to, int64_t i, int n) { return Mark(self.rank, to, i, n); });
}
std::vector<int32_t> Received(const RankProcess& self, int64_t values, int round = 0) {
  return Marks(self.size, values, round,
               [&](int from, int64_t i, int n) { return Mark(from, self.rank, i, n); });
}

// Magnitudes that make the sum depend on its order.
template <typename T>
std::vector<T> Addends(int rank, int64_t values, int round = 0) {
  std::mt19937 random(rank * 1000 + round + 1);
  std::vector<T> out(values);
  for (T& value : out) {
    const double number = std::ldexp(static_cast<double>(random()) - 2e9, random() % 20);
    if constexpr (sizeof(T) == 4) {
      value = static_cast<float>(number);
    } else {
      value = Bf16Of(number);
    }
  }
  return out;
}

template <typename T>
std::vector<T> AscendingSum(int size, int64_t values, int round = 0) {
  std::vector<float> sum(values);
  for (int rank = 0; rank < size; ++rank) {
    const std::vector<T> addend = Addends<T>(rank, values, round);
    for (int64_t i = 0; i < values; ++i) {
      const auto add = static_cast<float>(kernels::cuda::AsDouble(addend[i]));
      sum[i] = rank == 0 ? add : sum[i] + add;
    }
  }
  std::vector<T> out(values);
  for (int64_t i = 0; i < values; ++i) {
    if constexpr (sizeof(T) == 4) {
      out[i] = sum[i];
    } else {
      out[i] = Bf16Of(sum[i]);
    }
  }
  return out;
}

// --- Every collective. ---

void CheckAllToAll(RankProcess& self, const Stream& stream, Communicator& group) {
  for (const int64_t values : {1, 1000, 100'000}) {
    const int64_t before = group.bytes_sent();
    const DeviceArray<int32_t> send(Sent(self, values));
    const DeviceArray<int32_t> recv(self.size * values);
    EXPECT_OK(group.AllToAll(send.data(), recv.data(), values * 4));
    EXPECT_EQ(stream.Download(recv), Received(self, values)) << values << " values";
    EXPECT_EQ(group.bytes_sent() - before, (self.size - 1) * values * 4)
        << "own block crossed the wire";
  }
}

// Uneven and empty blocks with gaps between them.
void CheckAllToAllV(RankProcess& self, const Stream& stream, Communicator& group) {
  const auto count = [](int a, int b) -> int64_t { return (a * 7 + b * 3) % 4 * 1'301 * (a + 1); };
  std::vector<int64_t> send_bytes, send_offsets, recv_bytes, recv_offsets;
  int64_t send_end = 8;
  int64_t recv_end = 4;
  for (int r = 0; r < self.size; ++r) {
    send_bytes.push_back(count(self.rank, r) * 4);
    recv_bytes.push_back(count(r, self.rank) * 4);
    send_offsets.push_back(send_end);
    recv_offsets.push_back(recv_end);
    send_end += send_bytes.back() + 16;
    recv_end += recv_bytes.back() + 32;
  }
  std::vector<int32_t> sent(send_end / 4, -7);
  std::vector<int32_t> expected(recv_end / 4, -1);
  for (int r = 0; r < self.size; ++r) {
    for (int64_t i = 0; i < count(self.rank, r); ++i) {
      sent[send_offsets[r] / 4 + i] = Mark(self.rank, r, i);
    }
    for (int64_t i = 0; i < count(r, self.rank); ++i) {
      expected[recv_offsets[r] / 4 + i] = Mark(r, self.rank, i);
    }
  }
  const DeviceArray<int32_t> send(sent);
  const DeviceArray<int32_t> recv(static_cast<int64_t>(expected.size()));
  EXPECT_OK(group.AllToAllV(send.data(), send_bytes, send_offsets, recv.data(), recv_bytes,
                            recv_offsets));
  EXPECT_EQ(stream.Download(recv), expected);
}

template <typename T>
void CheckAllReduce(RankProcess& self, const Stream& stream, Communicator& group, DType dtype) {
  for (const int64_t rows : {1, 3, 24, 1401}) {  // around what is summed at once
    const int64_t cols = rows == 24 ? 2880 : 67;
    const DeviceArray<T> data(Addends<T>(self.rank, rows * cols));
    EXPECT_OK(group.AllReduceSum({data.data(), dtype, rows, cols}));
    EXPECT_TRUE(SameBits(stream.Download(data), AscendingSum<T>(self.size, rows * cols)))
        << rows << " rows";
  }
}

// Row r is on rank r % size alone, as rows of a split embedding are.
void CheckEmbedding(RankProcess& self, const Stream& stream, Communicator& group) {
  const int64_t rows = 37, cols = 2880;
  const std::vector<__nv_bfloat16> table = Addends<__nv_bfloat16>(99, rows * cols);
  std::vector<__nv_bfloat16> mine(table.size(), Bf16Of(0));
  for (int64_t row = self.rank; row < rows; row += self.size) {
    std::copy_n(table.begin() + row * cols, cols, mine.begin() + row * cols);
  }
  const DeviceArray<__nv_bfloat16> data(mine);
  EXPECT_OK(group.AllReduceSum({data.data(), DType::kBf16, rows, cols}));
  EXPECT_TRUE(SameBits(stream.Download(data), table));
}

// Rank 1 has none.
std::vector<int64_t> UnevenRows(int size, int64_t rows) {
  std::vector<int64_t> begin = {0};
  for (int r = 1; r < size; ++r) begin.push_back(r == 2 ? begin.back() : rows * r / (size + 1));
  begin.push_back(rows);
  return begin;
}

template <typename T>
void CheckReduceScatter(RankProcess& self, const Stream& stream, Communicator& group, DType dtype) {
  const int64_t rows = 205, cols = 97;
  const std::vector<int64_t> row_begin = UnevenRows(self.size, rows);
  const int64_t first = row_begin[self.rank] * cols;
  const int64_t mine = row_begin[self.rank + 1] * cols - first;
  const DeviceArray<T> data(Addends<T>(self.rank, rows * cols));
  const DeviceArray<T> out(mine + 1);
  EXPECT_OK(group.ReduceScatterSum({data.data(), dtype, rows, cols}, row_begin,
                                   {out.data(), dtype, mine / cols, cols}));
  std::vector<T> got = stream.Download(out);
  EXPECT_TRUE(std::isnan(kernels::cuda::AsDouble(got.back()))) << "wrote behind the end";
  got.pop_back();
  const std::vector<T> sum = AscendingSum<T>(self.size, rows * cols);
  EXPECT_TRUE(SameBits(got, std::vector<T>(sum.begin() + first, sum.begin() + first + mine)));
}

void CheckAllGather(RankProcess& self, const Stream& stream, Communicator& group) {
  const int64_t rows = 3'013, cols = 3;
  const std::vector<int64_t> row_begin = UnevenRows(self.size, rows);
  std::vector<int32_t> mine(rows * cols, -1);
  std::vector<int32_t> all(rows * cols);
  for (int64_t i = 0; i < rows * cols; ++i) all[i] = Mark(5, 5, i);
  std::copy(all.begin() + row_begin[self.rank] * cols,
            all.begin() + row_begin[self.rank + 1] * cols,
            mine.begin() + row_begin[self.rank] * cols);
  const DeviceArray<int32_t> data(mine);
  EXPECT_OK(group.AllGatherRows({data.data(), DType::kI32, rows, cols}, row_begin));
  EXPECT_EQ(stream.Download(data), all);
}

// How long the host is busy with calls that only enqueue.
void MeasureEnqueueing(RankProcess& self, const Stream& stream, Communicator& group) {
  constexpr int kCalls = 50;
  const DeviceArray<int32_t> send(self.size * 1000), recv(self.size * 1000);
  const absl::Time start = absl::Now();
  for (int i = 0; i < kCalls; ++i) EXPECT_OK(group.AllToAll(send.data(), recv.data(), 4000));
  const absl::Duration enqueued = absl::Now() - start;
  stream.Wait();
  if (self.rank > 0) return;
  fmt::print(
      "{} ranks: an all-to-all of 4,000 bytes a pair keeps the host for {}, the GPU for {}\n",
      self.size, absl::FormatDuration(enqueued / kCalls),
      absl::FormatDuration((absl::Now() - start) / kCalls));
}

// Where every rank has a GPU of its own; small blocks of what is tried here are below it.
constexpr int64_t kDirectBytes = int64_t{64} << 10;

void Collectives(RankProcess& self) {
  const Stream stream;
  // Groups on one stream, as a rank's world and its tp group. The second sums in many pieces.
  const auto world = Connect(self, stream);
  const auto pieces = Connect(self, stream, "pieces", int64_t{16} << 10);
  const auto direct = Connect(self, stream, "direct", int64_t{1} << 20, kDirectBytes);
  if (world == nullptr || pieces == nullptr || direct == nullptr) return;
  for (Communicator* group : {world.get(), direct.get()}) {
    CheckAllToAll(self, stream, *group);
    CheckAllToAllV(self, stream, *group);
    CheckAllGather(self, stream, *group);
    CheckEmbedding(self, stream, *group);
  }
  for (Communicator* group : {world.get(), pieces.get(), direct.get()}) {
    CheckAllReduce<float>(self, stream, *group, DType::kF32);
    CheckAllReduce<__nv_bfloat16>(self, stream, *group, DType::kBf16);
    CheckReduceScatter<float>(self, stream, *group, DType::kF32);
    CheckReduceScatter<__nv_bfloat16>(self, stream, *group, DType::kBf16);
  }
  MeasureEnqueueing(self, stream, *world);
  MeasureEnqueueing(self, stream, *direct);
  EXPECT_OK(world->Check());
  EXPECT_OK(pieces->Check());
  EXPECT_OK(direct->Check());
  EXPECT_EQ(world->seconds_waited(), 0);
}

// --- CUDA graphs. ---

constexpr int kReplays = 100;

// What a decode step does, in one graph: both exchanges of a layer, an all-reduce at once and one
// in pieces, an all-gather.
void ReplayGraphs(RankProcess& self, int64_t direct_bytes) {
  const Stream stream;
  const std::string name = direct_bytes > 0 ? "direct" : "world";
  const auto group = Connect(self, stream, name, int64_t{64} << 10, direct_bytes);
  if (group == nullptr) return;
  const int64_t block = 1000, few = 2880, many = 40'000;
  const DeviceArray<int32_t> send(self.size * block), recv(self.size * block);
  const DeviceArray<int32_t> back(self.size * block), rows(self.size);
  const DeviceArray<float> small(few), large(many);
  std::vector<int64_t> row_begin;
  for (int r = 0; r <= self.size; ++r) row_begin.push_back(r);
  Graph graph(stream);
  graph.Capture([&] {
    EXPECT_OK(group->AllToAll(send.data(), recv.data(), block * 4));
    EXPECT_OK(group->AllToAll(recv.data(), back.data(), block * 4));
    EXPECT_OK(group->AllReduceSum({small.data(), DType::kF32, 1, few}));
    EXPECT_OK(group->AllReduceSum({large.data(), DType::kF32, 1, many}));
    EXPECT_OK(group->AllGatherRows({rows.data(), DType::kI32, self.size, 1}, row_begin));
  });
  const DeviceArray<int32_t> eager(self.size * block);
  for (int round = 0; round < kReplays; ++round) {
    std::vector<int32_t> row(self.size, -1), all_rows(self.size);
    for (int r = 0; r < self.size; ++r) all_rows[r] = Mark(r, r, 0, round);
    row[self.rank] = all_rows[self.rank];
    stream.Upload(Sent(self, block, round), send);
    stream.Upload(Addends<float>(self.rank, few, round), small);
    stream.Upload(Addends<float>(self.rank, many, round), large);
    stream.Upload(row, rows);
    graph.Launch();
    if (round % 10 == 5) {  // a step that is not a graph, between others
      EXPECT_OK(group->AllToAll(send.data(), eager.data(), block * 4));
      EXPECT_EQ(stream.Download(eager), Received(self, block, round));
    }
    ASSERT_EQ(stream.Download(recv), Received(self, block, round)) << "round " << round;
    ASSERT_EQ(stream.Download(back), Sent(self, block, round)) << "round " << round;
    ASSERT_EQ(stream.Download(rows), all_rows) << "round " << round;
    ASSERT_TRUE(SameBits(stream.Download(small), AscendingSum<float>(self.size, few, round)));
    ASSERT_TRUE(SameBits(stream.Download(large), AscendingSum<float>(self.size, many, round)));
  }
  EXPECT_OK(group->Check());
}

void GraphReplays(RankProcess& self) {
  ReplayGraphs(self, 0);
  ReplayGraphs(self, kDirectBytes);
}

// A group of one needs no peer, and moves its own data.
void OneRank(RankProcess& self) {
  const Stream stream;
  const auto group = Connect(self, stream);
  if (group == nullptr) return;
  CheckAllToAll(self, stream, *group);
  CheckAllReduce<float>(self, stream, *group, DType::kF32);
  CheckReduceScatter<float>(self, stream, *group, DType::kF32);
  CheckAllGather(self, stream, *group);
  EXPECT_EQ(group->bytes_sent(), 0);
  group->Abort();
  ExpectUnavailable(group->Check(), "aborted");
  ExpectUnavailable(group->AllReduceSum({nullptr, DType::kF32, 0, 0}), "aborted");
}

// --- The tests. ---

class NcclCommunicatorTest : public NcclTest {};

TEST_F(NcclCommunicatorTest, EveryCollectiveGivesWhatTheHostComputes) {
  for (int size : {2, 4, 8}) {
    SCOPED_TRACE(testing::Message() << size << " ranks");
    RankProcesses("Collectives", size).ExpectSuccess();
  }
}

TEST_F(NcclCommunicatorTest, AGroupOfOneMovesItsOwnData) {
  RankProcesses("OneRank", 1).ExpectSuccess();
}

TEST_F(NcclCommunicatorTest, ACapturedStepIsReplayedWithNewData) {
  for (int size : {2, 4}) {
    SCOPED_TRACE(testing::Message() << size << " ranks");
    RankProcesses("GraphReplays", size).ExpectSuccess();
  }
}

}  // namespace
}  // namespace conclave::worker

int main(int argc, char** argv) {
  using namespace conclave::worker;
  return RunTests(
      argc, argv,
      {{"Collectives", Collectives}, {"OneRank", OneRank}, {"GraphReplays", GraphReplays}});
}
