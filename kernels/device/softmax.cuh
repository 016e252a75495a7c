// One row of a softmax in base 2 that grows as logits come, without ever seeing them all.
#pragma once

#include <ptx.cuh>

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// What is known of a row: weights so far are 2^(logit - max). A NaN among the logits passes by the
// maximum and shows in the sum.
struct SoftmaxRow {
  float max = -INFINITY;
  float sum = 0.0f;  // of the weights that this lane made

  // What weights are to be taken against. Where nothing is above -inf yet this is 0, because
  // -inf - -inf is NaN.
  __device__ __forceinline__ float base() const { return max == -INFINITY ? 0.0f : max; }

  // Takes in the maximum of new logits; what sums so far are to be multiplied by.
  __device__ __forceinline__ float raise(float new_max) {
    float old = max;
    max = fmaxf(max, new_max);
    return ex2(old - base());
  }

  // From here on the maximum is rounded to whole numbers, and a product with a factor that is not rounded
  // may lie any way above or below it: 2^100 times too much weight, or none.
  __device__ __forceinline__ bool coarse() const { return fabsf(base()) >= 0x1p24f; }
};

// Exponents of weights: factor * s + offset.
struct Exponent {
  float factor, offset;
};

// Of logits s * by + bias, row r of an accumulator. Those of a coarse row are rounded as its maximum was,
// in place.
template <int N>
__device__ __forceinline__ Exponent exponent(float (&s)[N][4], int r, const SoftmaxRow& row, float by, float bias) {
  if (!row.coarse()) return {by, bias - row.base()};
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int i = 2 * r; i < 2 * r + 2; i++) s[n][i] = fmaf(s[n][i], by, bias) - row.base();
  }
  return {1.0f, 0.0f};
}
