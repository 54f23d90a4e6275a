// Communicator over gloo's TCP transport, in its synchronous mode (gloo_mesh.h).
//
// One collective is one all-to-all of blocks. Blocks travel in chunks: chunk k of every block is
// sent before chunk k of any is received, and chunk k + 1 after that. A rank that is furthest
// behind therefore always sends into an empty connection, whose kernel buffers hold a chunk: no
// cycle of ranks that wait for each other to read can form, whatever the sizes.

#include <fmt/format.h>
#include <gloo/transport/buffer.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "worker/communicator.h"
#include "worker/gloo_mesh.h"
#include "worker/listen_address.h"
#include "worker/ordered_sum.h"

namespace conclave::worker {
namespace {

using gloo::transport::Buffer;

constexpr int64_t kChunkBytes = 64 << 10;
// Sums of more bytes travel as reduce-scatter and all-gather, less as one all-gather.
constexpr int64_t kDirectSumBytes = 64 << 10;
// Gloo's name for the receiver's buffer. One collective at a time, in order: one name is enough.
constexpr int kSlot = 0;

struct Block {
  int64_t offset = 0;
  int64_t bytes = 0;
};

int64_t ChunkBytes(const Block& block, int64_t chunk) {
  return std::clamp<int64_t>(block.bytes - chunk * kChunkBytes, 0, kChunkBytes);
}

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(std::string group, std::unique_ptr<GlooMesh> mesh, absl::Duration timeout)
      : group_(std::move(group)),
        rank_(mesh->rank),
        size_(mesh->size),
        timeout_(timeout),
        mesh_(std::move(mesh)),
        send_blocks_(size_),
        recv_blocks_(size_),
        bytes_to_(size_) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::span<const int64_t> bytes_sent_to() const override { return bytes_to_; }
  double seconds_waited() const override { return seconds_waited_; }

  absl::Status AllToAll(const void* send, void* recv, int64_t block_bytes) override {
    for (int r = 0; r < size_; ++r) {
      send_blocks_[r] = recv_blocks_[r] = {r * block_bytes, block_bytes};
    }
    return Exchange(send, recv);
  }

  absl::Status AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                         std::span<const int64_t> send_offsets, void* recv,
                         std::span<const int64_t> recv_bytes,
                         std::span<const int64_t> recv_offsets) override {
    for (int r = 0; r < size_; ++r) {
      send_blocks_[r] = {send_offsets[r], send_bytes[r]};
      recv_blocks_[r] = {recv_offsets[r], recv_bytes[r]};
    }
    return Exchange(send, recv);
  }

  absl::Status AllReduceSum(kernels::Tensor data) override {
    const int64_t bytes = data.bytes();
    if (bytes > kDirectSumBytes) return AllReduceInTwo(data);
    std::byte* all = Scratch(bytes * size_);
    for (int r = 0; r < size_; ++r) {
      send_blocks_[r] = {0, bytes};
      recv_blocks_[r] = {r * bytes, bytes};
    }
    RETURN_IF_ERROR(Exchange(data.data, all));
    OrderedSum(data.dtype, all, size_, data.rows * data.cols, data.data);
    return absl::OkStatus();
  }

  absl::Status ReduceScatterSum(kernels::Tensor data, std::span<const int64_t> row_begin,
                                kernels::Tensor out) override {
    const int64_t row_bytes = data.cols * SizeOf(data.dtype);
    const int64_t my_rows = row_begin[rank_ + 1] - row_begin[rank_];
    CONCLAVE_CHECK(out.rows == my_rows && out.cols == data.cols && out.dtype == data.dtype);
    const int64_t bytes = my_rows * row_bytes;
    std::byte* all = Scratch(bytes * size_);
    for (int r = 0; r < size_; ++r) {
      send_blocks_[r] = {row_begin[r] * row_bytes, (row_begin[r + 1] - row_begin[r]) * row_bytes};
      recv_blocks_[r] = {r * bytes, bytes};
    }
    RETURN_IF_ERROR(Exchange(data.data, all));
    OrderedSum(data.dtype, all, size_, my_rows * data.cols, out.data);
    return absl::OkStatus();
  }

  absl::Status AllGatherRows(kernels::Tensor data, std::span<const int64_t> row_begin) override {
    const int64_t row_bytes = data.cols * SizeOf(data.dtype);
    auto rows = [&](int r) {
      return Block{row_begin[r] * row_bytes, (row_begin[r + 1] - row_begin[r]) * row_bytes};
    };
    for (int r = 0; r < size_; ++r) {
      send_blocks_[r] = rows(rank_);
      recv_blocks_[r] = rows(r);
    }
    return Exchange(data.data, data.data);
  }

  void Abort() override { Fail("aborted"); }

 private:
  // All-to-all of send_blocks_ and recv_blocks_. Gloo's exceptions end here.
  absl::Status Exchange(const void* send, void* recv) {
    const Block from = send_blocks_[rank_];
    const Block to = recv_blocks_[rank_];
    CONCLAVE_CHECK(from.bytes == to.bytes);
    if (from.bytes > 0) {
      std::memmove(static_cast<std::byte*>(recv) + to.offset,
                   static_cast<const std::byte*>(send) + from.offset, from.bytes);
    }
    if (!failed_.load() && size_ > 1) {
      try {
        Transfer(static_cast<const std::byte*>(send), static_cast<std::byte*>(recv));
      } catch (const std::exception& error) {
        Fail(GlooReason(error));
      }
    }
    return failed_.load() ? Failure() : absl::OkStatus();
  }

  // Throws.
  void Transfer(const std::byte* send, std::byte* recv) {
    const absl::Time deadline = base::SteadyNow() + timeout_ / 2;
    std::vector<std::unique_ptr<Buffer>> out(size_);
    std::vector<std::unique_ptr<Buffer>> in(size_);
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      if (const Block& block = recv_blocks_[r]; block.bytes > 0) {
        in[r] = mesh_->getPair(r)->createRecvBuffer(kSlot, recv + block.offset, block.bytes);
        longest = std::max(longest, block.bytes);
      }
      if (const Block& block = send_blocks_[r]; block.bytes > 0) {
        // Gloo only reads through this pointer.
        void* data = const_cast<std::byte*>(send) + block.offset;
        out[r] = mesh_->getPair(r)->createSendBuffer(kSlot, data, block.bytes);
        longest = std::max(longest, block.bytes);
        bytes_to_[r] += block.bytes;
      }
    }
    for (int64_t chunk = 0; chunk * kChunkBytes < longest; ++chunk) {
      // Each rank begins with its neighbour, so that not all send to rank 0 first.
      for (int i = 1; i < size_; ++i) {
        const int peer = (rank_ + i) % size_;
        const int64_t bytes = ChunkBytes(send_blocks_[peer], chunk);
        // Returns when the kernel has it.
        if (bytes > 0) out[peer]->send(chunk * kChunkBytes, bytes, chunk * kChunkBytes);
      }
      const absl::Time sent = base::SteadyNow();
      for (int i = 1; i < size_; ++i) {
        const int peer = (rank_ + size_ - i) % size_;
        if (ChunkBytes(recv_blocks_[peer], chunk) == 0) continue;
        // One read may take the other half of the time-out.
        if (base::SteadyNow() > deadline) return Fail("timed out");
        in[peer]->waitRecv();
      }
      if (chunk == 0) seconds_waited_ += absl::ToDoubleSeconds(base::SteadyNow() - sent);
    }
  }

  absl::Status AllReduceInTwo(kernels::Tensor data) {
    // Cut by values, not by rows: a sum of few long rows is spread over all ranks too.
    const int64_t values = data.rows * data.cols;
    std::vector<int64_t> begin(size_ + 1);
    for (int r = 0; r <= size_; ++r) begin[r] = values * r / size_;
    kernels::Tensor flat{data.data, data.dtype, values, 1};
    RETURN_IF_ERROR(
        ReduceScatterSum(flat, begin, flat.Rows(begin[rank_], begin[rank_ + 1] - begin[rank_])));
    return AllGatherRows(flat, begin);
  }

  // The first failure counts; it makes the peers fail too.
  void Fail(const std::string& reason) {
    {
      absl::MutexLock lock(&mutex_);
      if (failed_.load()) return;
      reason_ = reason;
      failed_.store(true);
    }
    mesh_->Break();
  }

  absl::Status Failure() {
    absl::MutexLock lock(&mutex_);
    return absl::UnavailableError(
        fmt::format("group {} of {} ranks, at rank {}: {}", group_, size_, rank_, reason_));
  }

  // Grows to the largest sum of the run. Aligned for any dtype.
  std::byte* Scratch(int64_t bytes) {
    if (bytes > static_cast<int64_t>(scratch_.size() * sizeof(double))) {
      scratch_.resize(bytes / sizeof(double) + 1);
    }
    return reinterpret_cast<std::byte*>(scratch_.data());
  }

  const std::string group_;
  const int rank_;
  const int size_;
  const absl::Duration timeout_;
  const std::unique_ptr<GlooMesh> mesh_;

  // Of the step thread.
  std::vector<Block> send_blocks_;
  std::vector<Block> recv_blocks_;
  std::vector<double> scratch_;
  std::vector<int64_t> bytes_to_;  // [size]
  double seconds_waited_ = 0;

  absl::Mutex mutex_;  // guards reason_
  std::string reason_;
  std::atomic<bool> failed_{false};  // once true, stays true
};

// Closes the mesh when connecting takes too long or is no longer wanted.
class ConnectGuard {
 public:
  ConnectGuard(GlooMesh& mesh, absl::Time deadline, const std::function<bool()>& cancelled)
      : thread_([this, &mesh, deadline, &cancelled] {
          while (!done_.WaitForNotificationWithTimeout(absl::Milliseconds(20))) {
            if (base::SteadyNow() < deadline && !(cancelled && cancelled())) continue;
            fired_.store(true);
            try {
              mesh.closeConnections();
            } catch (const std::exception&) {
              // Closed from the other side meanwhile.
            }
            return;
          }
        }) {}
  ~ConnectGuard() { Stop(); }

  // True when it closed the mesh.
  bool Stop() {
    if (thread_.joinable()) {
      done_.Notify();
      thread_.join();
    }
    return fired_.load();
  }

 private:
  absl::Notification done_;
  std::atomic<bool> fired_{false};
  std::thread thread_;
};

void IgnoreBrokenPipes() {
  static std::once_flag once;
  std::call_once(once, [] { std::signal(SIGPIPE, SIG_IGN); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const std::string& group, int rank,
                                                          int size, Rendezvous& rendezvous,
                                                          const GlooOptions& options) {
  CONCLAVE_CHECK(size >= 1 && rank >= 0 && rank < size);
  ASSIGN_OR_RETURN(std::string address, ResolveListenAddress(options.interface, options.hostname));
  IgnoreBrokenPipes();
  const absl::Time deadline = base::SteadyNow() + options.connect_timeout;
  auto unavailable = [&](std::string_view why) {
    return absl::UnavailableError(fmt::format("group {}: rank {} of {} at {} could not connect: {}",
                                              group, rank, size, address, why));
  };
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = address;
    auto device = gloo::transport::tcp::CreateDevice(attributes);
    auto mesh = std::make_unique<GlooMesh>(rank, size, device, options.timeout / 2);
    ConnectGuard guard(*mesh, deadline, options.cancelled);
    absl::Status connected = mesh->Connect("gloo/" + group, rendezvous, deadline);
    if (guard.Stop()) {
      return unavailable("cancelled or out of time; " + std::string(connected.message()));
    }
    if (!connected.ok()) return unavailable(std::string(connected.message()));
    return std::make_unique<GlooCommunicator>(group, std::move(mesh), options.timeout);
  } catch (const std::exception& error) {
    return unavailable(GlooReason(error));
  }
}

}  // namespace conclave::worker
