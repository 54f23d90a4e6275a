#ifndef CONCLAVE_WORKER_WEIGHTS_PAGER_H_
#define CONCLAVE_WORKER_WEIGHTS_PAGER_H_

// Brings parts of mapped files into memory before the first step needs them.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace conclave::worker {

// `rows` runs of `row_bytes`, `stride` bytes apart, in the map of `file`.
struct MappedRegion {
  const std::byte* data = nullptr;
  int64_t rows = 1;
  int64_t row_bytes = 0;
  int64_t stride = 0;
  std::string file;  // for errors

  int64_t bytes() const { return rows * row_bytes; }
};

// Reads every page of `regions` once. `progress` is called with the bytes just read, at least every
// 16 MiB; returning false cancels (CANCELLED). A file that became shorter than its map is DATA_LOSS
// with its name, not a SIGBUS.
absl::Status PageIn(std::span<const MappedRegion> regions,
                    const std::function<bool(int64_t bytes)>& progress);

// Lets the kernel read `regions` while something else is done. A hint.
void ReadAhead(std::span<const MappedRegion> regions);

// Gives back this process's pages that lie wholly in `regions`; what is read of them later comes
// from the file again (of anonymous memory: zeros).
void GiveBack(std::span<const MappedRegion> regions);

// What PageIn does on kernels before 5.14: reads a byte of each page from `begin` (a page's start)
// to `end` by way of the kernel, which answers where a plain read would be a SIGBUS.
absl::Status ReadPages(const std::byte* begin, const std::byte* end, const std::string& file);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_WEIGHTS_PAGER_H_
