// Communicator over NCCL: every collective is made of grouped sends and receives between pairs of
// ranks, and of our own sum. NCCL's own reductions add in an order that depends on the algorithm it
// picks.

#include "worker/nccl_communicator.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ordered_sum.h"
#include "kernels/cuda/peer_exchange.h"
#include "worker/nccl_session.h"
#include "worker/peer_group.h"

namespace conclave::worker {
namespace {

using kernels::Tensor;

// Of every part in the scratch memory: what the sum reads fastest.
constexpr int64_t kAlign = 16;
// Sums of more bytes travel as reduce-scatter and all-gather, less as one all-gather: one exchange
// fewer, more bytes. Two ranks send the same bytes either way.
constexpr int64_t kSumAtOnceBytes = int64_t{256} << 10;
// Of the longest block of an exchange: it is not the same number on every rank.
constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
constexpr absl::Duration kConnectInterval = absl::Milliseconds(1);

int64_t RoundUp(int64_t value) { return (value + kAlign - 1) / kAlign * kAlign; }
bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kAlign == 0; }

template <typename Pointer>
Pointer* Offset(Pointer* base, int64_t bytes);
template <>
const void* Offset(const void* base, int64_t bytes) {
  return static_cast<const std::byte*>(base) + bytes;
}
template <>
void* Offset(void* base, int64_t bytes) {
  return static_cast<std::byte*>(base) + bytes;
}

class NcclCommunicator final : public Communicator {
 public:
  // `peers` may be null: then NCCL carries everything.
  NcclCommunicator(std::unique_ptr<NcclSession> session, kernels::Buffer scratch,
                   std::unique_ptr<PeerGroup> peers)
      : rank_(session->rank()),
        size_(session->size()),
        scratch_(std::move(scratch)),
        peers_(std::move(peers)),
        session_(std::move(session)),
        bytes_to_(size_) {
    transfers_.reserve(size_);
    begin_.resize(size_ + 1);
    if (peers_ != nullptr) session_->OnFailure([peers = peers_.get()] { peers->Abort(); });
  }

  // The first exchange opens the connections to all peers, outside of any step.
  absl::Status WarmUp(const NcclOptions& options, absl::Time deadline);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool asynchronous() const override { return true; }
  std::span<const int64_t> bytes_sent_to() const override { return bytes_to_; }
  double seconds_waited() const override { return 0; }
  absl::Status Check() override { return session_->status(); }
  void Abort() override { session_->Fail("aborted"); }

  absl::Status AllToAll(const void* send, void* recv, int64_t block_bytes) override {
    transfers_.clear();
    for (int r = 0; r < size_; ++r) {
      Add(r, Offset(send, r * block_bytes), block_bytes, Offset(recv, r * block_bytes),
          block_bytes);
    }
    return Exchange(block_bytes);
  }

  absl::Status AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                         std::span<const int64_t> send_offsets, void* recv,
                         std::span<const int64_t> recv_bytes,
                         std::span<const int64_t> recv_offsets) override {
    transfers_.clear();
    for (int r = 0; r < size_; ++r) {
      Add(r, Offset(send, send_offsets[r]), send_bytes[r], Offset(recv, recv_offsets[r]),
          recv_bytes[r]);
    }
    return Exchange(kUnknown);
  }

  absl::Status AllReduceSum(Tensor data) override {
    if (size_ == 1) return Check();
    const int64_t bytes = data.bytes();
    if (Direct(bytes) && bytes % kAlign == 0 && IsAligned(data.data)) return SumDirectly(data);
    const bool at_once = size_ == 2 || bytes <= kSumAtOnceBytes;
    return at_once && RoundUp(bytes) * size_ <= scratch_.bytes ? AllReduceAtOnce(data)
                                                               : AllReduceInTwo(data);
  }

  absl::Status ReduceScatterSum(Tensor data, std::span<const int64_t> row_begin,
                                Tensor out) override {
    CONCLAVE_CHECK(out.rows == row_begin[rank_ + 1] - row_begin[rank_]);
    CONCLAVE_CHECK(out.cols == data.cols && out.dtype == data.dtype);
    for (int r = 0; r <= size_; ++r) begin_[r] = row_begin[r] * data.cols;
    return ReduceScatter(data.dtype, data.data, out.data);
  }

  absl::Status AllGatherRows(Tensor data, std::span<const int64_t> row_begin) override {
    for (int r = 0; r <= size_; ++r) begin_[r] = row_begin[r] * data.cols;
    return AllGather(data.dtype, data.data);
  }

 private:
  void Add(int peer, const void* send, int64_t send_bytes, void* recv, int64_t recv_bytes) {
    transfers_.push_back({peer, send, send_bytes, recv, recv_bytes});
  }

  bool Direct(int64_t longest) const {
    return peers_ != nullptr && longest <= peers_->block_bytes();
  }

  // Enqueues transfers_; what goes to this rank itself is copied. `longest`: bytes of the longest
  // block between any two ranks.
  absl::Status Exchange(int64_t longest) {
    if (Direct(longest)) return longest == 0 ? Check() : ExchangeDirectly();
    bool any = false;
    for (NcclSession::Transfer& transfer : transfers_) {
      if (transfer.peer == rank_) {
        RETURN_IF_ERROR(CopyOwn(transfer));
        transfer.send_bytes = transfer.recv_bytes = 0;
      }
      any = any || transfer.send_bytes > 0 || transfer.recv_bytes > 0;
    }
    if (!any) return Check();
    RETURN_IF_ERROR(session_->Enqueue(transfers_));
    for (const NcclSession::Transfer& transfer : transfers_) {
      bytes_to_[transfer.peer] += transfer.send_bytes;
    }
    return absl::OkStatus();
  }

  absl::Status ExchangeDirectly() {
    RETURN_IF_ERROR(Check());
    kernels::cuda::PeerBlocks blocks;
    for (const NcclSession::Transfer& transfer : transfers_) {
      const int peer = transfer.peer;
      blocks.send[peer] = transfer.send;
      blocks.recv[peer] = transfer.recv;
      blocks.send_bytes[peer] = transfer.send_bytes;
      blocks.recv_bytes[peer] = transfer.recv_bytes;
      if (peer != rank_) bytes_to_[peer] += transfer.send_bytes;
    }
    kernels::cuda::ExchangeWithPeers(peers_->windows(), blocks, session_->stream());
    return Checked(cudaGetLastError(), "an exchange with peers");
  }

  absl::Status SumDirectly(Tensor data) {
    RETURN_IF_ERROR(Check());
    if (data.bytes() == 0) return absl::OkStatus();
    for (int r = 0; r < size_; ++r) bytes_to_[r] += r == rank_ ? 0 : data.bytes();
    kernels::cuda::SumWithPeers(peers_->windows(), data.dtype, data.data, data.rows * data.cols,
                                session_->stream());
    return Checked(cudaGetLastError(), "a sum with peers");
  }

  absl::Status CopyOwn(const NcclSession::Transfer& own) {
    CONCLAVE_CHECK(own.send_bytes == own.recv_bytes);
    if (own.send_bytes == 0 || own.send == own.recv) return absl::OkStatus();
    return Checked(cudaMemcpyAsync(own.recv, own.send, own.send_bytes, cudaMemcpyDeviceToDevice,
                                   session_->stream()),
                   "copying a rank's own block");
  }

  // All ranks' data into the scratch memory, then their sum.
  absl::Status AllReduceAtOnce(Tensor data) {
    const int64_t bytes = data.bytes();
    const int64_t stride = RoundUp(bytes);
    transfers_.clear();
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) Add(r, data.data, bytes, Offset(scratch(), r * stride), bytes);
    }
    RETURN_IF_ERROR(Exchange(bytes));
    return Sum(data.dtype, stride, data.data, data.rows * data.cols, data.data);
  }

  // Cut by values, not by rows: a sum of few long rows is spread over all ranks too.
  absl::Status AllReduceInTwo(Tensor data) {
    const int64_t values = data.rows * data.cols;
    const int64_t unit = kAlign / SizeOf(data.dtype);
    for (int r = 0; r < size_; ++r) begin_[r] = values / unit * r / size_ * unit;
    begin_[size_] = values;
    void* const share = Offset(data.data, begin_[rank_] * SizeOf(data.dtype));
    RETURN_IF_ERROR(ReduceScatter(data.dtype, data.data, share));
    return AllGather(data.dtype, data.data);
  }

  // out = the ordered sum of values [begin_[rank], begin_[rank + 1]) of `data`. In pieces that fit
  // the scratch memory, each of the same place in every rank's share.
  absl::Status ReduceScatter(kernels::DType dtype, const void* data, void* out) {
    const int64_t value_bytes = SizeOf(dtype);
    const int64_t stride = scratch_.bytes / size_ / kAlign * kAlign;
    const int64_t piece = stride / value_bytes;
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r) longest = std::max(longest, begin_[r + 1] - begin_[r]);
    for (int64_t first = 0; first < longest; first += piece) {
      // Values of rank r's piece, and where it begins in `data`.
      const auto values = [&](int r) {
        return std::clamp<int64_t>(begin_[r + 1] - begin_[r] - first, 0, piece);
      };
      const auto place = [&](int r) { return Offset(data, (begin_[r] + first) * value_bytes); };
      const int64_t mine = values(rank_);
      transfers_.clear();
      for (int r = 0; r < size_; ++r) {
        if (r == rank_) continue;
        Add(r, place(r), values(r) * value_bytes, Offset(scratch(), r * stride),
            mine * value_bytes);
      }
      RETURN_IF_ERROR(Exchange(std::min(longest - first, piece) * value_bytes));
      RETURN_IF_ERROR(Sum(dtype, stride, place(rank_), mine, Offset(out, first * value_bytes)));
    }
    return Check();
  }

  // Each rank's values [begin_[r], begin_[r + 1]) to all.
  absl::Status AllGather(kernels::DType dtype, void* data) {
    const auto offset = [&](int r) { return begin_[r] * SizeOf(dtype); };
    const auto bytes = [&](int r) { return offset(r + 1) - offset(r); };
    transfers_.clear();
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r) {
      longest = std::max(longest, bytes(r));
      if (r == rank_) continue;
      Add(r, Offset(data, offset(rank_)), bytes(rank_), Offset(data, offset(r)), bytes(r));
    }
    return Exchange(longest);
  }

  // out = the sum of every rank's part in the scratch memory, and of this rank's own elsewhere.
  absl::Status Sum(kernels::DType dtype, int64_t stride, const void* own, int64_t values,
                   void* out) {
    CONCLAVE_CHECK(dtype == kernels::DType::kF32 || dtype == kernels::DType::kBf16);
    if (values == 0) return absl::OkStatus();
    kernels::cuda::OrderedSum(
        dtype,
        {.parts = scratch(), .stride = stride, .count = size_, .own = rank_, .own_part = own},
        values, out, session_->stream());
    return Checked(cudaGetLastError(), "summing the ranks' parts");
  }

  absl::Status Checked(cudaError_t error, std::string_view what) {
    if (error == cudaSuccess) return absl::OkStatus();
    session_->Fail(fmt::format("{}: {}", what, cudaGetErrorString(error)));
    return Check();
  }

  void* scratch() const { return scratch_.memory.get(); }

  const int rank_;
  const int size_;
  // Outlive what the session has enqueued.
  const kernels::Buffer scratch_;
  const std::unique_ptr<PeerGroup> peers_;
  const std::unique_ptr<NcclSession> session_;

  // Of the step thread: bytes sent so far, what the running call transfers, and where each rank's
  // values begin.
  std::vector<int64_t> bytes_to_;  // [size]
  std::vector<NcclSession::Transfer> transfers_;
  std::vector<int64_t> begin_;  // [size + 1]
};

absl::Status NcclCommunicator::WarmUp(const NcclOptions& options, absl::Time deadline) {
  transfers_.clear();
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    Add(r, Offset(scratch(), rank_ * kAlign), kAlign, Offset(scratch(), r * kAlign), kAlign);
  }
  RETURN_IF_ERROR(Exchange(kUnknown));  // by NCCL
  std::fill(bytes_to_.begin(), bytes_to_.end(), 0);
  for (;;) {
    const cudaError_t state = cudaStreamQuery(session_->stream());
    if (state != cudaErrorNotReady) {
      RETURN_IF_ERROR(Checked(state, "the first exchange"));
      return Check();
    }
    if (base::SteadyNow() > deadline) session_->Fail("the first exchange is out of time");
    if (options.cancelled && options.cancelled()) session_->Fail("cancelled");
    RETURN_IF_ERROR(Check());
    absl::SleepFor(kConnectInterval);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const std::string& group, int rank,
                                                          int size, Rendezvous& rendezvous,
                                                          const NcclOptions& options) {
  const absl::Time deadline = base::SteadyNow() + options.connect_timeout;
  ASSIGN_OR_RETURN(std::unique_ptr<NcclSession> session,
                   NcclSession::Connect(group, rank, size, rendezvous, options, deadline));
  ASSIGN_OR_RETURN(kernels::Buffer scratch,
                   kernels::cuda::AllocateDevice(std::max(options.scratch_bytes, size * kAlign)));
  ASSIGN_OR_RETURN(
      std::unique_ptr<PeerGroup> peers,
      PeerGroup::Connect(group, rank, size, rendezvous, options.direct_bytes, deadline));
  auto communicator =
      std::make_unique<NcclCommunicator>(std::move(session), std::move(scratch), std::move(peers));
  RETURN_IF_ERROR(communicator->WarmUp(options, deadline));
  return communicator;
}

void SetNcclInterface(const std::string& interface) {
  // "=": this name, not those that begin with it.
  setenv("NCCL_SOCKET_IFNAME", ("=" + interface).c_str(), /*overwrite=*/0);
}

}  // namespace conclave::worker
