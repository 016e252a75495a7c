// f16 and bf16 as bits: conversions that any C++ compiler gets right, and that vectorise.
#pragma once

#include <stdint.h>
#include <string.h>

namespace simt {

inline uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
inline float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// To nearest, ties to even; NaN becomes 0x7fff, as on the card.
inline uint16_t half_from_float(float x) {
  uint32_t u = float_bits(x);
  uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  // Below 2^-14 halves are multiples of 2^-24, which is the spacing of floats from 0.5 on: let the
  // adder round.
  if (magnitude < 0x38800000u)
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
  magnitude += 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

inline uint16_t bfloat_from_float(float x) {
  uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// Without branches. A denormal gets an exponent one too high and the implied bit with it, which the
// subtraction takes away again, exactly.
inline float float_from_half(uint16_t h) {
  uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t normal = magnitude + (112u << 23);
  uint32_t special = magnitude | 0x7f800000u;
  uint32_t denormal = float_bits(bits_float(magnitude + (113u << 23)) - bits_float(113u << 23));
  uint32_t u = magnitude < (1u << 23) ? denormal : normal;
  u = magnitude >= (31u << 23) ? special : u;
  return bits_float(sign | u);
}

inline float float_from_bfloat(uint16_t b) { return bits_float(static_cast<uint32_t>(b) << 16); }

}  // namespace simt
