#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/mapped_files.h"
#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/safetensors_header.h"

namespace conclave::model {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct TypeName {
  std::string_view name;
  TensorType type;
  int bits;
};
// Every dtype of the format, so that sizes can be checked also where we use none.
constexpr TypeName kTypes[] = {
    {"BF16", TensorType::kBf16, 16},    {"F16", TensorType::kF16, 16},
    {"F32", TensorType::kF32, 32},      {"U8", TensorType::kU8, 8},
    {"I64", TensorType::kI64, 64},      {"BOOL", TensorType::kOther, 8},
    {"I8", TensorType::kOther, 8},      {"I16", TensorType::kOther, 16},
    {"U16", TensorType::kOther, 16},    {"I32", TensorType::kOther, 32},
    {"U32", TensorType::kOther, 32},    {"U64", TensorType::kOther, 64},
    {"F64", TensorType::kOther, 64},    {"C64", TensorType::kOther, 64},
    {"F8_E5M2", TensorType::kOther, 8}, {"F8_E4M3", TensorType::kOther, 8},
    {"F8_E8M0", TensorType::kOther, 8}, {"F6_E2M3", TensorType::kOther, 6},
    {"F6_E3M2", TensorType::kOther, 6}, {"F4", TensorType::kOther, 4},
};

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  const int fd_;
};

class MappedFile final : public SafetensorsFile {
 public:
  MappedFile(std::string path, void* map, size_t size)
      : path_(std::move(path)), map_(map), size_(size), name_(map, size, path_) {}
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() override { ::munmap(map_, size_); }

  absl::Status ReadHeader();

  const std::string& path() const override { return path_; }
  const std::vector<TensorView>& tensors() const override { return tensors_; }

 private:
  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(fmt::format("{}: {}", path_, message));
  }
  absl::Status AddTensor(const SafetensorsEntry& entry, std::span<const std::byte> data);
  absl::Status CheckCover(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) const;

  const std::string path_;
  void* const map_;
  const size_t size_;
  const base::MappedFileName name_;
  std::vector<TensorView> tensors_;
};

absl::Status MappedFile::ReadHeader() {
  const auto* bytes = static_cast<const std::byte*>(map_);
  uint64_t length = 0;
  if (size_ < kLengthBytes) {
    return Error(fmt::format("{} bytes, too short for a safetensors file", size_));
  }
  std::memcpy(&length, bytes, kLengthBytes);
  if (length > kMaxHeaderBytes || length > size_ - kLengthBytes) {
    return Error(fmt::format("the header claims {} bytes in a file of {} (limit {})", length, size_,
                             kMaxHeaderBytes));
  }
  const auto* text = reinterpret_cast<const char*>(bytes + kLengthBytes);
  auto entries = ParseSafetensorsHeader({text, static_cast<size_t>(length)});
  if (!entries.ok()) return Error(std::string(entries.status().message()));
  const std::span<const std::byte> data(bytes + kLengthBytes + length,
                                        size_ - kLengthBytes - length);
  tensors_.reserve(entries->size());
  for (const SafetensorsEntry& entry : *entries) RETURN_IF_ERROR(AddTensor(entry, data));
  return CheckCover(*entries, data.size());
}

absl::Status MappedFile::AddTensor(const SafetensorsEntry& entry, std::span<const std::byte> data) {
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const TypeName& known) { return known.name == entry.dtype; });
  if (type == std::end(kTypes)) {
    return Error(fmt::format("tensor {}: the dtype \"{}\" is unknown", entry.name, entry.dtype));
  }
  if (entry.begin > entry.end || entry.end > data.size()) {
    return Error(fmt::format("tensor {}: data_offsets [{}, {}] are not within the {} bytes of data",
                             entry.name, entry.begin, entry.end, data.size()));
  }
  int64_t bits = type->bits;
  bool overflow = false;
  for (const int64_t dimension : entry.shape) {
    overflow = overflow || __builtin_mul_overflow(bits, dimension, &bits);
  }
  const uint64_t bytes = entry.end - entry.begin;
  if (overflow || bits % 8 != 0 || static_cast<uint64_t>(bits / 8) != bytes) {
    return Error(fmt::format("tensor {}: {} of shape [{}] does not take the {} bytes it is given",
                             entry.name, entry.dtype, fmt::join(entry.shape, ", "), bytes));
  }
  tensors_.push_back(
      {entry.name, type->type, entry.shape, data.subspan(entry.begin, bytes), path_});
  return absl::OkStatus();
}

// The format allows neither holes nor overlaps: side by side, the tensors are the whole data. A
// file that was cut short or grown fails here.
absl::Status MappedFile::CheckCover(const std::vector<SafetensorsEntry>& entries,
                                    uint64_t data_bytes) const {
  std::vector<const SafetensorsEntry*> sorted;
  sorted.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  uint64_t at = 0;
  for (const SafetensorsEntry* entry : sorted) {
    if (entry->begin != at) {
      return Error(fmt::format(
          "tensor {}: begins at byte {} of the data, {} at byte {}", entry->name, entry->begin,
          entry->begin < at ? "overlapping what ends" : "after a hole that begins", at));
    }
    at = entry->end;
  }
  if (at != data_bytes) {
    return Error(fmt::format("{} bytes of data, but the tensors end at {}", data_bytes, at));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t BytesPerElement(TensorType type) {
  for (const TypeName& known : kTypes) {
    if (known.type == type && type != TensorType::kOther) return known.bits / 8;
  }
  return 0;
}

std::string_view TensorTypeName(TensorType type) {
  for (const TypeName& known : kTypes) {
    if (known.type == type && type != TensorType::kOther) return known.name;
  }
  return "another dtype";
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (const int64_t dimension : shape) count *= dimension;
  return count;
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path) {
  // Not to be held up by a FIFO; on a regular file the flag does nothing.
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) {
    const std::string message = fmt::format("{}: {}", path, std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  }
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(fmt::format("{}: not a regular file", path));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return absl::InvalidArgumentError(fmt::format("{}: the file is empty", path));
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (map == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("{}: mapping {} bytes: {}", path, size, std::strerror(errno)));
  }
  auto file = std::make_shared<MappedFile>(path, map, size);
  RETURN_IF_ERROR(file->ReadHeader());
  return std::shared_ptr<const SafetensorsFile>(std::move(file));
}

}  // namespace conclave::model
