#include "model/random_tensors.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "model/bfloat16.h"

namespace conclave::model {
namespace {

constexpr double kDeviation = 0.02;
constexpr int kLevels = 256;
// Generated together: 8 bf16 values, or 32 MXFP4 nibbles, or 16 scales.
constexpr int64_t kBlockBytes = 16;
// Bytes of an MXFP4 scale, 2^-7 below the threshold and 2^-8 above it. A uniform E2M1 nibble has
// the mean square 68.5 / 8: 68.5 / 8 * (176 * 2^-14 + 80 * 2^-16) / 256 = 0.02^2.
constexpr uint8_t kLargeScale = 120;
constexpr uint8_t kSmallScale = 119;
constexpr uint8_t kLargeScaleOf256 = 176;

// The finalizer of splitmix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
constexpr uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

constexpr uint64_t HashAt(uint64_t key, uint64_t index) {
  return Mix(key + (index + 1) * 0x9E3779B97F4A7C15u);
}

uint64_t KeyOf(uint64_t seed, const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return HashAt(hash, seed);
}

// The x below which a standard normal variable falls with probability p.
double NormalQuantile(double p) {
  double low = -10;
  double high = 10;
  for (int i = 0; i < 60; ++i) {
    const double x = (low + high) / 2;
    (std::erfc(-x / std::sqrt(2.0)) / 2 < p ? low : high) = x;
  }
  return low;
}

using Table = std::array<uint16_t, kLevels>;

// bf16 levels of equal probability.
Table MakeTable(double mean) {
  std::array<double, kLevels> z;
  double squares = 0;
  for (int i = 0; i < kLevels; ++i) {
    z[i] = NormalQuantile((i + 0.5) / kLevels);
    squares += z[i] * z[i];
  }
  const double scale = kDeviation / std::sqrt(squares / kLevels);
  Table table;
  for (int i = 0; i < kLevels; ++i) {
    table[i] = FloatToBf16(static_cast<float>(mean + scale * z[i]));
  }
  return table;
}

struct LevelsBlock {
  const Table& table;
  uint64_t key;

  void operator()(uint64_t block, std::byte* out) const {
    uint64_t hash = HashAt(key, block);
    std::array<uint16_t, 8> values;
    for (uint16_t& value : values) {
      value = table[hash & 0xFF];
      hash >>= 8;
    }
    std::memcpy(out, values.data(), kBlockBytes);
  }
};

struct NibblesBlock {
  uint64_t key;

  void operator()(uint64_t block, std::byte* out) const {
    const std::array<uint64_t, 2> hashes = {HashAt(key, 2 * block), HashAt(key, 2 * block + 1)};
    std::memcpy(out, hashes.data(), kBlockBytes);
  }
};

struct ScalesBlock {
  uint64_t key;

  void operator()(uint64_t block, std::byte* out) const {
    std::array<uint8_t, kBlockBytes> bytes;
    NibblesBlock{key}(block, reinterpret_cast<std::byte*>(bytes.data()));
    for (uint8_t& byte : bytes) byte = byte < kLargeScaleOf256 ? kLargeScale : kSmallScale;
    std::memcpy(out, bytes.data(), kBlockBytes);
  }
};

// Writes bytes [begin, end) of a tensor at `memory`, block by block, nothing beside them.
template <typename MakeBlock>
void Fill(std::byte* memory, int64_t begin, int64_t end, const MakeBlock& make) {
  while (begin < end) {
    const int64_t block = begin / kBlockBytes;
    const int64_t offset = begin - block * kBlockBytes;
    if (offset == 0 && end - begin >= kBlockBytes) {
      make(static_cast<uint64_t>(block), memory + begin);
      begin += kBlockBytes;
      continue;
    }
    std::array<std::byte, kBlockBytes> whole;
    make(static_cast<uint64_t>(block), whole.data());
    const int64_t bytes = std::min(kBlockBytes - offset, end - begin);
    std::memcpy(memory + begin, whole.data() + offset, static_cast<size_t>(bytes));
    begin += bytes;
  }
}

// False when it does not fit 63 bits.
bool BytesOf(TensorType type, const std::vector<int64_t>& shape, int64_t* bytes) {
  *bytes = BytesPerElement(type);
  return std::all_of(shape.begin(), shape.end(), [bytes](int64_t dimension) {
    return !__builtin_mul_overflow(*bytes, dimension, bytes);
  });
}

}  // namespace

RandomTensors::~RandomTensors() {
  for (const auto& [name, tensor] : tensors_) munmap(tensor.memory, tensor.view.bytes.size());
}

RandomTensors::Kind RandomTensors::KindOf(const std::string& name, TensorType type) {
  if (type == TensorType::kU8) return name.ends_with("scales") ? Kind::kScales : Kind::kBlocks;
  return name.ends_with("norm.weight") ? Kind::kAroundOne : Kind::kNormal;
}

const TensorView* RandomTensors::Want(const std::string& name, TensorType type,
                                      const std::vector<int64_t>& shape) {
  if (const auto found = tensors_.find(name); found != tensors_.end()) return &found->second.view;
  int64_t bytes = 0;
  void* memory = MAP_FAILED;
  if (BytesOf(type, shape, &bytes)) {
    memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (memory == MAP_FAILED) {
    status_.Update(
        absl::ResourceExhaustedError(fmt::format("{}: no address space for tensor {} of shape [{}]",
                                                 source_, name, fmt::join(shape, ", "))));
    return nullptr;
  }
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: fewer page faults
  Tensor& tensor = tensors_[name];
  tensor.kind = KindOf(name, type);
  tensor.key = KeyOf(seed_, name);
  tensor.memory = static_cast<std::byte*>(memory);
  tensor.view = {name, type, shape, {tensor.memory, static_cast<size_t>(bytes)}, source_};
  by_address_.emplace(tensor.memory, &tensor);
  return &tensor.view;
}

void RandomTensors::Generate(std::span<const std::byte> part) const {
  static const Table* const kNormal = new Table(MakeTable(0));
  static const Table* const kAroundOne = new Table(MakeTable(1));
  const Tensor& tensor = *std::prev(by_address_.upper_bound(part.data()))->second;
  const int64_t begin = part.data() - tensor.memory;
  const int64_t end = begin + static_cast<int64_t>(part.size());
  CONCLAVE_CHECK(begin >= 0 && end <= static_cast<int64_t>(tensor.view.bytes.size()));
  switch (tensor.kind) {
    case Kind::kNormal:
      return Fill(tensor.memory, begin, end, LevelsBlock{*kNormal, tensor.key});
    case Kind::kAroundOne:
      return Fill(tensor.memory, begin, end, LevelsBlock{*kAroundOne, tensor.key});
    case Kind::kBlocks:
      return Fill(tensor.memory, begin, end, NibblesBlock{tensor.key});
    case Kind::kScales:
      return Fill(tensor.memory, begin, end, ScalesBlock{tensor.key});
  }
}

uint64_t RandomTensors::Fingerprint() const {
  uint64_t hash = Mix(seed_);
  for (const auto& [name, tensor] : tensors_) {
    hash = Mix(hash ^ tensor.key);
    for (const int64_t dimension : tensor.view.shape) {
      hash = HashAt(hash, static_cast<uint64_t>(dimension));
    }
  }
  return hash;
}

}  // namespace conclave::model
