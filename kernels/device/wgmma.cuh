// Operands of wgmma in shared memory: panels of 64 columns, swizzled as the copy engine writes them,
// and the descriptors that name them.
//
// A panel is rows of 64 16-bit elements, 128 bytes each, one after the other, from an address that 1024
// divides. The 16-byte chunks of a row are swapped by the row: bits 4 to 6 of the address are xored with
// bits 7 to 9. A tile of more columns is one panel after the other.
#pragma once

#include <ptx.cuh>
#include <types.cuh>

constexpr int kPanel = 64;           // columns
constexpr int kPanelRowBytes = 128;  // of a row of a panel

// Rows x Dim elements in panels.
template <class T, int Rows, int Dim>
struct alignas(1024) Panels16 {
  static_assert(sizeof(T) == 2 && Rows % 8 == 0 && Dim % kPanel == 0, "whole swizzle patterns");
  Shared<T, Rows * Dim> data;
};

// Byte offset of a chunk of 8 elements (counted over all panels) of a tile of `Rows` rows.
template <int Rows>
__device__ __forceinline__ uint32_t panel_offset(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * (Rows * kPanelRowBytes) + row * kPanelRowBytes +
                               ((chunk % 8 ^ row % 8) << 4));
}

// Fields of a descriptor count units of 16 bytes: the address from bit 0, the leading offset from bit
// 16, the stride offset from bit 32; bits 62 and 63 name the swizzle.
enum class Swizzle : uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes,
                                                      Swizzle swizzle) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// An operand whose rows run along k (q, and k of q k^T), and what step `k` of 16 columns adds to it.
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t tile) {
  return matrix_descriptor(tile, 16, 1024, Swizzle::k128);
}
template <int Rows>
__device__ __forceinline__ constexpr uint64_t rows_step(int k) {
  return static_cast<uint64_t>((k / 4 * (Rows * kPanelRowBytes) + k % 4 * 32) >> 4);
}

// A transposed operand, whose rows are k themselves (v of p v), and what step `k` of 16 rows adds to it.
template <int Rows>
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t tile) {
  return matrix_descriptor(tile, Rows * kPanelRowBytes, 1024, Swizzle::k128);
}
__device__ __forceinline__ constexpr uint64_t columns_step(int k) {
  return static_cast<uint64_t>(k * 16 * kPanelRowBytes >> 4);
}
