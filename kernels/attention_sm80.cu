// Attention over packed pages for sm_80 and up.
//
//   out[s, i, h] = sum_j softmax_j(scale (R(segment(j)) q[s, i, h]) . k_j + bias_j) v_j
//
// FlashAttention-2 (arXiv 2307.08691): a block keeps 128 queries of one head, 16 a warp, and walks
// over the keys in tiles of 64, so that logits live in registers only. What is new against it:
//
// - Keys come from pages. A tile is counted from the start of its segment, and every row of it looks
//   its page up when it is copied, so a page may have any size and the sums do not know of it: paged
//   and contiguous keys give the same bits.
// - Each segment sees the queries turned in time by its own angle. A register of a query fragment
//   holds numbers 2i and 2i + 1 of a row, which is one rotary pair: turning is eight multiplications
//   in place, from the original in shared memory, whenever a segment begins.
// - Logits are biased: by segment for nothing, in the multiply-add before the exponential. By key
//   (a slot's bias, and -inf past the end of a segment) in a pass of its own, for the tiles that
//   have such.
//
// Two stages: while one tile is multiplied the next is on its way, ordered by one barrier a tile. Eight
// warps of 16 rows read a tile from L2 once for 128 queries and leave 97.5 KB of shared memory and no
// spill, which fits every card from sm_80 on (sm_86 and sm_89 give a block 99 KB).
//
// Floors: 4 q_tokens keys dim operations a head at the rate of the matrix units (a Wan block, 1.07
// TFLOP, is 3.4 ms at an A100's 312 TFLOP/s); the keys and values once for every 128 queries from L2.
#include <kernel.cuh>
#include <mma.cuh>
#include <ptx.cuh>
#include <rope.cuh>
#include <softmax.cuh>
#include <tiles.cuh>
#include <types.cuh>

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // queries a block
constexpr int kKeys = 64;           // keys a tile
constexpr int kStages = 2;

// Shared memory. gpu.rs counts the same bytes.
template <class T, int Dim>
struct Plan {
  Tile16<T, kRows, Dim> q;  // as it came, not turned
  Tile16<T, kKeys, Dim> k[kStages];
  Tile16<T, kKeys, Dim> v[kStages];
  Shared<Rotation, PF_MAX_PAIRS> turn[kStages];  // of a tile that begins a segment
  Shared<float, kKeys> bias[kStages];            // of a tile that is biased by key, base 2
};

// Where the block works.
struct Place {
  int stream, head, kv_head;
  int row;  // first query
};

// Sends for the block's queries; rows past the end become 0.
template <class T, int Dim>
__device__ __forceinline__ void fetch_queries(const AttentionParams& p, Plan<T, Dim>& plan, const Place& at) {
  constexpr int kChunks = Dim / 8;
  const T* q = address<const T>(p.q) + at.stream * p.q_strides[0] + at.head * p.q_strides[2];
  uint32_t to = shared_address(&plan.q.data[0]);
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks;
    bool valid = at.row + row < p.q_tokens;
    const T* from = q + (valid ? at.row + row : 0) * p.q_strides[1] + chunk * 8;
    cp_async_16(to + chunk_offset<Dim>(row, chunk), from, valid);
  }
}

// Sends for a tile's keys and values, and makes what else it needs.
template <class T, int Dim>
__device__ __forceinline__ void fetch(const AttentionParams& p, Plan<T, Dim>& plan, const Place& at, const Tile<kKeys>& tile,
                                      int stage) {
  constexpr int kChunks = Dim / 8;
  const int32_t* pages =
      address<const int32_t>(p.pages) + static_cast<int64_t>(at.stream) * p.max_pages + tile.segment.first_page;
  const T* k = address<const T>(p.k) + at.kv_head * p.k_strides[1];
  const T* v = address<const T>(p.v) + at.kv_head * p.v_strides[1];
  uint32_t to_k = shared_address(&plan.k[stage].data[0]);
  uint32_t to_v = shared_address(&plan.v[stage].data[0]);
#pragma unroll
  for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks;
    bool valid = row < tile.keys;
    int token = tile.first + (valid ? row : 0);
    int64_t page = load(pages + token / p.page_tokens);
    int64_t slot = token % p.page_tokens;
    uint32_t offset = chunk_offset<Dim>(row, chunk);
    cp_async_16(to_k + offset, k + page * p.k_strides[0] + slot * p.k_strides[2] + chunk * 8, valid);
    cp_async_16(to_v + offset, v + page * p.v_strides[0] + slot * p.v_strides[2] + chunk * 8, valid);
  }
  int i = threadIdx.x;
  if (i < kKeys && tile.by_key(p)) {
    float bias = i < tile.keys ? 0.0f : -INFINITY;
    if (i < tile.keys && tile.by_slot(p)) {
      int token = tile.first + i;
      int64_t page = load(pages + token / p.page_tokens);
      const float* biases = address<const float>(p.slot_bias) + at.kv_head * p.bias_strides[1];
      bias = kLog2E * load(biases + page * p.bias_strides[0] + token % p.page_tokens);
    }
    plan.bias[stage][i] = bias;
  }
  if (i < p.rope.pairs[0] && tile.first == 0) plan.turn[stage][i] = rotation(p.rope, i, tile.segment.rotation);
}

// The warp's queries as this segment sees them.
template <class T, int Dim>
__device__ __forceinline__ void turn(uint32_t (&q)[Dim / 16][4], Plan<T, Dim>& plan, int pairs, int stage) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t from = shared_address(&plan.q.data[0]);
#pragma unroll
  for (int k = 0; k < Dim / 16; k++) {
    load_a<Dim>(q[k], from, 16 * warp, k);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int pair = 8 * k + 4 * half + lane % 4;
      if (pair >= pairs) continue;
      Rotation angle = plan.turn[stage][pair];
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        float2 xy = unpack<T>(q[k][i]);
        rotate(xy.x, xy.y, angle);
        q[k][i] = pack<T>(xy.x, xy.y);
      }
    }
  }
}

template <class T, int Dim>
__device__ __forceinline__ void attend(const AttentionParams& p) {
  Plan<T, Dim>& plan = shared_memory<Plan<T, Dim>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Place at;
  at.row = blockIdx.x * kRows;
  at.head = blockIdx.y;
  at.stream = blockIdx.z;
  at.kv_head = at.head / (p.q_heads / p.kv_heads);
  const int count = load(address<const int32_t>(p.counts) + at.stream);
  const float scale = p.scale * kLog2E;

  // Lane l has of every accumulator rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
  uint32_t q[Dim / 16][4];
  float o[Dim / 8][4] = {};
  SoftmaxRow rows[2];

  Tile<kKeys> tile = seek<kKeys>(p, at.stream, count, 0, 0);
  if (tile.keys > 0) {
    fetch_queries(p, plan, at);
    fetch(p, plan, at, tile, 0);
    cp_async_commit();
  }
  for (int stage = 0; tile.keys > 0; stage ^= 1) {
    const Tile<kKeys> next = after(p, at.stream, count, tile);
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and everyone is done with the one before it
    if (next.keys > 0) {
      fetch(p, plan, at, next, stage ^ 1);
      cp_async_commit();
    }
    if (tile.first == 0) turn<T, Dim>(q, plan, p.rope.pairs[0], stage);

    float s[kKeys / 8][4] = {};
    const uint32_t k_tile = shared_address(&plan.k[stage].data[0]);
#pragma unroll
    for (int k = 0; k < Dim / 16; k++) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t b[4];
        load_b_of_rows<Dim>(b, k_tile, 8 * n, k);
        mma_m16n8k16<T>(s[n], q[k], {b[0], b[1]});
        mma_m16n8k16<T>(s[n + 1], q[k], {b[2], b[3]});
      }
    }

    // From here a logit is s * by + segment bias, base 2.
    float by = scale;
    if (tile.by_key(p)) {
      by = 1.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = fmaf(s[n][i], scale, plan.bias[stage][8 * n + 2 * (lane % 4) + i % 2]);
      }
    }
    const float bias = tile.segment.key_bias * kLog2E;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      const float shrink = rows[r].raise(fmaf(quad_max(top), by, bias));
      const Exponent e = exponent(s, r, rows[r], by, bias);
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; i++) {
          s[n][i] = ex2(fmaf(s[n][i], e.factor, e.offset));
          sum += s[n][i];
        }
      }
      rows[r].sum = fmaf(rows[r].sum, shrink, sum);
#pragma unroll
      for (int n = 0; n < Dim / 8; n++) {
        o[n][2 * r] *= shrink;
        o[n][2 * r + 1] *= shrink;
      }
    }

    // The weights' accumulators are laid out as the next product's left operand.
    const uint32_t v_tile = shared_address(&plan.v[stage].data[0]);
#pragma unroll
    for (int k = 0; k < kKeys / 16; k++) {
      const uint32_t a[4] = {pack<T>(s[2 * k][0], s[2 * k][1]), pack<T>(s[2 * k][2], s[2 * k][3]),
                             pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]), pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < Dim / 8; n += 2) {
        uint32_t b[4];
        load_b_of_columns<Dim>(b, v_tile, 16 * k, n / 2);
        mma_m16n8k16<T>(o[n], a, {b[0], b[1]});
        mma_m16n8k16<T>(o[n + 1], a, {b[2], b[3]});
      }
    }
    tile = next;
  }

#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float sum = quad_sum(rows[r].sum);
    const int row = at.row + 16 * warp + lane / 4 + 8 * r;
    if (row >= p.q_tokens) continue;
    T* out = address<T>(p.out) + at.stream * p.out_strides[0] + row * p.out_strides[1] + at.head * p.out_strides[2];
#pragma unroll
    for (int n = 0; n < Dim / 8; n++) {
      Vec<T, 2> xy;
#pragma unroll
      for (int i = 0; i < 2; i++) xy[i] = from_float<T>(sum == 0.0f ? 0.0f : o[n][2 * r + i] / sum);
      store_vec(out + 8 * n + 2 * (lane % 4), xy);
    }
    if (p.lse != 0 && lane % 4 == 0) {
      float* lse = address<float>(p.lse) + at.stream * p.lse_strides[0] + row * p.lse_strides[1] + at.head;
      store(lse, fmaf(rows[r].max, kLn2, logf(sum)));
    }
  }
}

}  // namespace

PF_KERNEL(attention_sm80_f16_64, AttentionParams, kThreads) { attend<f16, 64>(p); }
PF_KERNEL(attention_sm80_f16_128, AttentionParams, kThreads) { attend<f16, 128>(p); }
PF_KERNEL(attention_sm80_bf16_64, AttentionParams, kThreads) { attend<bf16, 64>(p); }
PF_KERNEL(attention_sm80_bf16_128, AttentionParams, kThreads) { attend<bf16, 128>(p); }
