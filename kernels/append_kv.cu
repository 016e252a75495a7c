// RMSNorm, rotation and the write into pages, in one pass over q, k and v.
//
//   y = x / sqrt(mean(x^2) + eps) * w      the mean over all heads of a token
//   z = R(position) y                      interleaved pairs; position = start + step (t, r, c) + origin
//
// Rotated queries go to q_out; rotated keys, and values as they are, go to slot i % page_tokens of page
// list[i / page_tokens]. Slots past the tokens in the last page become zero, so that no reader has to
// mask them. Everything between load and store is f32; the result is rounded once.
//
// One block is one token of one stream. Its threads stand as heads x 16-byte vectors of a head, so a
// thread meets the same pairs in every head it takes: it reads their angles once. It holds its parts of
// q, k and v in registers from the first load to the store. The loads, up to twelve a thread, are issued
// before the angles are computed and the squares summed; one barrier shares both. A token of Wan is 3 KB
// a tensor in bf16: two warps, three vectors of each a thread, and enough blocks a multiprocessor to
// keep its memory busy.
//
// Floors: bytes: q, k, v read once and written once; 6 x 19.2 MB for a Wan block, 24 us at 4.8 TB/s.
// Operations: about 1,700 instructions of a warp a token, 11 us at four a cycle on 132 multiprocessors.
#include <kernel.cuh>
#include <pairs.cuh>
#include <rope.cuh>

namespace {

constexpr int kThreads = 512;  // of the largest block
constexpr int kWarps = kThreads / 32;
constexpr int kPasses = 4;  // heads that one thread takes

struct Plan {
  Shared<Rotation, PF_MAX_PAIRS> turns;  // the token's, for each pair
  Shared<float, 2 * kWarps> squares;     // sums of squares of q, k: [2, warps]
};

// Where a thread stands: it takes 16 bytes of the heads head, head + step, ...
struct Place {
  int head;  // past every head in threads that are left over
  int step;
  int column;  // of the first element, in its head
};

// A thread's part of a token.
struct Part {
  Words head[kPasses];
};

template <class T>
__device__ __forceinline__ Part load_part(const T* x, int64_t head_stride, int heads, Place at) {
  Part part;
  x += at.head * head_stride + at.column;
#pragma unroll
  for (int j = 0; j < kPasses; ++j, x += at.step * head_stride) {
    if (at.head + j * at.step < heads) part.head[j] = load_words(x);
  }
  return part;
}

template <class T>
__device__ __forceinline__ void store_part(T* out, int64_t head_stride, int heads, Place at, const Part& part) {
  out += at.head * head_stride + at.column;
#pragma unroll
  for (int j = 0; j < kPasses; ++j, out += at.step * head_stride) {
    if (at.head + j * at.step < heads) store_words(out, part.head[j]);
  }
}

template <class T>
__device__ __forceinline__ float sum_squares(const Part& part, int heads, Place at) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kPasses; ++j) {
    if (at.head + j * at.step >= heads) break;
#pragma unroll
    for (int i = 0; i < kPairs16<T>; ++i) {
      float2 pair = unpack_pair<T>(part.head[j], i);
      sum += pair.x * pair.x + pair.y * pair.y;
    }
  }
  return sum;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

// 1 / sqrt(mean + eps), from the sums of the block's warps.
__device__ __forceinline__ float norm_scale(const Plan& plan, int first, int values, float eps) {
  float sum = 0.0f;
#pragma unroll 1
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += plan.squares[first + warp];
  return rsqrtf(sum / static_cast<float>(values) + eps);
}

// The angles of every pair of a token.
__device__ __forceinline__ void share_turns(const AppendKvParams& p, unsigned token, unsigned stream, Plan& plan) {
  unsigned line = token / p.grid[2];
  unsigned col = token % p.grid[2];
  unsigned row = line % p.grid[1];
  double time = p.start[0] + p.step[0] * (line / p.grid[1]);
  if (p.origins) time += load(address<float>(p.origins) + stream);
  for (int pair = threadIdx.x; pair < p.dim / 2; pair += blockDim.x) {
    int axis = rope_axis(p.rope, pair);
    double position = axis == 0 ? time : axis == 1 ? p.start[1] + p.step[1] * row : p.start[2] + p.step[2] * col;
    plan.turns[pair] = rotation(p.rope, pair, position);
  }
}

// Weighs, scales and turns a thread's part; `weight` may be null. The scale is one for the token, so it
// rides on the turns.
template <class T>
__device__ __forceinline__ void norm_and_turn(Part& part, int heads, Place at, const T* weight, int dim, float scale,
                                              const Rotation (&turns)[kPairs16<T>]) {
  Rotation scaled[kPairs16<T>];
#pragma unroll
  for (int i = 0; i < kPairs16<T>; ++i) scaled[i] = {turns[i].cos * scale, turns[i].sin * scale};
#pragma unroll
  for (int j = 0; j < kPasses; ++j) {
    int head = at.head + j * at.step;
    if (head >= heads) break;
    Words weights;
    if (weight) weights = load_words(weight + head * dim + at.column);
#pragma unroll
    for (int i = 0; i < kPairs16<T>; ++i) {
      float2 pair = unpack_pair<T>(part.head[j], i);
      if (weight) {
        float2 w = unpack_pair<T>(weights, i);
        pair.x *= w.x;
        pair.y *= w.y;
      }
      rotate(pair.x, pair.y, scaled[i]);
      pack_pair<T>(part.head[j], i, pair.x, pair.y);
    }
  }
}

template <class T>
__device__ __forceinline__ void append_token(const AppendKvParams& p) {
  Plan& plan = shared_memory<Plan>();
  const unsigned token = blockIdx.x;
  const unsigned stream = blockIdx.y;
  const unsigned thread = threadIdx.x;
  const unsigned lanes = p.dim / kLane16<T>;

  Place at;
  at.step = blockDim.x / lanes;
  at.head = thread / lanes;
  at.column = (thread - at.head * lanes) * kLane16<T>;
  if (at.head >= at.step) at.head = p.q_heads + p.kv_heads;

  const unsigned entry = token / p.page_tokens;
  const unsigned slot = token - entry * p.page_tokens;
  const int64_t page = load(address<int32_t>(p.page_list) + int64_t{stream} * p.max_pages + entry);
  T* k_out = address<T>(p.k_pages) + page * p.k_page_strides[0] + slot * p.k_page_strides[2];
  T* v_out = address<T>(p.v_pages) + page * p.v_page_strides[0] + slot * p.v_page_strides[2];

  if (token >= static_cast<unsigned>(p.grid[0] * p.grid[1] * p.grid[2])) {
    const Part zeros = {};
    store_part(k_out, p.k_page_strides[1], p.kv_heads, at, zeros);
    store_part(v_out, p.v_page_strides[1], p.kv_heads, at, zeros);
    return;
  }

  const T* q_in = address<T>(p.q) + stream * p.q_strides[0] + token * p.q_strides[1];
  const T* k_in = address<T>(p.k) + stream * p.k_strides[0] + token * p.k_strides[1];
  const T* v_in = address<T>(p.v) + stream * p.v_strides[0] + token * p.v_strides[1];
  Part q = load_part(q_in, p.q_strides[2], p.q_heads, at);
  Part k = load_part(k_in, p.k_strides[2], p.kv_heads, at);
  Part v = load_part(v_in, p.v_strides[2], p.kv_heads, at);

  share_turns(p, token, stream, plan);
  store_part(v_out, p.v_page_strides[1], p.kv_heads, at, v);
  if (p.k_weight) {
    float q_sum = warp_sum(sum_squares<T>(q, p.q_heads, at));
    float k_sum = warp_sum(sum_squares<T>(k, p.kv_heads, at));
    if (thread % 32 == 0) {
      plan.squares[thread / 32] = q_sum;
      plan.squares[kWarps + thread / 32] = k_sum;
    }
  }
  __syncthreads();

  Rotation turns[kPairs16<T>];
#pragma unroll
  for (int i = 0; i < kPairs16<T>; ++i) turns[i] = plan.turns[at.column / 2 + i];
  if (p.q) {
    float scale = p.q_weight ? norm_scale(plan, 0, p.q_heads * p.dim, p.eps) : 1.0f;
    norm_and_turn(q, p.q_heads, at, address<T>(p.q_weight), p.dim, scale, turns);
    T* q_out = address<T>(p.q_out) + stream * p.q_out_strides[0] + token * p.q_out_strides[1];
    store_part(q_out, p.q_out_strides[2], p.q_heads, at, q);
  }
  float scale = p.k_weight ? norm_scale(plan, kWarps, p.kv_heads * p.dim, p.eps) : 1.0f;
  norm_and_turn(k, p.kv_heads, at, address<T>(p.k_weight), p.dim, scale, turns);
  store_part(k_out, p.k_page_strides[1], p.kv_heads, at, k);
}

}  // namespace

// At most kThreads threads a block, a block for each slot of the pages in use: grid (slots, streams).
PF_KERNEL(append_kv_f32, AppendKvParams, kThreads) { append_token<float>(p); }
PF_KERNEL(append_kv_f16, AppendKvParams, kThreads) { append_token<f16>(p); }
PF_KERNEL(append_kv_bf16, AppendKvParams, kThreads) { append_token<bf16>(p); }
