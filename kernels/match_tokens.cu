// Bipartite soft matching of a block's tokens (Bolya et al., "Token Merging", arXiv 2210.09461), their
// merging from pages to other pages, and the way back. Destinations are given, all other tokens are sources.
// Four kernels:
//
//   score_tokens    s_ij = (R(-p_i) k_i . R(-p_j) k_j) / (|k_i| |k_j|) of every source i and destination j;
//                   of each source the best j and s_ij (of equal ones the first), nothing else is stored
//   choose_tokens   the sources that merge: the best, or all from a threshold on; the map from tokens to
//                   merged tokens, which lie in the order of the grid; the members of each, in order
//   merge_members   v' = sum w_i v_i / sum w_i,  k' = R(c) sum w_i R(-p_i) k_i / sum w_i,
//                   c = sum w_i p_i / sum w_i, bias = ln sum w_i, over the members i of a merged token
//   unmerge_tokens  to every token the row that it went into
//
// Keys of 16 bits are turned back in f32, rounded and multiplied by mma; those of f32 by plain multiply-adds
// in the same shape. Norms are of the rounded keys, and a score is (dot / |k_j|) / |k_i| by one rounded
// multiplication each, so that exact products make the same scores, and choices, on every device. Cosines
// and sines come from a table (there are as many as places along an axis, not tokens), centroids apart.
//
// Nothing is added atomically but integers. The members are put in order by one warp that walks over the
// tokens: a lane finds its like among 32 by one ballot a bit, 195 steps for a Wan block, some 10 us. One
// block merges one token of one head; its members differ from head to head, so it gathers 256-byte rows.
//
// Floors, a Wan block, 182 destinations: operations: 2 tokens destinations dim heads = 3.5 GFLOP by mma, 11 us
// at an A100's 312 TFLOP/s, 4 us at 990; bytes: keys read twice, values once, 58 MB, 12 us at 4.8 TB/s. To
// these comes the walk. Scoring all heads together has a twelfth of the blocks, and is bound by that.
#include <mma.cuh>
#include <pairs.cuh>
#include <rope.cuh>

namespace {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

// -- scores -------------------------------------------------------------------------------------

constexpr int kScoreThreads = 256;
constexpr int kRows = 16 * kScoreThreads / kWarp;  // sources of a block, 16 a warp

// Destinations of a tile.
template <class T>
constexpr int kTile = sizeof(T) == 2 ? 64 : 32;

// Where a token's key lies, and its turns.
struct Place {
  int64_t offset;  // of head 0; below 0: no token
  int turns[3];    // of an axis: add the pair to get the entry of the table
};

// Rows of `Dim` numbers in 16-byte chunks. 16-bit ones swizzled as mma.cuh has it; those of f32 with a chunk
// between rows, so that eight rows of one column of chunks lie in different banks.
template <class T, int Rows, int Dim>
struct alignas(128) Keys {
  static constexpr int kChunks = Dim / kLane16<T>;
  static constexpr int kStride = sizeof(T) == 2 ? kChunks : kChunks + 1;
  Shared<Words, Rows * kStride> chunks;
  __device__ __forceinline__ Words& at(int row, int chunk) {
    return chunks[row * kStride + (sizeof(T) == 2 ? chunk ^ (row % 8) : chunk)];
  }
};

template <class T, int Dim>
struct ScorePlan {
  Keys<T, kRows, Dim> rows;
  Keys<T, kTile<T>, Dim> tile;
  Shared<Place, kRows> row_places;
  Shared<Place, kTile<T>> tile_places;
  Shared<float, kRows> row_norms;  // reciprocal
  Shared<float, kTile<T>> tile_norms;
  Shared<int, kRows> is_destination;
};

__device__ __forceinline__ Place place_of(const MatchTokensParams& p, int block, int token) {
  int64_t page = load(address<const int32_t>(p.source) + int64_t{block} * p.source_pages + token / p.page_tokens);
  const int at[3] = {token / (p.grid[1] * p.grid[2]), token / p.grid[2] % p.grid[1], token % p.grid[2]};
  Place place;
  place.offset = page * p.k_page_strides[0] + token % p.page_tokens * p.k_page_strides[2];
  int first = 0, pair = 0;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    place.turns[axis] = first + at[axis] * p.rope.pairs[axis] - pair;
    first += p.grid[axis] * p.rope.pairs[axis];
    pair += p.rope.pairs[axis];
  }
  return place;
}

// (x, y) turned back by an entry of the table.
__device__ __forceinline__ void turn_back(const MatchTokensParams& p, int entry, float2& pair) {
  Vec<float, 2> turn = load_vec<2>(address<const float>(p.turns) + 2 * int64_t{entry});
  rotate(pair.x, pair.y, {turn[0], -turn[1]});
}

// Turns the keys of one head at these places back into shared memory; what is no token or past the head's
// numbers becomes 0.
template <class T, int Rows, int Dim>
__device__ __forceinline__ void stage(const MatchTokensParams& p, int head, const Shared<Place, Rows>& places,
                                      Keys<T, Rows, Dim>& keys, Shared<float, Rows>& norms) {
  constexpr int kChunks = Dim / kLane16<T>;
  static_assert(kScoreThreads % kChunks == 0 && Rows * kChunks % kScoreThreads == 0 && kChunks <= kWarp,
                "a thread has one column of chunks, a warp whole rows");
  const int chunk = threadIdx.x % kChunks;
  const bool in_head = chunk * kLane16<T> < p.dim;
  const T* k = address<const T>(p.k_pages) + head * p.k_page_strides[1] + chunk * kLane16<T>;
#pragma unroll 4
  for (int row = threadIdx.x / kChunks; row < Rows; row += kScoreThreads / kChunks) {
    const Place place = places[row];
    Words words = {};
    float square = 0.0f;
    if (in_head && place.offset >= 0) {
      words = load_words(k + place.offset);
#pragma unroll
      for (int j = 0; j < kPairs16<T>; ++j) {
        const int pair = chunk * kPairs16<T> + j;
        float2 xy = unpack_pair<T>(words, j);
        const int axis = rope_axis(p.rope, pair);
        turn_back(p, (axis == 0 ? place.turns[0] : axis == 1 ? place.turns[1] : place.turns[2]) + pair, xy);
        pack_pair<T>(words, j, xy.x, xy.y);
        xy = unpack_pair<T>(words, j);
        square += xy.x * xy.x + xy.y * xy.y;
      }
    }
#pragma unroll
    for (int offset = kChunks / 2; offset > 0; offset /= 2) square += __shfl_xor_sync(kFullWarp, square, offset);
    keys.at(row, chunk) = words;
    if (chunk == 0) norms[row] = square == 0.0f ? 0.0f : __fdiv_rn(1.0f, __fsqrt_rn(square));
  }
}

// dots[n][i]: row lane / 4 + 8 (i / 2) of the warp's, column 8 n + 2 (lane % 4) + i % 2 of the tile.
template <class T, int Dim>
__device__ __forceinline__ void multiply(ScorePlan<T, Dim>& plan, float (&dots)[kTile<T> / 8][4]) {
  const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * 16;
#pragma unroll
  for (int n = 0; n < kTile<T> / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) dots[n][i] = 0.0f;
  }
  if constexpr (sizeof(T) == 2) {
    const uint32_t rows = shared_address(&plan.rows.chunks[0]), tile = shared_address(&plan.tile.chunks[0]);
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
      uint32_t a[4];
      load_a<Dim>(a, rows, first, k);
#pragma unroll
      for (int n = 0; n < kTile<T> / 8; n += 2) {
        uint32_t b[4];
        load_b_of_rows<Dim>(b, tile, 8 * n, k);
        mma_m16n8k16<T>(dots[n], a, {b[0], b[1]});
        mma_m16n8k16<T>(dots[n + 1], a, {b[2], b[3]});
      }
    }
  } else {
#pragma unroll 2
    for (int chunk = 0; chunk < Dim / 4; ++chunk) {
      const Words a[2] = {plan.rows.at(first + lane / 4, chunk), plan.rows.at(first + lane / 4 + 8, chunk)};
#pragma unroll
      for (int n = 0; n < kTile<T> / 8; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        const Words b[2] = {plan.tile.at(column, chunk), plan.tile.at(column + 1, chunk)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int d = 0; d < 4; ++d) {
            dots[n][i] = fmaf(__uint_as_float(a[i / 2][d]), __uint_as_float(b[i % 2][d]), dots[n][i]);
          }
        }
      }
    }
  }
}

// Grid: groups of tokens, maps, blocks. All tokens are scored; what destinations find is thrown away.
template <class T, int Dim>
__device__ __forceinline__ void score(const MatchTokensParams& p) {
  ScorePlan<T, Dim>& plan = shared_memory<ScorePlan<T, Dim>>();
  const int tid = threadIdx.x, lane = tid % kWarp, first = blockIdx.x * kRows;
  const int map = blockIdx.y, block = blockIdx.z;
  const int heads = p.kv_heads / p.maps;
  const int* destinations = address<const int>(p.destinations);

  for (int row = tid; row < kRows; row += kScoreThreads) {
    if (first + row < p.tokens) {
      plan.row_places[row] = place_of(p, block, first + row);
    } else {
      plan.row_places[row] = Place{-1, {0, 0, 0}};
    }
    plan.is_destination[row] = 0;
  }
  __syncthreads();
  for (int j = tid; j < p.destination_count; j += kScoreThreads) {
    const int row = load(destinations + j) - first;
    if (row >= 0 && row < kRows) plan.is_destination[row] = 1;
  }

  float best[2] = {-INFINITY, -INFINITY};
  int nearest[2] = {0, 0};
  int staged = -1;
  for (int begin = 0; begin < p.destination_count; begin += kTile<T>) {
    float scores[kTile<T> / 8][4] = {};
    __syncthreads();  // the places of the tile before have been read
    for (int j = tid; j < kTile<T>; j += kScoreThreads) {
      if (begin + j < p.destination_count) {
        plan.tile_places[j] = place_of(p, block, load(destinations + begin + j));
      } else {
        plan.tile_places[j] = Place{-1, {0, 0, 0}};
      }
    }
    for (int head = map * heads; head < (map + 1) * heads; ++head) {
      __syncthreads();  // the places are here, and the keys of the tile before have been read
      if (head != staged) stage(p, head, plan.row_places, plan.rows, plan.row_norms);
      stage(p, head, plan.tile_places, plan.tile, plan.tile_norms);
      staged = head;
      __syncthreads();
      float dots[kTile<T> / 8][4];
      multiply<T, Dim>(plan, dots);
      const int row = tid / kWarp * 16 + lane / 4;
      const float norms[2] = {plan.row_norms[row], plan.row_norms[row + 8]};
#pragma unroll
      for (int n = 0; n < kTile<T> / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float by = plan.tile_norms[8 * n + 2 * (lane % 4) + i % 2];
          const float cosine = __fmul_rn(__fmul_rn(dots[n][i], by), norms[i / 2]);
          scores[n][i] = __fadd_rn(scores[n][i], cosine);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTile<T> / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = begin + 8 * n + 2 * (lane % 4) + i % 2;
        if (j < p.destination_count && scores[n][i] > best[i / 2]) {
          best[i / 2] = scores[n][i];
          nearest[i / 2] = j;
        }
      }
    }
  }

  // Four lanes have seen a row, each its own columns in order.
  const int64_t to = (int64_t{block} * p.maps + map) * p.tokens;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      const float other = __shfl_xor_sync(kFullWarp, best[r], offset);
      const int j = __shfl_xor_sync(kFullWarp, nearest[r], offset);
      if (other > best[r] || (other == best[r] && j < nearest[r])) {
        best[r] = other;
        nearest[r] = j;
      }
    }
    const int row = tid / kWarp * 16 + lane / 4 + 8 * r;
    if (lane % 4 == 0 && first + row < p.tokens) {
      const bool own = plan.is_destination[row] != 0;
      store(address<int>(p.nearest) + to + first + row, own ? first + row : load(destinations + nearest[r]));
      const float similarity = heads > 1 ? __fdiv_rn(best[r], static_cast<float>(heads)) : best[r];
      store(address<float>(p.similarity) + to + first + row, own ? INFINITY : similarity);
    }
  }
}

// -- choice -------------------------------------------------------------------------------------

constexpr int kChooseThreads = 512;
constexpr int kMaxTokens = 16384;
constexpr uint16_t kMerges = 0xffff;

struct ChoosePlan {
  Shared<uint32_t, kMaxTokens> keys;   // of sources, larger for more alike, and 0; later by merged token
  Shared<uint16_t, kMaxTokens> slots;  // the merged token of each, or kMerges
  Shared<int, kChooseThreads / kWarp> totals;
};

// A key that grows with the score, the same for both zeros, above 0.
__device__ __forceinline__ uint32_t sort_key(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The sum of what the threads before have, and in `total` that of all.
__device__ __forceinline__ int sum_before(ChoosePlan& plan, int value, int& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(kFullWarp, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();  // the totals before have been read
  if (lane == kWarp - 1) plan.totals[warp] = sum;
  __syncthreads();
  int before = sum - value;
  total = 0;
#pragma unroll
  for (int w = 0; w < kChooseThreads / kWarp; ++w) {
    if (w < warp) before += plan.totals[w];
    total += plan.totals[w];
  }
  return before;
}

// How many tokens' keys are at least `limit`.
__device__ __forceinline__ int count_from(ChoosePlan& plan, int tokens, uint32_t limit) {
  int mine = 0, total;
#pragma unroll 4
  for (int i = threadIdx.x; i < tokens; i += kChooseThreads) mine += plan.keys[i] >= limit;
  sum_before(plan, mine, total);
  return total;
}

// One warp: writes the tokens down by merged token, stable. `keys` holds the next place of each.
__device__ __forceinline__ void list_members(ChoosePlan& plan, int tokens, int merged, int* members) {
  const int lane = threadIdx.x;
  const unsigned before = (1u << lane) - 1;
  const int bits = kWarp - __clz(merged);
  for (int base = 0; base < tokens; base += kWarp) {
    const int i = base + lane;
    const bool valid = i < tokens;
    const int slot = valid ? plan.slots[i] : 0;
    unsigned same = __ballot_sync(kFullWarp, valid);
    for (int bit = 0; bit < bits; ++bit) {
      const bool set = slot >> bit & 1;
      const unsigned with = __ballot_sync(kFullWarp, set);
      same &= set ? with : ~with;
    }
    const int rank = __popc(same & before);
    const int place = static_cast<int>(plan.keys[slot]) + rank;
    if (valid) store(members + place, i);
    __syncwarp();
    if (valid && rank == 0) plan.keys[slot] = static_cast<uint32_t>(place + __popc(same));
    __syncwarp();
  }
}

// Grid: maps of all blocks.
__device__ __forceinline__ void choose(const MatchTokensParams& p) {
  ChoosePlan& plan = shared_memory<ChoosePlan>();
  const int tid = threadIdx.x, tokens = p.tokens;
  const int64_t map = blockIdx.x;
  const int* nearest = address<const int>(p.nearest) + map * tokens;
  const float* similarity = address<const float>(p.similarity) + map * tokens;
  for (int i = tid; i < tokens; i += kChooseThreads) {
    plan.keys[i] = load(nearest + i) == i ? 0 : sort_key(load(similarity + i));
  }
  __syncthreads();

  // Sources above the limit merge, and of the equal ones the first `ties`.
  uint32_t limit = 0xffffffffu;
  int ties = 0;
  if (p.top < 0) {
    limit = sort_key(p.threshold);
    ties = tokens;
  } else if (p.top > 0) {
    limit = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      if (count_from(plan, tokens, limit | bit) >= p.top) limit |= bit;
    }
    ties = p.top - count_from(plan, tokens, limit + 1);
  }

  // Tokens that stay are numbered.
  int merged = 0;
  for (int base = 0; base < tokens; base += kChooseThreads) {
    const int i = base + tid;
    const uint32_t key = i < tokens ? plan.keys[i] : 0;
    int equal, stay;
    const int rank = sum_before(plan, key == limit, equal);
    const bool merges = key > limit || (key == limit && rank < ties);
    ties -= equal;
    const int slot = merged + sum_before(plan, i < tokens && !merges, stay);
    if (i < tokens) plan.slots[i] = merges ? kMerges : static_cast<uint16_t>(slot);
    merged += stay;
  }
  __syncthreads();
  for (int m = tid; m < merged; m += kChooseThreads) plan.keys[m] = 0;
  __syncthreads();

  // The others go where their destinations are, and the members of each are counted.
  int* out = address<int>(p.map) + map * tokens;
  for (int i = tid; i < tokens; i += kChooseThreads) {
    int slot = plan.slots[i];
    if (slot == kMerges) {
      slot = plan.slots[load(nearest + i)];
      plan.slots[i] = static_cast<uint16_t>(slot);
    }
    store(out + i, slot);
    atomicAdd(&plan.keys[slot], 1u);
  }
  __syncthreads();
  int* starts = address<int>(p.starts) + map * (tokens + 1);
  int first = 0;
  for (int base = 0; base < merged; base += kChooseThreads) {
    const int m = base + tid;
    int total;
    const int start = first + sum_before(plan, m < merged ? static_cast<int>(plan.keys[m]) : 0, total);
    if (m < merged) {
      plan.keys[m] = static_cast<uint32_t>(start);
      store(starts + m, start);
    }
    first += total;
  }
  if (tid == 0) {
    store(starts + merged, tokens);
    store(address<int>(p.counts) + map, merged);
  }
  __syncthreads();
  if (tid < kWarp) list_members(plan, tokens, merged, address<int>(p.members) + map * tokens);
}

// -- means --------------------------------------------------------------------------------------

constexpr int kMergeThreads = 64;  // of the largest block
constexpr int kStage = 32;         // members whose places are shared at a time

struct Member {
  int page, slot;
  int at[3];
  float log_size;
};

struct MergePlan {
  Shared<Member, kStage> members;
};

__device__ __forceinline__ Member member_of(const MatchTokensParams& p, int block, int head, int token) {
  Member member;
  member.page = load(address<const int32_t>(p.source) + int64_t{block} * p.source_pages + token / p.page_tokens);
  member.slot = token % p.page_tokens;
  member.at[0] = token / (p.grid[1] * p.grid[2]);
  member.at[1] = token / p.grid[2] % p.grid[1];
  member.at[2] = token % p.grid[2];
  member.log_size = 0.0f;
  if (p.weighted) {
    const float* biases = address<const float>(p.slot_bias) + head * p.bias_strides[1];
    member.log_size = load(biases + member.page * p.bias_strides[0] + member.slot);
  }
  return member;
}

// Grid: slots of the dest pages in use, heads, blocks. Half of the threads have the key, 16 bytes each, half
// the value; some may be left over.
template <class T>
__device__ __forceinline__ void merge(const MatchTokensParams& p) {
  MergePlan& plan = shared_memory<MergePlan>();
  const int merged = blockIdx.x, head = blockIdx.y, block = blockIdx.z;
  const int lanes = p.dim / kLane16<T>;
  const int lane = threadIdx.x % lanes;
  const bool keys = static_cast<int>(threadIdx.x) < lanes;
  const bool in_use = static_cast<int>(threadIdx.x) < 2 * lanes;
  const int64_t page_stride = keys ? p.k_page_strides[0] : p.v_page_strides[0];
  const int64_t head_stride = keys ? p.k_page_strides[1] : p.v_page_strides[1];
  const int64_t slot_stride = keys ? p.k_page_strides[2] : p.v_page_strides[2];
  T* pages = address<T>(keys ? p.k_pages : p.v_pages) + head * head_stride + lane * kLane16<T>;

  const int64_t map = int64_t{block} * p.maps + (p.maps > 1 ? head : 0);
  const int* members = address<const int>(p.members) + map * p.tokens;
  const bool tail = merged >= load(address<const int>(p.counts) + map);
  int begin = 0, end = 0;
  if (!tail) {
    const int* starts = address<const int>(p.starts) + map * (p.tokens + 1) + merged;
    begin = load(starts);
    end = load(starts + 1);
  }
  const bool alone = end - begin == 1;
  const bool copies = alone || p.replace;

  // The table's entry of the lane's pairs: first + place * per.
  int axes[kPairs16<T>], first[kPairs16<T>], per[kPairs16<T>];
#pragma unroll
  for (int j = 0; j < kPairs16<T>; ++j) {
    const int pair = lane * kPairs16<T> + j;
    axes[j] = rope_axis(p.rope, pair);
    first[j] = pair;
    per[j] = p.rope.pairs[0];
    if (axes[j] > 0) {
      first[j] += (p.grid[0] - 1) * p.rope.pairs[0];
      per[j] = p.rope.pairs[1];
    }
    if (axes[j] > 1) {
      first[j] += (p.grid[1] - 1) * p.rope.pairs[1];
      per[j] = p.rope.pairs[2];
    }
  }

  float2 sums[kPairs16<T>] = {};
  float centroid[3] = {};
  float size = 0.0f;
  for (int base = begin; base < end; base += kStage) {
    const int count = min(kStage, end - base);
    __syncthreads();  // the stage before has been read
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      plan.members[i] = member_of(p, block, head, load(members + base + i));
    }
    __syncthreads();
    if (!in_use) continue;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const Member member = plan.members[i];
      const float weight = expf(member.log_size);
      size += weight;
      if (copies) continue;
      Words words = load_words(pages + member.page * page_stride + member.slot * slot_stride);
#pragma unroll
      for (int j = 0; j < kPairs16<T>; ++j) {
        float2 pair = unpack_pair<T>(words, j);
        if (keys) {
          const int at = axes[j] == 0 ? member.at[0] : axes[j] == 1 ? member.at[1] : member.at[2];
          turn_back(p, first[j] + at * per[j], pair);
        }
        sums[j].x += weight * pair.x;
        sums[j].y += weight * pair.y;
      }
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) centroid[axis] += weight * static_cast<float>(member.at[axis]);
    }
  }
  if (!in_use) return;

  // Past the count nothing has weight.
  float log_size = -INFINITY;
  Words mean = {};
  if (!tail) {
    const int one = load(members + begin);
    log_size = logf(size);
    if (copies) {
      const int token = alone ? one : load(address<const int>(p.nearest) + map * p.tokens + one);
      const Member member = member_of(p, block, head, token);
      mean = load_words(pages + member.page * page_stride + member.slot * slot_stride);
      if (alone) log_size = member.log_size;
    } else {
      const float n = size == 0.0f ? 1.0f : size;  // tokens that all stand for nothing make nothing, not 0 / 0
#pragma unroll
      for (int j = 0; j < kPairs16<T>; ++j) {
        float x = sums[j].x / n, y = sums[j].y / n;
        if (keys) {
          const float at = axes[j] == 0 ? centroid[0] : axes[j] == 1 ? centroid[1] : centroid[2];
          rotate(x, y, rotation(p.rope, lane * kPairs16<T> + j, static_cast<double>(at) / n));
        }
        pack_pair<T>(mean, j, x, y);
      }
    }
  }
  const int64_t page = load(address<const int32_t>(p.dest) + int64_t{block} * p.dest_pages + merged / p.page_tokens);
  const int slot = merged % p.page_tokens;
  store_words(pages + page * page_stride + slot * slot_stride, mean);
  if (threadIdx.x == 0 && p.slot_bias) {
    float* biases = address<float>(p.slot_bias) + head * p.bias_strides[1];
    store(biases + page * p.bias_strides[0] + slot, log_size);
  }
}

// -- back ---------------------------------------------------------------------------------------

// One thread: `N` numbers of one head of one token. Grid: all of them, blocks.
template <int N, class T>
__device__ __forceinline__ void spread(const UnmergeTokensParams& p) {
  const int lanes = p.dim / N, block = blockIdx.y;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t row = i / lanes;
  const int64_t token = row / p.heads;
  if (token >= p.tokens) return;
  const int head = static_cast<int>(row % p.heads), at = static_cast<int>(i % lanes) * N;
  const int64_t map = block * p.map_strides[0] + (p.maps > 1 ? head : 0) * p.map_strides[1];
  const int64_t from = max(0, min(load(address<const int>(p.map) + map + token), p.merged - 1));
  const T* x = address<const T>(p.x) + block * p.x_strides[0] + from * p.x_strides[1] + head * p.x_strides[2];
  T* out = address<T>(p.out) + block * p.out_strides[0] + token * p.out_strides[1] + head * p.out_strides[2];
  store_vec(out + at, load_vec<N>(x + at));
}

template <class T>
__device__ __forceinline__ void unmerge(const UnmergeTokensParams& p) {
  if (p.vectors) {
    spread<kLane16<T>, T>(p);
  } else {
    spread<1, T>(p);
  }
}

}  // namespace

PF_KERNEL(score_tokens_f32_64, MatchTokensParams, kScoreThreads) { score<float, 64>(p); }
PF_KERNEL(score_tokens_f32_128, MatchTokensParams, kScoreThreads) { score<float, 128>(p); }
PF_KERNEL(score_tokens_f16_64, MatchTokensParams, kScoreThreads) { score<f16, 64>(p); }
PF_KERNEL(score_tokens_f16_128, MatchTokensParams, kScoreThreads) { score<f16, 128>(p); }
PF_KERNEL(score_tokens_bf16_64, MatchTokensParams, kScoreThreads) { score<bf16, 64>(p); }
PF_KERNEL(score_tokens_bf16_128, MatchTokensParams, kScoreThreads) { score<bf16, 128>(p); }

PF_KERNEL(choose_tokens, MatchTokensParams, kChooseThreads) { choose(p); }

PF_KERNEL(merge_members_f32, MatchTokensParams, kMergeThreads) { merge<float>(p); }
PF_KERNEL(merge_members_f16, MatchTokensParams, kMergeThreads) { merge<f16>(p); }
PF_KERNEL(merge_members_bf16, MatchTokensParams, kMergeThreads) { merge<bf16>(p); }

PF_KERNEL(unmerge_tokens_f32, UnmergeTokensParams, 256) { unmerge<float>(p); }
PF_KERNEL(unmerge_tokens_f16, UnmergeTokensParams, 256) { unmerge<f16>(p); }
PF_KERNEL(unmerge_tokens_bf16, UnmergeTokensParams, 256) { unmerge<bf16>(p); }
