// Normal numbers that are the same to the bit on every device: Philox 4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", 2011), then Box-Muller with its own series.
//
// Every f32 operation below is an addition, a multiplication, a division or a square root, rounded
// as IEEE 754 says, in the order of src/ops/denoise_step/noise.rs. A file that includes this one is
// compiled without fused multiply-add (`// nvcc: -fmad=false`).
#pragma once

#include <kernel.cuh>

struct Words {
  uint32_t data[4];
};

__device__ __forceinline__ Words philox4x32_10(Words c, uint32_t key0, uint32_t key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    uint32_t a_high = __umulhi(c.data[0], 0xD2511F53u), a_low = c.data[0] * 0xD2511F53u;
    uint32_t b_high = __umulhi(c.data[2], 0xCD9E8D57u), b_low = c.data[2] * 0xCD9E8D57u;
    c = {{b_high ^ c.data[1] ^ key0, b_low, a_high ^ c.data[3] ^ key1, a_low}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// ln u for u in [2^-33, 1]. u = m 2^e with m in [sqrt 1/2, sqrt 2), and
// ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
__device__ __forceinline__ float exact_ln(float u) {
  constexpr int kSqrtHalf = 0x3F3504F3;
  int bits = __float_as_int(u);
  int exponent = (bits - kSqrtHalf) >> 23;
  float m = __int_as_float(bits - exponent * (1 << 23));
  float s = __fdiv_rn(m - 1.0f, m + 1.0f);
  float z = s * s;
  float series = (((z * (1.0f / 9.0f) + 1.0f / 7.0f) * z + 1.0f / 5.0f) * z + 1.0f / 3.0f) * z;
  s = s + s;
  return static_cast<float>(exponent) * 0.693147180559945309f + (s + s * series);
}

// Sine and cosine of word / 2^32 turns: the nearest quarter turn is taken off exactly, and the
// rest, at most an eighth, goes into the Taylor series.
__device__ __forceinline__ void exact_sincos(uint32_t word, float& sine, float& cosine) {
  uint32_t quarter = (word + (1u << 29)) >> 30;
  int rest = static_cast<int>(word - (quarter << 30));
  float x = static_cast<float>(rest) * (6.28318530717958648f / 4294967296.0f);
  float z = x * x;
  float s = (((z * (1.0f / 362880.0f) - 1.0f / 5040.0f) * z + 1.0f / 120.0f) * z - 1.0f / 6.0f) * z;
  float c = (((z * (1.0f / 40320.0f) - 1.0f / 720.0f) * z + 1.0f / 24.0f) * z - 0.5f) * z;
  s = x + x * s;
  c = 1.0f + c;
  sine = quarter & 1 ? c : s;
  cosine = quarter & 1 ? s : c;
  if (quarter & 2) sine = -sine;
  if ((quarter + 1) & 2) cosine = -cosine;
}

// Two independent normal numbers of two words.
__device__ __forceinline__ void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
  float u = static_cast<float>(a) * (1.0f / 4294967296.0f) + 1.0f / 8589934592.0f;
  float radius = __fsqrt_rn(-2.0f * exact_ln(u));
  float sine, cosine;
  exact_sincos(b, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

// The normal numbers of elements 4 * group to 4 * group + 3 of a draw that starts at `offset`.
__device__ __forceinline__ void normals(uint64_t seed, uint64_t offset, uint64_t group, float* out) {
  uint64_t counter = offset + group;
  Words words = {{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
  words = philox4x32_10(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  box_muller(words.data[0], words.data[1], out[0], out[1]);
  box_muller(words.data[2], words.data[3], out[2], out[3]);
}
