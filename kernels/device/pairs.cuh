// Sixteen bytes of a row as four words: what a lane loads, stores and passes on. Elements come out of
// them two at a time, the pairs that rotary embedding turns. (A vector of 16-bit elements that is loaded
// under a condition would be taken apart and put together again by two instructions an element.)
#pragma once

#include <types.cuh>

using Words = Vec<uint32_t, 4>;

template <class T>
__device__ __forceinline__ Words load_words(const T* p) {
  return load_vec<4>(reinterpret_cast<const uint32_t*>(p));
}
template <class T>
__device__ __forceinline__ void store_words(T* p, const Words& words) {
  store_vec(reinterpret_cast<uint32_t*>(p), words);
}

// Pairs of `T` in 16 bytes.
template <class T>
constexpr int kPairs16 = kLane16<T> / 2;

// Pair `i` of the words, in f32.
template <class T>
__device__ __forceinline__ float2 unpack_pair(const Words& words, int i);
template <>
__device__ __forceinline__ float2 unpack_pair<float>(const Words& words, int i) {
  return {__uint_as_float(words[2 * i]), __uint_as_float(words[2 * i + 1])};
}
template <>
__device__ __forceinline__ float2 unpack_pair<bf16>(const Words& words, int i) {
  return {__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack_pair<f16>(const Words& words, int i) {
  __half2 pair;
  memcpy(&pair, &words[i], sizeof pair);
  return __half22float2(pair);
}

// Rounds (x, y) into pair `i`.
template <class T>
__device__ __forceinline__ void pack_pair(Words& words, int i, float x, float y);
template <>
__device__ __forceinline__ void pack_pair<float>(Words& words, int i, float x, float y) {
  words[2 * i] = __float_as_uint(x);
  words[2 * i + 1] = __float_as_uint(y);
}
template <>
__device__ __forceinline__ void pack_pair<bf16>(Words& words, int i, float x, float y) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  memcpy(&words[i], &pair, sizeof pair);
}
template <>
__device__ __forceinline__ void pack_pair<f16>(Words& words, int i, float x, float y) {
  __half2 pair = __floats2half2_rn(x, y);
  memcpy(&words[i], &pair, sizeof pair);
}
