#include "worker/weights_pager.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/status_macros.h"

namespace conclave::worker {
namespace {

constexpr int64_t kChunkBytes = int64_t{16} << 20;

absl::Status Shrunk(const std::string& file) {
  return absl::DataLossError(fmt::format(
      "{}: the file became shorter, or cannot be read, while its weights were loaded", file));
}

int64_t PageSize() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

// Reading one byte brings its page in.
void TouchPages(const std::byte* begin, const std::byte* end) {
  for (const std::byte* at = begin; at < end; at += PageSize()) {
    static_cast<void>(*static_cast<const volatile std::byte*>(at));
  }
}

// Pages in [data, data + bytes).
absl::Status Populate(const std::byte* data, int64_t bytes, const std::string& file) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const int64_t lead = static_cast<int64_t>(address % static_cast<uintptr_t>(PageSize()));
  const std::byte* begin = data - lead;
  // madvise takes a non-const pointer but changes nothing here.
  void* start = const_cast<std::byte*>(begin);
  const size_t length = static_cast<size_t>(bytes + lead);
  madvise(start, length, MADV_WILLNEED);  // a hint: large reads ahead of the faults below
  while (madvise(start, length, MADV_POPULATE_READ) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == EFAULT) return Shrunk(file);
    if (errno != EINVAL && errno != ENOSYS) {
      return absl::InternalError(
          fmt::format("{}: reading {} mapped bytes: {}", file, bytes, std::strerror(errno)));
    }
    return ReadPages(begin, data + bytes, file);
  }
  return absl::OkStatus();
}

// A hint or an order for the pages of every row: those that the row touches, or those that it
// fills.
void Advise(std::span<const MappedRegion> regions, bool whole_pages, int advice) {
  const auto page = static_cast<uintptr_t>(PageSize());
  for (const MappedRegion& region : regions) {
    // Rows side by side share pages: they are one run.
    const bool side_by_side = region.stride == region.row_bytes;
    const int64_t runs = side_by_side ? 1 : region.rows;
    const int64_t bytes = side_by_side ? region.bytes() : region.row_bytes;
    for (int64_t run = 0; run < runs; ++run) {
      const auto first = reinterpret_cast<uintptr_t>(region.data + run * region.stride);
      const uintptr_t last = first + static_cast<uintptr_t>(bytes);
      const uintptr_t begin = (whole_pages ? first + page - 1 : first) / page * page;
      const uintptr_t end = whole_pages ? last / page * page : last;
      if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
    }
  }
}

}  // namespace

void ReadAhead(std::span<const MappedRegion> regions) { Advise(regions, false, MADV_WILLNEED); }

void GiveBack(std::span<const MappedRegion> regions) { Advise(regions, true, MADV_DONTNEED); }

absl::Status ReadPages(const std::byte* begin, const std::byte* end, const std::string& file) {
  constexpr int kPages = 512;  // below the kernel's IOV_MAX
  std::array<std::byte, kPages> bytes;
  std::array<iovec, kPages> pages;
  while (begin < end) {
    int count = 0;
    for (; count < kPages && begin < end; ++count, begin += PageSize()) {
      pages[static_cast<size_t>(count)] = {const_cast<std::byte*>(begin), 1};
    }
    const iovec local = {bytes.data(), static_cast<size_t>(count)};
    const ssize_t read = process_vm_readv(getpid(), &local, 1, pages.data(), count, 0);
    if (read == count) continue;
    if (read >= 0 || errno == EFAULT) return Shrunk(file);
    // Forbidden here: a plain read, which cannot fail but by a signal.
    TouchPages(static_cast<const std::byte*>(pages[0].iov_base), end);
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status PageIn(std::span<const MappedRegion> regions,
                    const std::function<bool(int64_t bytes)>& progress) {
  int64_t unreported = 0;
  for (const MappedRegion& region : regions) {
    for (int64_t row = 0; row < region.rows; ++row) {
      const std::byte* data = region.data + row * region.stride;
      for (int64_t at = 0; at < region.row_bytes; at += kChunkBytes) {
        const int64_t bytes = std::min(kChunkBytes, region.row_bytes - at);
        RETURN_IF_ERROR(Populate(data + at, bytes, region.file));
        unreported += bytes;
        if (unreported < kChunkBytes) continue;
        if (!progress(unreported)) return absl::CancelledError("loading of weights was cancelled");
        unreported = 0;
      }
    }
  }
  if (!progress(unreported)) return absl::CancelledError("loading of weights was cancelled");
  return absl::OkStatus();
}

}  // namespace conclave::worker
