#ifndef CONCLAVE_KERNELS_REFERENCE_REFERENCE_H_
#define CONCLAVE_KERNELS_REFERENCE_REFERENCE_H_

// Every op of gpt-oss in float64, one scalar at a time, straight from the model's definition: what
// the tests of the backends compare with. Never linked into a program.

#include <cstdint>
#include <functional>
#include <vector>

namespace conclave::kernels::reference {

using Vector = std::vector<double>;

double FromBf16(uint16_t bits);
uint16_t ToBf16(double value);  // nearest, ties to even

// Value `index` of an MXFP4 row: low nibble first, 32 values to a scale byte.
double Mxfp4Value(const uint8_t* blocks, const uint8_t* scales, int64_t index);

// y[r] = bias[r] + sum_c weight(r, c) x[c]; an empty bias is none.
Vector Linear(int64_t rows, const std::function<double(int64_t row, int64_t col)>& weight,
              const Vector& bias, const Vector& x);

Vector RmsNorm(const Vector& x, const Vector& weight, double epsilon);

// Half-split rotation by position * frequency[i], cos and sin times `factor`.
Vector Rotate(const Vector& head, double position, const std::vector<float>& frequencies,
              double factor);

// Sink softmax of one query head over keys and values in order of position.
Vector Attend(const Vector& query, const std::vector<Vector>& keys,
              const std::vector<Vector>& values, double sink);

struct Choice {
  int expert;
  double weight;
};
// The k largest, ties to the lower id; softmax over them.
std::vector<Choice> Route(const Vector& logits, int k);

double SwiGlu(double gate, double up, double limit, double alpha);

}  // namespace conclave::kernels::reference

#endif  // CONCLAVE_KERNELS_REFERENCE_REFERENCE_H_
