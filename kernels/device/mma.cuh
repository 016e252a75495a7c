// Operands of mma_m16n8k16: swizzled tiles in shared memory, fragments of them, packing.
#pragma once

#include <ptx.cuh>
#include <types.cuh>

// A tile of rows of `Dim` 16-bit elements in shared memory, its 16-byte chunks swapped inside each row
// so that eight rows of one column of chunks, what ldmatrix reads at a time, lie in different banks.
template <class T, int Rows, int Dim>
struct alignas(128) Tile16 {
  static_assert(sizeof(T) == 2 && Dim % 64 == 0, "rows of whole 128-byte lines");
  Shared<T, Rows * Dim> data;
};

// Byte offset of a chunk of 8 elements in a Tile16.
template <int Dim>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * Dim * 2 + ((chunk ^ (row % 8)) << 4));
}

// A: rows row..row+15, columns 16 k..16 k + 15.
template <int Dim>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int k) {
  int lane = threadIdx.x % 32;
  ldmatrix_x4(a, tile + chunk_offset<Dim>(row + lane % 16, 2 * k + lane / 16));
}

// B = tile^T for two neighbours n: the tile's rows row..row+15 are columns of B, the tile's columns
// 16 k..16 k + 15 its rows. b[0], b[1] belong to the first eight.
template <int Dim>
__device__ __forceinline__ void load_b_of_rows(uint32_t (&b)[4], uint32_t tile, int row, int k) {
  int lane = threadIdx.x % 32;
  ldmatrix_x4(b, tile + chunk_offset<Dim>(row + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
}

// B = tile for two neighbours n: rows row..row+15 and columns 16 n..16 n + 15 of both.
template <int Dim>
__device__ __forceinline__ void load_b_of_columns(uint32_t (&b)[4], uint32_t tile, int row, int n) {
  int lane = threadIdx.x % 32;
  ldmatrix_x4_trans(b, tile + chunk_offset<Dim>(row + lane % 16, 2 * n + lane / 16));
}

// Two neighbours of a fragment in one register, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float x, float y);
template <>
__device__ __forceinline__ uint32_t pack<f16>(float x, float y) {
  __half2 pair = __floats2half2_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float x, float y) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpack<f16>(uint32_t bits) {
  __half2 pair;
  memcpy(&pair, &bits, 4);
  return __half22float2(pair);
}
template <>
__device__ __forceinline__ float2 unpack<bf16>(uint32_t bits) {
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, 4);
  return __bfloat1622float2(pair);
}
