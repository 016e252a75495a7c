// Mean pooling of paged keys and values over cells of a block's grid, from pages to other pages.
//
//   v' = mean(v_i)        over the n tokens i of a cell
//   k' = R(c) mean(R(-p_i) k_i) = mean(R(c - p_i) k_i),        c = mean(p_i), R(p) the rotation by p
//   bias = ln n
//
// Keys were rotated at their own places p_i; averaged as they are, they would shrink. The right-hand form
// turns each key once and needs no second pass, and c - p_i has few values: along each axis one for each
// place in a cell. Those rotations stand in a table in shared memory, so the main loop has no sine in it.
//
// One block is one merged token of one source block, its keys or its values. Threads stand as heads x
// 16-byte vectors of a head; each sums its vector over the cell in token order, in f32. All heads read the
// same tokens, so where these lie is worked out once, by the whole block, a stage of tokens at a time.
// Keys and values go to different blocks to have twice as many of them: 364 for a Wan block, all at once
// on 132 multiprocessors, each thread with four or eight loads
// under way.
//
// Floors: bytes: k and v read once, 38 MB for a Wan block, 8 us at 4.8 TB/s; a 34th of that is written.
// Operations: about 50 instructions for 16 bytes of k and 20 for those of v, 3 us.
#include <kernel.cuh>
#include <pairs.cuh>
#include <rope.cuh>

namespace {

constexpr int kThreads = 256;  // of the largest block
constexpr int kTurns = 4096;   // pairs times the largest extent of a cell
constexpr int kStage = 128;    // tokens whose places are shared at a time

// Three numbers, by axis: time, row, column.
struct Axes {
  int t, r, c;
  __device__ __forceinline__ int of(int axis) const { return axis == 0 ? t : axis == 1 ? r : c; }
};

// One token of the cell.
struct Token {
  int64_t offset;  // of its first head, in elements
  Axes at;         // in the cell
};

struct Plan {
  Shared<Rotation, kTurns> turns;  // [place along the axis, pair], pairs as `turn_slot` has them
  Shared<Token, kStage> tokens;
};

// Where a pair stands in its row of the table: lanes that read their i-th pairs together read
// neighbours.
template <class T>
__device__ __forceinline__ int turn_slot(int pair, int lanes) {
  return pair % kPairs16<T> * lanes + pair / kPairs16<T>;
}

// Rotations from each place of a cell to its centroid.
template <class T>
__device__ __forceinline__ void share_turns(const MergeTokensParams& p, Axes extent, int lanes, Plan& plan) {
  const int pairs = p.dim / 2;
  const int most = max(extent.t, max(extent.r, extent.c));
  for (int i = threadIdx.x; i < most * pairs; i += blockDim.x) {
    int pair = i % pairs;
    int at = i / pairs;
    int n = extent.of(rope_axis(p.rope, pair));
    if (at < n) plan.turns[at * pairs + turn_slot<T>(pair, lanes)] = rotation(p.rope, pair, 0.5 * (n - 1) - at);
  }
}

// Adds the stage's values to `sums`.
template <class T>
__device__ __forceinline__ void add_values(const Plan& plan, int count, const T* from, float2 (&sums)[kPairs16<T>]) {
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    Words v = load_words(from + plan.tokens[i].offset);
#pragma unroll
    for (int j = 0; j < kPairs16<T>; ++j) {
      float2 pair = unpack_pair<T>(v, j);
      sums[j].x += pair.x;
      sums[j].y += pair.y;
    }
  }
}

// Adds the stage's keys, each turned to the centroid first. `axes`: of the lane's pairs.
template <class T>
__device__ __forceinline__ void add_keys(const Plan& plan, int count, const T* from, int lane, int lanes, int pairs,
                                         const int (&axes)[kPairs16<T>], float2 (&sums)[kPairs16<T>]) {
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const Token token = plan.tokens[i];
    Words k = load_words(from + token.offset);
#pragma unroll
    for (int j = 0; j < kPairs16<T>; ++j) {
      float2 pair = unpack_pair<T>(k, j);
      rotate(pair.x, pair.y, plan.turns[token.at.of(axes[j]) * pairs + j * lanes + lane]);
      sums[j].x += pair.x;
      sums[j].y += pair.y;
    }
  }
}

template <class T>
__device__ __forceinline__ void merge_cell(const MergeTokensParams& p) {
  Plan& plan = shared_memory<Plan>();
  const int thread = threadIdx.x;
  const int merged = blockIdx.x;
  const int block = blockIdx.y;
  const int groups = gridDim.z / 2;
  const bool keys = static_cast<int>(blockIdx.z) < groups;

  // One lane is 16 bytes of one head; some threads and blocks are left over.
  const int lanes = p.dim / kLane16<T>;
  const int lane = thread % lanes;
  const int heads = blockDim.x / lanes;
  const int head = blockIdx.z % groups * heads + thread / lanes;
  const bool in_use = thread / lanes < heads && head < p.kv_heads;

  const int64_t page_stride = keys ? p.k_page_strides[0] : p.v_page_strides[0];
  const int64_t head_stride = keys ? p.k_page_strides[1] : p.v_page_strides[1];
  const int64_t slot_stride = keys ? p.k_page_strides[2] : p.v_page_strides[2];
  T* pages = address<T>(keys ? p.k_pages : p.v_pages) + head * head_stride + lane * kLane16<T>;

  // Cells lie in the order of their merged tokens; after the last come the slots to zero.
  const bool tail = merged >= p.out[0] * p.out[1] * p.out[2];
  const Axes first = {merged / (p.out[1] * p.out[2]) * p.cell[0], merged / p.out[2] % p.out[1] * p.cell[1],
                      merged % p.out[2] * p.cell[2]};
  const Axes extent = {min(p.cell[0], p.grid[0] - first.t), min(p.cell[1], p.grid[1] - first.r),
                       min(p.cell[2], p.grid[2] - first.c)};
  const int size = tail ? 0 : extent.t * extent.r * extent.c;

  if (keys && !tail) share_turns<T>(p, extent, lanes, plan);
  int axes[kPairs16<T>];
#pragma unroll
  for (int j = 0; j < kPairs16<T>; ++j) axes[j] = rope_axis(p.rope, lane * kPairs16<T> + j);

  float2 sums[kPairs16<T>] = {};
  for (int begin = 0; begin < size; begin += kStage) {
    const int count = min(kStage, size - begin);
    __syncthreads();  // the stage before has been read
    for (int i = thread; i < count; i += blockDim.x) {
      int at = begin + i;
      Axes in_cell = {at / (extent.r * extent.c), at / extent.c % extent.r, at % extent.c};
      int token = ((first.t + in_cell.t) * p.grid[1] + first.r + in_cell.r) * p.grid[2] + first.c + in_cell.c;
      int64_t entry = int64_t{block} * p.source_pages + token / p.page_tokens;
      int64_t page = load(address<int32_t>(p.source) + entry);
      plan.tokens[i] = Token{page * page_stride + token % p.page_tokens * slot_stride, in_cell};
    }
    __syncthreads();
    if (!in_use) continue;
    if (keys) {
      add_keys<T>(plan, count, pages, lane, lanes, p.dim / 2, axes, sums);
    } else {
      add_values<T>(plan, count, pages, sums);
    }
  }
  if (!in_use) return;

  Words mean = {};
  if (!tail) {
    const float n = static_cast<float>(size);
#pragma unroll
    for (int j = 0; j < kPairs16<T>; ++j) pack_pair<T>(mean, j, sums[j].x / n, sums[j].y / n);
  }
  const int slot = merged % p.page_tokens;
  const int64_t page = load(address<int32_t>(p.dest) + int64_t{block} * p.dest_pages + merged / p.page_tokens);
  store_words(pages + page * page_stride + slot * slot_stride, mean);
  if (keys && lane == 0 && p.slot_bias) {
    int64_t at = page * p.bias_strides[0] + head * p.bias_strides[1] + slot;
    store(address<float>(p.slot_bias) + at, tail ? 0.0f : logf(static_cast<float>(size)));
  }
}

}  // namespace

// Grid (slots of the dest pages in use, source blocks, 2 x groups of heads).
PF_KERNEL(merge_tokens_f32, MergeTokensParams, kThreads) { merge_cell<float>(p); }
PF_KERNEL(merge_tokens_f16, MergeTokensParams, kThreads) { merge_cell<f16>(p); }
PF_KERNEL(merge_tokens_bf16, MergeTokensParams, kThreads) { merge_cell<bf16>(p); }
