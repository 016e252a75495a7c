// The walk over a stream's context: tiles of `Keys` keys, counted from the start of each segment.
#pragma once

#include <kernel.cuh>

template <int Keys>
struct Tile {
  Segment segment;
  int index;  // of the segment
  int first;  // key, counted from the segment's start
  int keys;   // 0: past the last segment

  __device__ __forceinline__ bool by_slot(const AttentionParams& p) const {
    return segment.slot_bias != 0 && p.slot_bias != 0;
  }
  // Whether a logit has more to it than a factor and the segment's bias.
  __device__ __forceinline__ bool by_key(const AttentionParams& p) const {
    return keys < Keys || by_slot(p) || !(p.scale > 0.0f);
  }
};

// The tile at `first` of segment `index`, or the first one behind it.
template <int Keys>
__device__ __forceinline__ Tile<Keys> seek(const AttentionParams& p, int stream, int count, int index, int first) {
  Tile<Keys> tile;
  tile.keys = 0;
  for (tile.index = index, tile.first = first; tile.index < count; tile.index++, tile.first = 0) {
    tile.segment = load(address<const Segment>(p.segments) + static_cast<int64_t>(stream) * p.max_segments + tile.index);
    if (tile.first < tile.segment.tokens) {
      tile.keys = min(Keys, tile.segment.tokens - tile.first);
      break;
    }
  }
  return tile;
}

template <int Keys>
__device__ __forceinline__ Tile<Keys> after(const AttentionParams& p, int stream, int count, const Tile<Keys>& tile) {
  Tile<Keys> next = tile;
  next.first += Keys;
  if (next.first >= tile.segment.tokens) return seek<Keys>(p, stream, count, tile.index + 1, 0);
  next.keys = min(Keys, tile.segment.tokens - next.first);
  return next;
}
