#ifndef CONCLAVE_KERNELS_CUDA_EXPERTS_FIXTURE_H_
#define CONCLAVE_KERNELS_CUDA_EXPERTS_FIXTURE_H_

// What the experts' tests are made of: a rank's experts, what an exchange delivers, a layer that
// runs, and what should come out.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/experts_test_kernels.h"
#include "kernels/reference/random_data.h"
#include "kernels/reference/reference.h"

namespace conclave::kernels::cuda {

// One bf16 rounding is 0.17 %; sums kept in float32 are far better.
inline constexpr double kBf16Error = 0.0025;
inline constexpr double kFloatError = 1e-5;
inline constexpr uint16_t kPoison16 = 0x7FC1;      // a NaN
inline constexpr uint32_t kPoison32 = 0x7FC0DEAD;  // a NaN, also as two bf16

// Why no kernel can run here; empty where they can.
inline std::string NoGpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return "no CUDA device";
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  return major == 9 ? "" : "no Hopper GPU";
}

// Device memory with a host copy's contents.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    buffer_ = *AllocateDevice(size_ * sizeof(T));
    Write(values);
  }
  void Write(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  std::vector<T> Read() const {
    std::vector<T> out(size_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(out.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return out;
  }
  T* data() const { return static_cast<T*>(buffer_.memory.get()); }

 private:
  size_t size_;
  Buffer buffer_;
};

// Fast random bytes: the released shapes have tens of megabytes.
inline std::vector<uint8_t> RandomBytes(int64_t size, uint64_t seed) {
  std::vector<uint8_t> out((size + 7) / 8 * 8);
  for (int64_t i = 0; i < size; i += 8) {
    uint64_t z = seed += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    z ^= z >> 31;
    std::memcpy(out.data() + i, &z, 8);
  }
  out.resize(size);
  return out;
}

// The experts of a rank, as a checkpoint has them.
struct Experts {
  // Scales are drawn from [first_scale, first_scale + 5).
  Experts(const ExpertShape& the_shape, int count, bool is_dense, uint32_t seed, int first_scale)
      : shape(the_shape), num(count), dense(is_dense) {
    reference::RandomData random(seed);
    const int64_t rows = 2 * I() * num;
    const int64_t down_rows = H() * num;
    if (dense) {
      gate_up_dense = random.Bf16(rows * H(), 0.05);
      down_dense = random.Bf16(down_rows * I(), 0.05);
    } else {
      gate_up_blocks = RandomBytes(rows * H() / 2, seed + 1);
      down_blocks = RandomBytes(down_rows * I() / 2, seed + 2);
      gate_up_scales = Scales(rows * H() / 32, seed + 3, first_scale);
      down_scales = Scales(down_rows * I() / 32, seed + 4, first_scale);
    }
    gate_up_bias = random.Bf16(rows, 1);
    down_bias = random.Bf16(down_rows, 1);
  }

  static std::vector<uint8_t> Scales(int64_t size, uint64_t seed, int first) {
    std::vector<uint8_t> out = RandomBytes(size, seed);
    for (uint8_t& value : out) value = static_cast<uint8_t>(first + value % 5);
    return out;
  }

  int64_t H() const { return shape.hidden; }
  int64_t I() const { return shape.intermediate; }

  std::vector<HostExpert> Host() const {
    std::vector<HostExpert> out(num);
    for (int64_t e = 0; e < num; ++e) {
      if (dense) {
        out[e].gate_up_dense = gate_up_dense.data() + e * 2 * I() * H();
        out[e].down_dense = down_dense.data() + e * I() * H();
      } else {
        out[e].gate_up_blocks = gate_up_blocks.data() + e * 2 * I() * H() / 2;
        out[e].gate_up_scales = gate_up_scales.data() + e * 2 * I() * H() / 32;
        out[e].down_blocks = down_blocks.data() + e * I() * H() / 2;
        out[e].down_scales = down_scales.data() + e * I() * H() / 32;
      }
      out[e].gate_up_bias = gate_up_bias.data() + e * 2 * I();
      out[e].down_bias = down_bias.data() + e * H();
    }
    return out;
  }

  ExpertShape shape;
  int num;
  bool dense;
  std::vector<uint8_t> gate_up_blocks, gate_up_scales, down_blocks, down_scales;
  std::vector<uint16_t> gate_up_dense, down_dense, gate_up_bias, down_bias;
};

inline std::unique_ptr<CudaExpertWeights> Load(const Experts& experts) {
  base::ThreadPool pool(2);
  ExpertStaging staging;
  auto loaded = LoadExpertWeights(experts.shape, experts.Host(), {}, pool, staging);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return *std::move(loaded);
}

// float64 results of pairs, from weights in the checkpoint's layout.
class Reference {
 public:
  explicit Reference(const Experts& experts)
      : experts_(experts),
        blocks_{OnDevice(Filled(experts.gate_up_blocks)), OnDevice(Filled(experts.down_blocks))},
        scales_{OnDevice(Filled(experts.gate_up_scales)), OnDevice(Filled(experts.down_scales))},
        dense_{OnDevice(Filled(experts.gate_up_dense)), OnDevice(Filled(experts.down_dense))},
        bias_{OnDevice(experts.gate_up_bias), OnDevice(experts.down_bias)} {}

  // [pairs, rows] of gate_up (0) or down (1).
  std::vector<double> Product(int which, const std::vector<int32_t>& expert,
                              const std::vector<const uint16_t*>& input) const {
    ReferenceMatrix matrix;
    matrix.rows = which == 0 ? 2 * experts_.I() : experts_.H();
    matrix.cols = which == 0 ? experts_.H() : experts_.I();
    matrix.bias = bias_[which].data();
    if (experts_.dense) {
      matrix.dense = dense_[which].data();
    } else {
      matrix.blocks = blocks_[which].data();
      matrix.scales = scales_[which].data();
    }
    const OnDevice expert_device(expert);
    const OnDevice input_device(input);
    const OnDevice out(std::vector<double>(expert.size() * matrix.rows, std::nan("")));
    ReferenceProduct(matrix, expert_device.data(), input_device.data(),
                     static_cast<int>(expert.size()), out.data());
    return out.Read();
  }

 private:
  template <typename T>
  static std::vector<T> Filled(const std::vector<T>& values) {
    return values.empty() ? std::vector<T>(1) : values;
  }

  const Experts& experts_;
  OnDevice<uint8_t> blocks_[2], scales_[2];
  OnDevice<uint16_t> dense_[2], bias_[2];
};

struct Case {
  std::string name = {};
  int hidden = 96;
  int intermediate = 64;
  int num_experts = 16;
  int num_local = 16;
  std::vector<int> counts = {};  // of copies, by source
  bool dense = false;
  bool one_expert = false;  // every copy's first choice is the same
  int first_scale = 118;
};

// A received exchange buffer: for every source a header slot with the count, then its copies, all
// else NaN.
class Exchange {
 public:
  Exchange(const Case& test, const ExpertShape& shape, uint32_t seed)
      : k_(shape.experts_per_token),
        layout_(MakeSlotLayout(DType::kBf16, shape.hidden, k_)),
        counts_(test.counts) {
    reference::RandomData random(seed);
    room_ = *std::max_element(counts_.begin(), counts_.end()) + 2;
    const int64_t slots = int64_t{sources()} * (1 + room_);
    memory_.assign(slots * layout_.slot_bytes / 4, kPoison32);
    for (int s = 0; s < sources(); ++s) {
      first_slot_.push_back(s * (1 + room_) + 1);
      first_output_.push_back(s * room_);
      SetCount(s, counts_[s]);
      for (int i = 0; i < counts_[s]; ++i) WriteSlot(test, random, s, i, shape.hidden);
    }
    // Experts of this rank: every other id first, so that local order is not global order.
    local_index_.assign(test.num_experts, -1);
    for (int i = 0; i < test.num_local; ++i) {
      local_index_[(i * 7 + 3) % test.num_experts] = i;
    }
    device_ = std::make_unique<OnDevice<uint32_t>>(memory_);
    local_device_ = std::make_unique<OnDevice<int32_t>>(local_index_);
    load_.assign(std::max(test.num_local, 1), 0);
    load_device_ = std::make_unique<OnDevice<uint64_t>>(load_);
  }

  int sources() const { return static_cast<int>(counts_.size()); }
  int64_t rows() const { return int64_t{sources()} * room_; }
  int count(int source) const { return counts_[source]; }
  int32_t output_row(int source, int i) const { return first_output_[source] + i; }
  int32_t id(int source, int i, int j) const {
    return Slot<int32_t>(source, i, layout_.expert_ids_offset)[j];
  }
  int32_t local(int source, int i, int j) const {
    const int32_t global = id(source, i, j);
    return global < 0 ? -1 : local_index_[global];
  }
  float weight(int source, int i, int j) const {
    return Slot<float>(source, i, layout_.weights_offset)[j];
  }
  const uint16_t* device_hidden(int source, int i) const {
    return reinterpret_cast<const uint16_t*>(reinterpret_cast<const std::byte*>(device_->data()) +
                                             (first_slot_[source] + i) * layout_.slot_bytes +
                                             layout_.hidden_offset);
  }
  // Pairs counted on the device since the last call.
  std::vector<uint64_t> TakeLoad() {
    std::vector<uint64_t> taken = load_device_->Read();
    load_device_->Write(load_);
    return taken;
  }
  // Pairs of each local expert among the valid copies.
  std::vector<uint64_t> ExpectedLoad() const {
    std::vector<uint64_t> load = load_;
    for (int s = 0; s < sources(); ++s) {
      for (int i = 0; i < counts_[s]; ++i) {
        for (int j = 0; j < k_; ++j) {
          if (const int32_t expert = local(s, i, j); expert >= 0) ++load[expert];
        }
      }
    }
    return load;
  }
  bool Unchanged() const { return device_->Read() == memory_; }
  // As if fewer copies had come.
  void Shrink(int source, int count) {
    counts_[source] = count;
    SetCount(source, count);
    device_->Write(memory_);
  }

  ExpertTokens Tokens() const {
    const auto* bytes = reinterpret_cast<const std::byte*>(device_->data());
    ExpertTokens out;
    out.num_sources = sources();
    out.max_copies = sources() * room_;
    out.counts = reinterpret_cast<const int32_t*>(bytes);
    out.counts_stride = (1 + room_) * layout_.slot_bytes;
    out.first_slot = first_slot_.data();
    out.first_output = first_output_.data();
    out.hidden = bytes + layout_.hidden_offset;
    out.expert_ids = bytes + layout_.expert_ids_offset;
    out.weights = bytes + layout_.weights_offset;
    out.hidden_stride = out.expert_ids_stride = out.weights_stride = layout_.slot_bytes;
    out.local_index = local_device_->data();
    out.load = load_device_->data();
    return out;
  }

 private:
  std::byte* Bytes() { return reinterpret_cast<std::byte*>(memory_.data()); }
  template <typename T>
  const T* Slot(int source, int i, int64_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const std::byte*>(memory_.data()) +
                                      (first_slot_[source] + i) * layout_.slot_bytes + offset);
  }
  void SetCount(int source, int count) {
    const int32_t value = count;
    std::memcpy(Bytes() + source * (1 + room_) * layout_.slot_bytes, &value, sizeof(value));
  }
  void WriteSlot(const Case& test, reference::RandomData& random, int source, int i, int hidden) {
    std::byte* slot = Bytes() + (first_slot_[source] + i) * layout_.slot_bytes;
    const std::vector<uint16_t> values = random.Bf16(hidden, 1);
    std::memcpy(slot + layout_.hidden_offset, values.data(), hidden * 2);
    auto* ids = reinterpret_cast<int32_t*>(slot + layout_.expert_ids_offset);
    auto* weights = reinterpret_cast<float*>(slot + layout_.weights_offset);
    const int first = test.one_expert ? 3 : random.Below(test.num_experts);
    const int step = 1 + 2 * random.Below(2);
    for (int j = 0; j < k_; ++j) {
      ids[j] = (first + (k_ - j) * step) % test.num_experts;
      if (j == 0) ids[j] = first;
      weights[j] = static_cast<float>(0.1 + 0.2 * j);
      if (random.Below(9) == 0) ids[j] = -1;  // another rank's
    }
  }

  int k_;
  SlotLayout layout_;
  std::vector<int> counts_;
  int room_ = 0;
  std::vector<uint32_t> memory_;
  std::vector<int32_t> first_slot_, first_output_, local_index_;
  std::unique_ptr<OnDevice<uint32_t>> device_;
  std::unique_ptr<OnDevice<int32_t>> local_device_;
  std::vector<uint64_t> load_;  // zeros
  std::unique_ptr<OnDevice<uint64_t>> load_device_;
};

inline ExpertShape ShapeOf(const Case& test) {
  return {.hidden = test.hidden,
          .intermediate = test.intermediate,
          .num_experts = test.num_experts,
          .experts_per_token = 4,
          .swiglu_limit = 7,
          .swiglu_alpha = 1.702f};
}

inline ExpertPlan Stream(int token_blocks, int warp_chunks, int stages, int blocks) {
  ExpertPlan plan;
  plan.kernel = ExpertPlan::Kernel::kStream;
  plan.gate_up = plan.down = {.token_blocks = token_blocks,
                              .warp_chunks = warp_chunks,
                              .stages = stages,
                              .blocks_per_multiprocessor = blocks,
                              .interleave = 1 + stages % 4,
                              .prefetch = stages % 5};
  return plan;
}
inline ExpertPlan Tile() {
  ExpertPlan plan;
  plan.kernel = ExpertPlan::Kernel::kTile;
  return plan;
}

struct Result {
  std::vector<uint16_t> activations;
  std::vector<uint32_t> partial;  // float bits
};

class Layer {
 public:
  Layer(const ExpertShape& shape, const Exchange& exchange, const CudaExpertWeights& weights)
      : shape_(shape), exchange_(exchange), weights_(weights) {
    const int64_t rows = exchange.rows();
    poison_.activations.assign(rows * shape.experts_per_token * shape.intermediate, kPoison16);
    poison_.partial.assign(rows * shape.hidden, kPoison32);
    activations_ = std::make_unique<OnDevice<uint16_t>>(poison_.activations);
    partial_ = std::make_unique<OnDevice<uint32_t>>(poison_.partial);
    auto made = ExpertKernels::Make(shape, static_cast<int>(rows));
    EXPECT_TRUE(made.ok()) << made.status();
    kernels_ = *std::move(made);
    EXPECT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
  }
  ~Layer() { cudaStreamDestroy(stream_); }

  ExpertKernels& kernels() { return *kernels_; }
  cudaStream_t stream() const { return stream_; }
  void Poison() {
    activations_->Write(poison_.activations);
    partial_->Write(poison_.partial);
  }
  void Enqueue() {
    const Tensor activations = {activations_->data(), DType::kBf16,
                                exchange_.rows() * shape_.experts_per_token, shape_.intermediate};
    const Tensor partial = {partial_->data(), DType::kF32, exchange_.rows(), shape_.hidden};
    const ExpertTokens tokens = exchange_.Tokens();
    kernels_->GateUp(weights_, tokens, activations, stream_);
    kernels_->Down(weights_, tokens, activations, partial, stream_);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
  // What x becomes if the sums are added to it at once, and one after the other.
  std::vector<uint16_t> Residual(std::vector<uint16_t> x) {
    OnDevice<uint16_t> device(x);
    const Tensor activations = {activations_->data(), DType::kBf16,
                                exchange_.rows() * shape_.experts_per_token, shape_.intermediate};
    const ExpertTokens tokens = exchange_.Tokens();
    kernels_->GateUp(weights_, tokens, activations, stream_);
    kernels_->DownResidual(weights_, tokens, activations,
                           {device.data(), DType::kBf16, exchange_.rows(), shape_.hidden}, stream_);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return device.Read();
  }
  Result Results() const { return {activations_->Read(), partial_->Read()}; }
  Result Run() {
    Poison();
    Enqueue();
    return Results();
  }
  const uint16_t* device_activations() const { return activations_->data(); }

 private:
  const ExpertShape shape_;
  const Exchange& exchange_;
  const CudaExpertWeights& weights_;
  Result poison_;
  std::unique_ptr<OnDevice<uint16_t>> activations_;
  std::unique_ptr<OnDevice<uint32_t>> partial_;
  std::unique_ptr<ExpertKernels> kernels_;
  cudaStream_t stream_ = nullptr;
};

// Root mean squares of the reference and of the difference from it.
struct Error {
  double difference = 0;
  double size = 0;
  void Add(double actual, double expected) {
    difference += (actual - expected) * (actual - expected);
    size += expected * expected;
  }
  double Relative() const { return size == 0 ? 0 : std::sqrt(difference / size); }
};

inline float AsFloat(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// What the results should be, worked out once for all kernels on the same inputs.
class Expected {
 public:
  Expected(const ExpertShape& shape, const Exchange& exchange, const Reference& reference)
      : shape_(shape), exchange_(exchange), reference_(reference) {
    std::vector<const uint16_t*> input;
    for (int s = 0; s < exchange.sources(); ++s) {
      for (int i = 0; i < exchange.count(s); ++i) {
        for (int j = 0; j < shape.experts_per_token; ++j) {
          expert_.push_back(exchange.local(s, i, j));
          input.push_back(exchange.device_hidden(s, i));
        }
      }
    }
    gate_up_ = reference.Product(0, expert_, input);
  }

  void Check(const Result& result, const uint16_t* device_activations, bool float_results) const {
    CheckActivations(result);
    CheckPartial(result, device_activations, float_results);
  }

 private:
  void CheckActivations(const Result& result) const {
    const int64_t I = shape_.intermediate;
    std::vector<bool> written(result.activations.size() / I);
    Error error;
    int pair = 0;
    for (int s = 0; s < exchange_.sources(); ++s) {
      for (int i = 0; i < exchange_.count(s); ++i) {
        for (int j = 0; j < shape_.experts_per_token; ++j, ++pair) {
          if (expert_[pair] < 0) continue;
          const int64_t row = int64_t{exchange_.output_row(s, i)} * shape_.experts_per_token + j;
          written[row] = true;
          const double* u = gate_up_.data() + int64_t{pair} * 2 * I;
          for (int64_t c = 0; c < I; ++c) {
            error.Add(reference::FromBf16(result.activations[row * I + c]),
                      reference::SwiGlu(u[2 * c], u[2 * c + 1], shape_.swiglu_limit,
                                        shape_.swiglu_alpha));
          }
        }
      }
    }
    EXPECT_LT(error.Relative(), kBf16Error);
    for (size_t row = 0; row < written.size(); ++row) {
      if (written[row]) continue;
      for (int64_t c = 0; c < I; ++c) {
        ASSERT_EQ(result.activations[row * I + c], kPoison16) << "choice " << row;
      }
    }
  }

  // From the activations that the kernels themselves computed.
  void CheckPartial(const Result& result, const uint16_t* device_activations,
                    bool float_results) const {
    const int64_t H = shape_.hidden;
    const int k = shape_.experts_per_token;
    std::vector<const uint16_t*> input;
    for (int s = 0; s < exchange_.sources(); ++s) {
      for (int i = 0; i < exchange_.count(s); ++i) {
        for (int j = 0; j < k; ++j) {
          input.push_back(device_activations +
                          (int64_t{exchange_.output_row(s, i)} * k + j) * shape_.intermediate);
        }
      }
    }
    const std::vector<double> y = reference_.Product(1, expert_, input);
    std::vector<bool> written(exchange_.rows());
    Error error;
    int copy = 0;
    for (int s = 0; s < exchange_.sources(); ++s) {
      for (int i = 0; i < exchange_.count(s); ++i, ++copy) {
        const int64_t row = exchange_.output_row(s, i);
        written[row] = true;
        for (int64_t c = 0; c < H; ++c) {
          double sum = 0;
          for (int j = 0; j < k; ++j) {
            const int64_t pair = int64_t{copy} * k + j;
            if (expert_[pair] >= 0) sum += double{exchange_.weight(s, i, j)} * y[pair * H + c];
          }
          error.Add(AsFloat(result.partial[row * H + c]), sum);
        }
      }
    }
    EXPECT_LT(error.Relative(), float_results ? kFloatError : kBf16Error);
    for (int64_t row = 0; row < exchange_.rows(); ++row) {
      if (written[row]) continue;
      for (int64_t c = 0; c < H; ++c) {
        ASSERT_EQ(result.partial[row * H + c], kPoison32) << "padding row " << row;
      }
    }
  }

  const ExpertShape shape_;
  const Exchange& exchange_;
  const Reference& reference_;
  std::vector<int32_t> expert_;
  std::vector<double> gate_up_;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERTS_FIXTURE_H_
