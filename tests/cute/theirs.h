// What CuTe says. Whoever implements this (theirs*.cpp) sees nothing of the project.
#pragma once
#include <stdint.h>

namespace theirs {

struct Place {
  int row, column;
};

// Where element `i` of a thread's registers belongs: A [m, k], B [n, k], accumulators [m, n].
Place mma_a(bool half, int lane, int i);
Place mma_b(bool half, int lane, int i);
Place mma_d(bool half, int lane, int i);
Place wgmma_a(int thread, int i);
Place wgmma_d(int columns, int thread, int i);

// The lane that names the row, and the column in it, of 16-bit element `i` (0 to 7) of a lane's registers.
enum class Matrices { kLoad, kLoadTransposed, kStore };
Place matrices(Matrices which, int lane, int i);

// A tile [mn, k] of 16-bit elements in shared memory, as wgmma reads it.
struct Tile {
  bool along_k;  // k is contiguous, else mn
  int swizzle;   // 0, 32, 64, 128 bytes
  int mn, k;     // extents
  bool k_first;  // patterns follow each other along k first
  // The byte of element [mn, k], counted from the tile's first.
  int (*byte)(int mn, int k);
  // The descriptor of the step-th 16 along k, of a tile at `address` of shared memory. As A only 64 rows along k.
  uint64_t (*descriptor)(bool as_a, uint32_t address, int step);
};
// Those that there are.
struct Tiles {
  const Tile* first;
  int count;
};
Tiles tiles_along_k(), tiles_along_mn();

// What goes to cuTensorMapEncodeTiled.
struct TensorMapCall {
  int calls;
  uint32_t rank, interleave, swizzle, fill;
  uint64_t address, extents[5], strides[4];
  uint32_t box[5], steps[5];
};
// For boxes of `tokens` (8, 32, 96) tokens of 64 columns. Innermost first: columns, tokens, heads, pages; strides in
// elements.
TensorMapCall tensor_map(uint64_t address, const int (&extents)[4], const int64_t (&strides)[3], int tokens);
// cuda.h's own.
struct TensorMapNumbers {
  uint32_t uint16, no_interleave, swizzle_128b, l2_256b, fill_zeros, bytes, alignment;
};
TensorMapNumbers tensor_map_numbers();

}  // namespace theirs
