#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <string_view>

#include "base/check.h"
#include "model/safetensors.h"
#include "tests/fuzz/targets.h"

namespace conclave::tests {
namespace {

// The file that an input stands for.
std::string FileOf(std::string_view input) {
  const char mode = input.front();
  input.remove_prefix(1);
  if (mode != 'H') return std::string(input);
  const size_t header_bytes = std::min(input.find('\0'), input.size());
  const std::string_view header = input.substr(0, header_bytes);
  input.remove_prefix(std::min(header_bytes + 1, input.size()));
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file.append(header).append(input);
}

// A file in memory that Open can find by name.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& contents) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    CONCLAVE_CHECK(fd_ >= 0);
    const ssize_t written = write(fd_, contents.data(), contents.size());
    CONCLAVE_CHECK(written == static_cast<ssize_t>(contents.size()));
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  const int fd_;
};

// What a caller may rely on: sizes that fit the shape, bytes that are there.
void CheckView(const model::TensorView& view) {
  if (view.type != model::TensorType::kOther) {
    CONCLAVE_CHECK(view.num_elements() * model::BytesPerElement(view.type) ==
                   static_cast<int64_t>(view.bytes.size()));
  }
  for (int64_t dimension : view.shape) CONCLAVE_CHECK(dimension >= 0);
  volatile std::byte sum{};
  for (std::byte byte : view.bytes) sum = sum ^ byte;
}

}  // namespace

int FuzzSafetensors(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string contents = FileOf({reinterpret_cast<const char*>(data), size});
  const MemoryFile file(contents);
  const auto opened = model::SafetensorsFile::Open(file.path());
  if (!opened.ok()) {
    CONCLAVE_CHECK(opened.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  size_t total = 0;
  for (const model::TensorView& view : (*opened)->tensors()) {
    CheckView(view);
    total += view.bytes.size();
  }
  CONCLAVE_CHECK(total + sizeof(uint64_t) <= contents.size());
  return 0;
}

}  // namespace conclave::tests
