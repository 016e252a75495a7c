// Rotary embedding: the angle of a pair at a position, and turning a pair by it.
#pragma once

#include <kernel.cuh>

struct Rotation {
  float cos, sin;
};

// The angle of pair `pair` at `position` units along its axis. The product is reduced to one turn
// in f64, so that positions of any size keep f32 accuracy, and sincospi needs no slow path.
__device__ __forceinline__ Rotation rotation(const RopeParams& rope, int pair, double position) {
  double turns = position * rope.turns[pair];
  float half_turns = static_cast<float>(2.0 * (turns - rint(turns)));
  Rotation r;
  sincospif(half_turns, &r.sin, &r.cos);
  return r;
}

// 0, 1, 2 for a pair of the time, row, column axis.
__device__ __forceinline__ int rope_axis(const RopeParams& rope, int pair) {
  return pair < rope.pairs[0] ? 0 : pair < rope.pairs[0] + rope.pairs[1] ? 1 : 2;
}

// (x, y) turned ahead by r.
__device__ __forceinline__ void rotate(float& x, float& y, Rotation r) {
  float turned = x * r.cos - y * r.sin;
  y = x * r.sin + y * r.cos;
  x = turned;
}
