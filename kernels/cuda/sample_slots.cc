#include "kernels/cuda/sample_slots.h"

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/sample.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int64_t kListBytes = kMaxSlotTokens * int64_t{sizeof(int32_t)};
static_assert(sizeof(int32_t) == sizeof(float));

int64_t Align(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// From pageable memory: the copy has been taken when the call returns.
template <typename T>
absl::Status Copy(std::span<const T> host, const T* device, cudaStream_t stream) {
  if (host.empty()) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(const_cast<T*>(device), host.data(), host.size_bytes(),
                                  cudaMemcpyHostToDevice, stream),
                  "SetSlotSampling");
}

}  // namespace

SampleSlots::SampleSlots(int max_sequences, int vocabulary)
    : vocabulary_(vocabulary), slots_(max_sequences), memory_(max_sequences) {}

absl::StatusOr<std::unique_ptr<SampleSlots>> SampleSlots::Create(int max_sequences,
                                                                 int vocabulary) {
  std::unique_ptr<SampleSlots> out(new SampleSlots(max_sequences, vocabulary));
  ASSIGN_OR_RETURN(out->table_,
                   AllocateDevice(max_sequences * static_cast<int64_t>(sizeof(SampleSlot))));
  RETURN_IF_ERROR(ToStatus(cudaMemset(out->table_.memory.get(), 0, out->table_.bytes),
                           "zeroing the slots of sampling"));
  return out;
}

absl::Status SampleSlots::Allocate(int slot) {
  const int64_t counts = Align(vocabulary_ * int64_t{sizeof(TokenCount)});
  const int64_t adjusted = FitsSharedMemory(vocabulary_) ? 0 : vocabulary_ * int64_t{sizeof(float)};
  ASSIGN_OR_RETURN(memory_[slot], AllocateDevice(3 * kListBytes + counts + adjusted));
  auto* at = static_cast<std::byte*>(memory_[slot].memory.get());
  SampleSlot& to = slots_[slot];
  to.bias_tokens = reinterpret_cast<int32_t*>(at);
  to.biases = reinterpret_cast<float*>(at + kListBytes);
  to.end_tokens = reinterpret_cast<int32_t*>(at + 2 * kListBytes);
  to.counts = reinterpret_cast<TokenCount*>(at + 3 * kListBytes);
  if (adjusted > 0) to.adjusted = reinterpret_cast<float*>(at + 3 * kListBytes + counts);
  return absl::OkStatus();
}

absl::Status SampleSlots::Set(int slot, const SlotSampling& sampling, cudaStream_t stream) {
  CONCLAVE_CHECK(slot >= 0 && slot < static_cast<int>(slots_.size()));
  CONCLAVE_CHECK(sampling.bias_tokens.size() == sampling.biases.size());
  CONCLAVE_CHECK(sampling.biases.size() <= kMaxSlotTokens);
  CONCLAVE_CHECK(sampling.end_tokens.size() <= kMaxSlotTokens);
  if (memory_[slot].memory == nullptr) RETURN_IF_ERROR(Allocate(slot));
  SampleSlot& to = slots_[slot];
  to.num_biases = static_cast<int32_t>(sampling.biases.size());
  to.num_end_tokens = static_cast<int32_t>(sampling.end_tokens.size());
  RETURN_IF_ERROR(Copy(sampling.bias_tokens, to.bias_tokens, stream));
  RETURN_IF_ERROR(Copy(sampling.biases, to.biases, stream));
  RETURN_IF_ERROR(Copy(sampling.end_tokens, to.end_tokens, stream));
  if (sampling.counted) RETURN_IF_ERROR(Count(sampling, to.counts, stream));
  return Copy(std::span<const SampleSlot>(&to, 1), table() + slot, stream);
}

// On the host, and then all of the vocabulary in one copy: a history repeats few tokens often.
absl::Status SampleSlots::Count(const SlotSampling& sampling, TokenCount* counts,
                                cudaStream_t stream) {
  host_counts_.assign(vocabulary_, 0);
  for (size_t i = 0; i < sampling.history.size(); ++i) {
    TokenCount& count = host_counts_.at(sampling.history[i]);
    count = i < static_cast<size_t>(sampling.prompt_tokens)
                ? static_cast<TokenCount>(count | kInPrompt)
                : CountGenerated(count);
  }
  return Copy(std::span<const TokenCount>(host_counts_), counts, stream);
}

}  // namespace conclave::kernels::cuda
