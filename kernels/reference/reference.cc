#include "kernels/reference/reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace conclave::kernels::reference {

double FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t ToBf16(double value) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

double Mxfp4Value(const uint8_t* blocks, const uint8_t* scales, int64_t index) {
  constexpr double kMagnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const uint8_t byte = blocks[index / 2];
  const int nibble = index % 2 == 0 ? byte & 15 : byte >> 4;
  const double magnitude = std::ldexp(kMagnitudes[nibble & 7], scales[index / 32] - 127);
  return nibble & 8 ? -magnitude : magnitude;
}

Vector Linear(int64_t rows, const std::function<double(int64_t row, int64_t col)>& weight,
              const Vector& bias, const Vector& x) {
  Vector out = bias.empty() ? Vector(rows) : bias;
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t col = 0; col < x.size(); ++col) {
      out[row] += weight(row, static_cast<int64_t>(col)) * x[col];
    }
  }
  return out;
}

Vector RmsNorm(const Vector& x, const Vector& weight, double epsilon) {
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
  return out;
}

Vector Rotate(const Vector& head, double position, const std::vector<float>& frequencies,
              double factor) {
  const size_t half = head.size() / 2;
  Vector out(head.size());
  for (size_t i = 0; i < half; ++i) {
    // The angle is a float32 product by definition.
    const double angle = static_cast<float>(position) * frequencies[i];
    const double c = std::cos(angle) * factor;
    const double s = std::sin(angle) * factor;
    out[i] = head[i] * c - head[i + half] * s;
    out[i + half] = head[i + half] * c + head[i] * s;
  }
  return out;
}

Vector Attend(const Vector& query, const std::vector<Vector>& keys,
              const std::vector<Vector>& values, double sink) {
  const double scale = 1 / std::sqrt(static_cast<double>(query.size()));
  double maximum = sink;
  Vector logits;
  for (const Vector& key : keys) {
    logits.push_back(scale * std::inner_product(query.begin(), query.end(), key.begin(), 0.0));
    maximum = std::max(maximum, logits.back());
  }
  double sum = std::exp(sink - maximum);
  for (double& logit : logits) sum += logit = std::exp(logit - maximum);
  Vector out(query.size());
  for (size_t j = 0; j < keys.size(); ++j) {
    for (size_t i = 0; i < out.size(); ++i) out[i] += logits[j] / sum * values[j][i];
  }
  return out;
}

std::vector<Choice> Route(const Vector& logits, int k) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<Choice> out;
  double sum = 0;
  for (int i = 0; i < k; ++i) {
    out.push_back({order[i], std::exp(logits[order[i]] - logits[order[0]])});
    sum += out.back().weight;
  }
  for (Choice& choice : out) choice.weight /= sum;
  return out;
}

double SwiGlu(double gate, double up, double limit, double alpha) {
  gate = std::min(gate, limit);
  up = std::min(std::max(up, -limit), limit);
  return (up + 1) * gate / (1 + std::exp(-alpha * gate));
}

}  // namespace conclave::kernels::reference
