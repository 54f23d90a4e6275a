#include "model/bpe_vocab.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"

namespace conclave::model {
namespace {

constexpr size_t kMaxInline = 7;
constexpr uint64_t kHashed = uint64_t{0xFF} << 56;  // top byte of a key that is a hash

uint64_t Load(const char* p, size_t bytes) {
  uint64_t word = 0;
  std::memcpy(&word, p, bytes);
  return word;
}

uint64_t Mix(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t Hash(std::string_view bytes) {
  uint64_t hash = bytes.size();
  size_t at = 0;
  for (; at + 8 < bytes.size(); at += 8) {
    hash = Mix(hash ^ Load(bytes.data() + at, 8) ^ 0x8EBC6AF09C88C6E3u, 0x589965CC75374CC3u);
  }
  const uint64_t tail = Load(bytes.data() + bytes.size() - 8, 8);  // may overlap
  return Mix(hash ^ tail ^ 0x1D8E4E27C47D124Fu, 0xEB44ACCAB455D165u);
}

// Up to 7 bytes: the bytes and, on top, their number. More: a hash. Never 0 for a string.
uint64_t KeyOf(std::string_view bytes) {
  const size_t n = bytes.size();
  if (n > kMaxInline) return Hash(bytes) | kHashed;
  uint64_t word;
  if (n >= 4) {
    word = Load(bytes.data(), 4) | Load(bytes.data() + n - 4, 4) << ((n - 4) * 8);
  } else {
    word = static_cast<uint8_t>(bytes[0]) |
           static_cast<uint64_t>(static_cast<uint8_t>(bytes[n / 2])) << (n / 2 * 8) |
           static_cast<uint64_t>(static_cast<uint8_t>(bytes[n - 1])) << ((n - 1) * 8);
  }
  return word | static_cast<uint64_t>(n) << 56;
}

}  // namespace

absl::Status BpeVocab::AddBytes(std::string_view bytes, int64_t id) {
  if (id < 0 || id > kMaxTokenId) {
    return absl::InvalidArgumentError(
        fmt::format("token id {} is not within 0..{}", id, kMaxTokenId));
  }
  if (bytes.empty()) return absl::InvalidArgumentError(fmt::format("token {} is empty", id));
  if (pool_.size() + bytes.size() > UINT32_MAX) {
    return absl::InvalidArgumentError("the vocabulary's entries exceed 4 GiB");
  }
  const auto index = static_cast<size_t>(id);
  if (index >= spans_.size()) spans_.resize(index + 1);
  if (spans_[index].length != 0) {
    return absl::InvalidArgumentError(fmt::format("token id {} is used twice", id));
  }
  spans_[index] = {static_cast<uint32_t>(pool_.size()), static_cast<uint32_t>(bytes.size())};
  pool_.append(bytes);
  return absl::OkStatus();
}

absl::Status BpeVocab::Add(std::string_view bytes, int64_t id) {
  if (!bytes.empty() && Find(bytes) >= 0) {
    return absl::InvalidArgumentError(
        fmt::format("tokens {} and {} have the same bytes", Find(bytes), id));
  }
  if (absl::Status status = AddBytes(bytes, id); !status.ok()) return status;
  if (used_ * 2 >= slots_.size()) Grow();
  const uint64_t key = KeyOf(bytes);
  slots_[Probe(key, bytes)] = {key, static_cast<int>(id)};
  ++used_;
  longest_ = std::max(longest_, bytes.size());
  return absl::OkStatus();
}

absl::Status BpeVocab::AddHidden(std::string_view bytes, int64_t id) { return AddBytes(bytes, id); }

size_t BpeVocab::Probe(uint64_t key, std::string_view bytes) const {
  const size_t mask = slots_.size() - 1;
  size_t at = SlotOf(key);
  while (slots_[at].key != 0) {
    if (slots_[at].key == key && (key < kHashed || Bytes(slots_[at].id) == bytes)) break;
    at = (at + 1) & mask;
  }
  return at;
}

int BpeVocab::Find(std::string_view bytes) const {
  if (bytes.empty() || bytes.size() > longest_) return -1;
  const uint64_t key = KeyOf(bytes);
  const Slot& slot = slots_[Probe(key, bytes)];
  return slot.key == 0 ? -1 : slot.id;
}

std::string_view BpeVocab::Bytes(int id) const {
  if (id < 0 || static_cast<size_t>(id) >= spans_.size()) return {};
  const Span span = spans_[static_cast<size_t>(id)];
  return std::string_view(pool_.data() + span.offset, span.length);
}

void BpeVocab::Grow() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2));
  --shift_;
  for (const Slot& slot : old) {
    if (slot.key != 0) slots_[Probe(slot.key, Bytes(slot.id))] = slot;
  }
}

}  // namespace conclave::model
