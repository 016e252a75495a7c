// Attention over packed pages for sm_90a (H100, H200): what attention_sm80.cu computes, by the copy
// engine and wgmma.
//
//   out[s, i, h] = sum_j softmax_j(scale (R(segment(j)) q[s, i, h]) . k_j + bias_j) v_j
//
// A block has one warpgroup that fetches and two or three that compute, each 64 queries of one head
// (FlashAttention-3, arXiv 2407.08608, is shaped so). What is new against it:
//
// - Keys come from pages. A tile is counted from the start of its segment; the copy engine brings it in
//   boxes that no page boundary crosses, so a page may be smaller than a tile and the sums do not know
//   of it: paged and contiguous keys give the same bits, and paging costs the computing warps nothing.
// - The fetching warps alone know of pages and segments. With each tile they leave a note: how many keys
//   are real, the segment's bias, whether the queries must be turned. So the loop that multiplies holds
//   no table in registers, of which it has none to spare.
// - Each segment sees the queries turned in time by its own angle. A warpgroup turns its rows from the
//   original in global memory into shared memory when a segment begins: some twenty times in the three
//   hundred tiles of a long video.
// - A key's own bias (and -inf past the end of a segment) is a pass over the logits, for the tiles that
//   have such. Values past the end are made 0 by the fetching warp, for 0 times NaN is NaN.
//
// Orders of work, for softmax must not leave the matrix units idle (see Schedule): in turns, where one
// group's softmax runs beside the others' products; and overlapped, where it runs beside products of its
// own group, too. That holds two tiles' weights at once, for which the 160 registers of three groups are
// too few at head dim 128.
//
// Floors: 4 q_tokens keys dim operations a head at the matrix units' rate (a Wan block, 1.07 TFLOP, is
// 1.08 ms at 989 TFLOP/s); one exponential a logit, 16 a cycle and multiprocessor (0.6 ms, so beside the
// products and not after them); keys and values once for every 192 queries from L2 (5.6 GB).
// docs/attention.md has the arithmetic.
#include <kernel.cuh>
#include <mma.cuh>
#include <pairs.cuh>
#include <ptx.cuh>
#include <rope.cuh>
#include <softmax.cuh>
#include <tiles.cuh>
#include <types.cuh>
#include <wgmma.cuh>

namespace {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;  // queries of a computing warpgroup
constexpr int kMaxGroups = 3;

// What the warp that fetches keys says of a tile.
struct alignas(16) Note {
  int keys;        // that are real; 0: there is no tile, nor any after it
  int flags;       // kTurn, kByKey
  float bias;      // of the segment, base 2
  float rotation;  // of the segment, frames
};
constexpr int kTurn = 1;   // a segment begins: the queries are to be turned first
constexpr int kByKey = 2;  // plan.bias has a bias of each key

enum class Schedule {
  kFree,        // every group for itself
  kTurns,       // groups issue q k^T one after the other, which keeps their softmaxes apart
  kOverlapped,  // in turns, and a group's softmax runs beside its own last p v
};

// One way to build the kernel. gpu.rs counts the same bytes.
template <class T_, int Dim_, int Groups_, int Keys_, int Stages_, Schedule Schedule_, bool Packed_>
struct Build {
  using T = T_;
  static constexpr int kDim = Dim_;
  static constexpr int kGroups = Groups_;  // that compute
  static constexpr int kKeys = Keys_;      // a tile
  static constexpr int kStages = Stages_;
  static constexpr Schedule kSchedule = Schedule_;
  static constexpr bool kPacked = Packed_;  // false: one segment in one page, to measure against
  static constexpr int kRows = kGroupRows * kGroups;
  // A thread's; all threads' are no more than 65,536.
  static constexpr int kFetchRegisters = kGroups == 3 ? 32 : 40;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : 232;
  static_assert(kGroups >= 2 && kGroups <= kMaxGroups && kKeys % 16 == 0, "as far as the barriers go");

  struct Plan {
    Panels16<T, kGroupRows, kDim> q[kGroups];  // as the segment sees them; the results at last
    Panels16<T, kKeys, kDim> k[kStages];
    Panels16<T, kKeys, kDim> v[kStages];
    Shared<Note, kStages> note;
    Shared<float, kStages * kKeys> bias;  // of each key, base 2
    Shared<Rotation, kMaxGroups * PF_MAX_PAIRS> turn;
    // Of each stage: it is here; it may be overwritten.
    Shared<uint64_t, kStages> k_full, k_empty, v_full, v_empty;
    Shared<uint64_t, 1> v_landed;  // of a tile whose end is still to be made 0
  };
};

// Barriers beside 0, which is everybody's.
enum Barrier : int {
  kQueries = 1,                   // of a group: its queries are read, or written
  kMatrixUnits = 1 + kMaxGroups,  // of a group: it may issue its products
};

// A stage of the ring, and the parity of its use.
template <int Stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    stage++;
    if (stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// Where the block works.
struct Place {
  int stream, head, kv_head;
  int row;  // first query
};

// -- fetching -----------------------------------------------------------------------------------

// Sends for a tile's boxes; the barrier counts them. Called by a whole warp.
template <class B>
__device__ __forceinline__ void fetch(const AttentionSm90Params& p, const TensorMap* map, uint32_t tile_at,
                                      uint32_t barrier, const Place& at, const Tile<B::kKeys>& tile) {
  constexpr int kPanels = B::kDim / kPanel;
  const int lane = threadIdx.x % 32;
  // Boxes that hold no key are not fetched: the list may not have their page.
  const int boxes = (tile.keys + p.box_tokens - 1) / p.box_tokens;
  if (lane == 0) mbarrier_arrive_expect_tx(barrier, boxes * kPanels * p.box_tokens * kPanelRowBytes);
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < boxes * kPanels; i += 32) {
    const int panel = i % kPanels, row = i / kPanels * p.box_tokens;
    int token = tile.first + row, page;
    if constexpr (B::kPacked) {
      const int entry = tile.segment.first_page + token / p.a.page_tokens;
      page = load(address<const int32_t>(p.a.pages) + static_cast<int64_t>(at.stream) * p.a.max_pages + entry);
      token %= p.a.page_tokens;
    } else {
      page = at.stream;
    }
    tma_load_4d(tile_at + panel * (B::kKeys * kPanelRowBytes) + row * kPanelRowBytes, map, barrier, panel * kPanel, token,
                at.kv_head, page);
  }
}

// Makes 0 of the rows past the end of a tile of values, which is there.
template <class B>
__device__ __forceinline__ void clear_end(typename B::Plan& plan, int stage, int keys) {
  constexpr int kChunks = B::kDim / 8;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < (B::kKeys - keys) * kChunks; i += 32) {
    const uint32_t offset = panel_offset<B::kKeys>(keys + i / kChunks, i % kChunks);
    store_shared(reinterpret_cast<Words*>(&plan.v[stage].data[offset / 2]), Words{});
  }
}

// The biases of a tile's slots; 0 where they have none.
template <class B>
__device__ __forceinline__ void fetch_biases(const AttentionParams& p, typename B::Plan& plan, const Place& at,
                                             const Tile<B::kKeys>& tile, int stage) {
  const int32_t* pages =
      address<const int32_t>(p.pages) + static_cast<int64_t>(at.stream) * p.max_pages + tile.segment.first_page;
  const float* biases = address<const float>(p.slot_bias) + at.kv_head * p.bias_strides[1];
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < tile.keys; i += 32) {
    float bias = 0.0f;
    if (tile.by_slot(p)) {
      const int token = tile.first + i;
      const int64_t page = load(pages + token / p.page_tokens);
      bias = kLog2E * load(biases + page * p.bias_strides[0] + token % p.page_tokens);
    }
    plan.bias[stage * B::kKeys + i] = bias;
  }
}

// The first tile of a stream, and the next.
template <class B>
__device__ __forceinline__ Tile<B::kKeys> first_tile(const AttentionParams& p, int stream, int count) {
  if constexpr (B::kPacked) return seek<B::kKeys>(p, stream, count, 0, 0);
  Tile<B::kKeys> tile = {};
  tile.segment.tokens = p.page_tokens;
  tile.keys = min(B::kKeys, p.page_tokens);
  return tile;
}
template <class B>
__device__ __forceinline__ Tile<B::kKeys> next_tile(const AttentionParams& p, int stream, int count,
                                                    const Tile<B::kKeys>& tile) {
  if constexpr (B::kPacked) return after<B::kKeys>(p, stream, count, tile);
  Tile<B::kKeys> next = tile;
  next.first += B::kKeys;
  next.keys = min(B::kKeys, max(0, p.page_tokens - next.first));
  return next;
}

// What one warp does: keys, and the notes.
template <class B>
__device__ __forceinline__ void fetch_keys(const AttentionSm90Params& p, typename B::Plan& plan, const Place& at, int count) {
  Ring<B::kStages> ring;
#pragma unroll 1
  for (Tile<B::kKeys> tile = first_tile<B>(p.a, at.stream, count);; tile = next_tile<B>(p.a, at.stream, count, tile)) {
    wait(shared_address(&plan.k_empty[ring.stage]), ring.parity ^ 1);
    Note note = {tile.keys, 0, 0.0f, 0.0f};
    if (B::kPacked && tile.keys > 0) {
      note.bias = tile.segment.key_bias * kLog2E;
      note.rotation = tile.segment.rotation;
      if (tile.first == 0) note.flags |= kTurn;
      if (tile.by_slot(p.a) || !(p.a.scale > 0.0f)) {
        note.flags |= kByKey;
        fetch_biases<B>(p.a, plan, at, tile, ring.stage);
      }
    }
    if (threadIdx.x % 32 == 0) plan.note[ring.stage] = note;
    __syncwarp();
    const uint32_t full = shared_address(&plan.k_full[ring.stage]);
    if (tile.keys == 0) {
      if (threadIdx.x % 32 == 0) mbarrier_arrive(full);
      return;
    }
    fetch<B>(p, &p.k, shared_address(&plan.k[ring.stage].data[0]), full, at, tile);
    ring.next();
  }
}

// What another does: values.
template <class B>
__device__ __forceinline__ void fetch_values(const AttentionSm90Params& p, typename B::Plan& plan, const Place& at,
                                             int count) {
  Ring<B::kStages> ring;
  uint32_t landed = 0;  // parity of v_landed
#pragma unroll 1
  for (Tile<B::kKeys> tile = first_tile<B>(p.a, at.stream, count); tile.keys > 0;
       tile = next_tile<B>(p.a, at.stream, count, tile)) {
    wait(shared_address(&plan.v_empty[ring.stage]), ring.parity ^ 1);
    const uint32_t full = shared_address(&plan.v_full[ring.stage]), clear = shared_address(&plan.v_landed[0]);
    const bool whole = tile.keys == B::kKeys;
    fetch<B>(p, &p.v, shared_address(&plan.v[ring.stage].data[0]), whole ? full : clear, at, tile);
    if (!whole) {
      wait(clear, landed);
      landed ^= 1;
      clear_end<B>(plan, ring.stage, tile.keys);
      fence_proxy_async();
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(full);
    }
    ring.next();
  }
}

// -- computing ----------------------------------------------------------------------------------

// Queries of the group as a segment sees them, into shared memory: all columns, or those that turn. No
// product of the group's is under way.
template <class B>
__device__ __forceinline__ void turn(const AttentionParams& p, typename B::Plan& plan, const Place& at, int group,
                                     float rotation_of_segment, bool all) {
  using T = typename B::T;
  const int thread = threadIdx.x % kGroupThreads;
  const int pairs = p.rope.pairs[0];
  if (B::kPacked && thread < pairs) plan.turn[group * PF_MAX_PAIRS + thread] = rotation(p.rope, thread, rotation_of_segment);
  bar_sync(kQueries + group, kGroupThreads);
  const T* q = address<const T>(p.q) + at.stream * p.q_strides[0] + at.head * p.q_strides[2];
  const int chunks = all ? B::kDim / 8 : (pairs + 3) / 4;
  for (int i = thread; i < kGroupRows * chunks; i += kGroupThreads) {
    const int row = i % kGroupRows, chunk = i / kGroupRows;
    const int64_t token = at.row + group * kGroupRows + row;
    Words words = {};
    if (token < p.q_tokens) words = load_words(q + token * p.q_strides[1] + chunk * 8);
    if (B::kPacked) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int pair = 4 * chunk + j;
        if (pair >= pairs) continue;
        float2 xy = unpack_pair<T>(words, j);
        rotate(xy.x, xy.y, plan.turn[group * PF_MAX_PAIRS + pair]);
        pack_pair<T>(words, j, xy.x, xy.y);
      }
    }
    store_shared(reinterpret_cast<Words*>(&plan.q[group].data[panel_offset<kGroupRows>(row, chunk) / 2]), words);
  }
  fence_proxy_async();
  bar_sync(kQueries + group, kGroupThreads);
}

// Issues s = q k^T.
template <class B>
__device__ __forceinline__ void multiply_keys(float (&s)[B::kKeys / 8][4], uint32_t q, uint32_t k) {
  const uint64_t q_rows = rows_descriptor(q), k_rows = rows_descriptor(k);
#pragma unroll
  for (int i = 0; i < B::kDim / 16; i++)
    wgmma_m64k16<typename B::T, false>(s, q_rows + rows_step<kGroupRows>(i), k_rows + rows_step<B::kKeys>(i), i > 0);
  wgmma_commit();
}

// Issues o += w v.
template <class B>
__device__ __forceinline__ void multiply_values(float (&o)[B::kDim / 8][4], const uint32_t (&w)[B::kKeys / 16][4],
                                                uint32_t v) {
  const uint64_t v_rows = columns_descriptor<B::kKeys>(v);
#pragma unroll
  for (int i = 0; i < B::kKeys / 16; i++) wgmma_m64k16<typename B::T, true>(o, w[i], v_rows + columns_step(i), true);
  wgmma_commit();
}

// What logits are besides a factor and the segment's bias: biased by key, and past the end of a segment
// -inf. What they are to be multiplied by from here on, base 2.
template <class B>
__device__ __forceinline__ float complete(float (&s)[B::kKeys / 8][4], typename B::Plan& plan, const Note& note, int stage,
                                          float scale) {
  const int column = 2 * (threadIdx.x % 4);
  if (B::kPacked && (note.flags & kByKey) != 0) {
#pragma unroll
    for (int n = 0; n < B::kKeys / 8; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float bias = plan.bias[stage * B::kKeys + 8 * n + column + i];
        s[n][i] = fmaf(s[n][i], scale, bias);
        s[n][2 + i] = fmaf(s[n][2 + i], scale, bias);
      }
    }
    scale = 1.0f;
  }
  if (note.keys < B::kKeys) {
    const int end = note.keys - column;
#pragma unroll
    for (int n = 0; n < B::kKeys / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) s[n][i] = 8 * n + i % 2 < end ? s[n][i] : -INFINITY;
    }
  }
  return scale;
}

// Makes weights of logits, in place. Where a row's maximum grew (or is coarse) `true` comes back to the whole warp, and in
// `shrink` what results so far are to be multiplied by: after the first tiles that is seldom.
template <class B>
__device__ __forceinline__ bool weigh(float (&s)[B::kKeys / 8][4], SoftmaxRow (&rows)[2], float (&shrink)[2], float by,
                                      float bias) {
  float top[2];
  bool grew = false;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float x = -INFINITY;
#pragma unroll
    for (int n = 0; n < B::kKeys / 8; n++) x = fmaxf(x, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    top[r] = fmaf(quad_max(x), by, bias);
    grew |= top[r] > rows[r].max || rows[r].coarse();
  }
  const bool raise = __any_sync(0xffffffffu, grew);
  Exponent e[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    shrink[r] = 1.0f;
    e[r] = {by, bias - rows[r].base()};
  }
  if (raise) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      shrink[r] = rows[r].raise(top[r]);
      e[r] = exponent(s, r, rows[r], by, bias);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < B::kKeys / 8; n++) {
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; i++) {
        s[n][i] = ex2(fmaf(s[n][i], e[r].factor, e[r].offset));
        sum += s[n][i];
      }
    }
    rows[r].sum = fmaf(rows[r].sum, shrink[r], sum);
  }
  return raise;
}

template <class B>
__device__ __forceinline__ void rescale(float (&o)[B::kDim / 8][4], const float (&shrink)[2]) {
#pragma unroll
  for (int n = 0; n < B::kDim / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] *= shrink[i / 2];
  }
}

// Weights' accumulators are laid out as the next product's left operand.
template <class B>
__device__ __forceinline__ void pack_weights(uint32_t (&w)[B::kKeys / 16][4], const float (&s)[B::kKeys / 8][4]) {
#pragma unroll
  for (int i = 0; i < B::kKeys / 16; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) w[i][j] = pack<typename B::T>(s[2 * i + j / 2][j % 2 * 2], s[2 * i + j / 2][j % 2 * 2 + 1]);
  }
}

// The matrix units go round: a group waits for its turn, and passes it on when it has issued. The last
// group passes once before all others.
template <class B>
__device__ __forceinline__ void await_turn(int group) {
  if (B::kSchedule != Schedule::kFree) bar_sync(kMatrixUnits + group, 2 * kGroupThreads);
}
template <class B>
__device__ __forceinline__ void pass_turn(int group) {
  if (B::kSchedule != Schedule::kFree) bar_arrive(kMatrixUnits + (group + 1) % B::kGroups, 2 * kGroupThreads);
}

template <class B>
__device__ __forceinline__ void write_out(const AttentionParams& p, typename B::Plan& plan, const Place& at, int group,
                                          float (&o)[B::kDim / 8][4], SoftmaxRow (&rows)[2]) {
  using T = typename B::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kGroupThreads / 32;
  const int first = at.row + group * kGroupRows + 16 * warp;  // query of the warp
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float sum = quad_sum(rows[r].sum);
    const int row = first + lane / 4 + 8 * r;
    if (p.lse != 0 && lane % 4 == 0 && row < p.q_tokens) {
      float* lse = address<float>(p.lse) + at.stream * p.lse_strides[0] + row * p.lse_strides[1] + at.head;
      store(lse, fmaf(rows[r].max, kLn2, logf(sum)));
    }
    factor[r] = sum;
  }
  // Through shared memory, where the queries were, so that rows leave in whole lines.
  bar_sync(kQueries + group, kGroupThreads);
  const uint32_t tile = shared_address(&plan.q[group].data[0]);
#pragma unroll
  for (int n = 0; n < B::kDim / 8; n += 2) {
    uint32_t r[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float* x = &o[n + j / 2][j % 2 * 2];
      const float sum = factor[j % 2];
      r[j] = sum == 0.0f ? 0 : pack<T>(x[0] / sum, x[1] / sum);
    }
    stmatrix_x4(tile + panel_offset<kGroupRows>(16 * warp + lane % 16, n + lane / 16), r);
  }
  __syncwarp();
  constexpr int kChunks = B::kDim / 8;
  T* out = address<T>(p.out) + at.stream * p.out_strides[0] + at.head * p.out_strides[2];
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (first + row >= p.q_tokens) continue;
    const uint32_t offset = panel_offset<kGroupRows>(16 * warp + row, chunk);
    store_words(out + static_cast<int64_t>(first + row) * p.out_strides[1] + chunk * 8,
                *reinterpret_cast<const Words*>(&plan.q[group].data[offset / 2]));
  }
}

template <class B>
__device__ __forceinline__ void compute(const AttentionSm90Params& params, typename B::Plan& plan, const Place& at,
                                        int group) {
  constexpr int kKeys = B::kKeys;
  const AttentionParams& p = params.a;
  const bool speaks = threadIdx.x % 32 == 0;  // for its warp
  const float scale = p.scale * kLog2E;
  const uint32_t q = shared_address(&plan.q[group].data[0]);

  // Lane l has of every accumulator rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next. Logits start
  // as zeros that nobody reads: without, the last tile's would be kept alive for the next.
  float o[B::kDim / 8][4] = {};
  SoftmaxRow rows[2];
  float shrink[2];

  auto k_tile = [&](int stage) { return shared_address(&plan.k[stage].data[0]); };
  auto v_tile = [&](int stage) { return shared_address(&plan.v[stage].data[0]); };
  auto release = [&](Shared<uint64_t, B::kStages>& empty, int stage) {
    __syncwarp();
    if (speaks) mbarrier_arrive(shared_address(&empty[stage]));
  };
  Ring<B::kStages> ring;
  Note note;
  auto await_keys = [&] {
    wait(shared_address(&plan.k_full[ring.stage]), ring.parity);
    note = plan.note[ring.stage];
  };
  auto await_values = [&](const Ring<B::kStages>& at) { wait(shared_address(&plan.v_full[at.stage]), at.parity); };
  // Makes weights of the logits of this tile, whose keys are done with. Whether o is to shrink.
  auto weights = [&](float(&s)[kKeys / 8][4]) {
    const float by = complete<B>(s, plan, note, ring.stage, scale);
    release(plan.k_empty, ring.stage);
    return weigh<B>(s, rows, shrink, by, note.bias);
  };
  auto turn_if_due = [&] {
    if (B::kPacked && (note.flags & kTurn) != 0) turn<B>(p, plan, at, group, note.rotation, false);
  };

  await_keys();
  if (note.keys > 0) {
    if (group == B::kGroups - 1) pass_turn<B>(group);
    turn<B>(p, plan, at, group, note.rotation, true);
    if constexpr (B::kSchedule != Schedule::kOverlapped) {
      while (note.keys > 0) {
        float s[kKeys / 8][4] = {};
        uint32_t w[kKeys / 16][4];
        await_turn<B>(group);
        wgmma_fence();
        multiply_keys<B>(s, q, k_tile(ring.stage));
        pass_turn<B>(group);
        wgmma_wait<0>();
        wgmma_hold(s);
        if (weights(s)) rescale<B>(o, shrink);
        pack_weights<B>(w, s);
        await_values(ring);
        wgmma_hold(o);
        wgmma_fence();
        multiply_values<B>(o, w, v_tile(ring.stage));
        wgmma_wait<0>();
        wgmma_hold(o);
        release(plan.v_empty, ring.stage);
        ring.next();
        await_keys();
        turn_if_due();
      }
      if (group == 0) await_turn<B>(group);  // what the last group passed at last
    } else {
      uint32_t w[kKeys / 16][4];
      {
        float s[kKeys / 8][4] = {};
        await_turn<B>(group);
        wgmma_fence();
        multiply_keys<B>(s, q, k_tile(0));
        pass_turn<B>(group);
        wgmma_wait<0>();
        wgmma_hold(s);
        weights(s);
        pack_weights<B>(w, s);
      }
      for (;;) {
        const Ring<B::kStages> last = ring;
        ring.next();
        await_keys();
        turn_if_due();
        await_values(last);
        await_turn<B>(group);
        wgmma_hold(o);
        if (note.keys == 0) {
          wgmma_fence();
          multiply_values<B>(o, w, v_tile(last.stage));
          if (group < B::kGroups - 1) pass_turn<B>(group);
          wgmma_wait<0>();
          wgmma_hold(o);
          break;
        }
        float s[kKeys / 8][4] = {};
        wgmma_fence();
        multiply_keys<B>(s, q, k_tile(ring.stage));
        multiply_values<B>(o, w, v_tile(last.stage));
        pass_turn<B>(group);
        wgmma_wait<1>();
        wgmma_hold(s);
        const bool shrinks = weights(s);
        wgmma_wait<0>();
        wgmma_hold(o);
        release(plan.v_empty, last.stage);
        if (shrinks) rescale<B>(o, shrink);
        pack_weights<B>(w, s);
      }
    }
  }
  write_out<B>(p, plan, at, group, o, rows);
}

template <class B>
__device__ __forceinline__ void attend(const AttentionSm90Params& p) {
  static_assert(offsetof(AttentionSm90Params, v) % 128 == 0, "the copy engine reads maps from there");
  typename B::Plan& plan = shared_memory<typename B::Plan>();
  if (threadIdx.x == 0) {
    tma_prefetch(&p.k);
    tma_prefetch(&p.v);
    for (int i = 0; i < B::kStages; i++) {
      mbarrier_init(shared_address(&plan.k_full[i]), 1);
      mbarrier_init(shared_address(&plan.v_full[i]), 1);
      mbarrier_init(shared_address(&plan.k_empty[i]), 4 * B::kGroups);  // its warps
      mbarrier_init(shared_address(&plan.v_empty[i]), 4 * B::kGroups);
    }
    mbarrier_init(shared_address(&plan.v_landed[0]), 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  Place at;
  at.row = blockIdx.x * B::kRows;
  at.head = blockIdx.y;
  at.stream = blockIdx.z;
  at.kv_head = at.head / (p.a.q_heads / p.a.kv_heads);
  const int group = threadIdx.x / kGroupThreads;
  if (group == B::kGroups) {
    setmaxnreg_dec<B::kFetchRegisters>();
    const int count = B::kPacked ? load(address<const int32_t>(p.a.counts) + at.stream) : 1;
    const int warp = threadIdx.x % kGroupThreads / 32;
    if (warp == 0) fetch_keys<B>(p, plan, at, count);
    if (warp == 1) fetch_values<B>(p, plan, at, count);
  } else {
    setmaxnreg_inc<B::kComputeRegisters>();
    compute<B>(p, plan, at, group);
  }
}

template <class T>
using Dim64 = Build<T, 64, 3, 96, 3, Schedule::kOverlapped, true>;
template <class T>
using Dim128 = Build<T, 128, 3, 96, 3, Schedule::kTurns, true>;
// To measure against: other orders of work, and neither pages nor segments.
using Free = Build<bf16, 128, 3, 96, 3, Schedule::kFree, true>;
using Overlapped = Build<bf16, 128, 2, 96, 3, Schedule::kOverlapped, true>;
using Plain = Build<bf16, 128, 3, 96, 3, Schedule::kTurns, false>;
using OverlappedPlain = Build<bf16, 128, 2, 96, 3, Schedule::kOverlapped, false>;

}  // namespace

PF_KERNEL(attention_sm90_f16_64, AttentionSm90Params, 512, 1) { attend<Dim64<f16>>(p); }
PF_KERNEL(attention_sm90_f16_128, AttentionSm90Params, 512, 1) { attend<Dim128<f16>>(p); }
PF_KERNEL(attention_sm90_bf16_64, AttentionSm90Params, 512, 1) { attend<Dim64<bf16>>(p); }
PF_KERNEL(attention_sm90_bf16_128, AttentionSm90Params, 512, 1) { attend<Dim128<bf16>>(p); }
PF_KERNEL(attention_sm90_free_bf16_128, AttentionSm90Params, 512, 1) { attend<Free>(p); }
PF_KERNEL(attention_sm90_overlapped_bf16_128, AttentionSm90Params, 384, 1) { attend<Overlapped>(p); }
PF_KERNEL(attention_sm90_plain_bf16_128, AttentionSm90Params, 512, 1) { attend<Plain>(p); }
PF_KERNEL(attention_sm90_overlapped_plain_bf16_128, AttentionSm90Params, 384, 1) { attend<OverlappedPlain>(p); }
