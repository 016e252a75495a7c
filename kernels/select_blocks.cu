// Choosing the compressed blocks that a block attends to, and laying its context out. Four kernels:
//
//   sum_tokens     S_q[h] = sum_i q_i[h], in chunks of tokens
//   sum_keys       S_m[h] = sum_j k_j[h] over the keys of block m, once in the block's life
//   score_blocks   score[m] = sum_h S_q[h] . S_m[h / group] = sum_h sum_ij q_i[h] . k_j[h / group]
//   select_blocks  the k best, in time order, between the sink and the recent blocks
//
// The score is linear in q and k, so the sums stand for all pairs. Nothing is added atomically: the
// order of every sum is fixed, and a rerun chooses the same blocks. select_blocks finds the k-th
// best score bit by bit, the highest bit first (32 counts over scores in shared memory, however many
// are chosen), then one warp walks over the candidates in time order and writes down those that are
// above it, and as many of the equal ones as there is room for.
//
// Floors: sum_tokens reads q once (19 MB of a Wan block, 4 us at 4.8 TB/s); score_blocks reads one
// row of kv_heads * dim floats a candidate (6 KB). The rest is latency.
#include <kernel.cuh>
#include <types.cuh>

namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kLanes = 8;           // elements a thread adds up, at most
constexpr int kMaxWidth = 8192;     // kv_heads * dim
constexpr int kMaxCandidates = 8192;
constexpr int kMaxSelected = 1024;
constexpr unsigned kFullWarp = 0xffffffffu;

struct SumPlan {
  Shared<float, kThreads * kLanes> sums; // [groups][dim]
};

struct ScorePlan {
  Shared<float, kMaxWidth> query; // [kv_heads][dim]
};

struct SelectPlan {
  Shared<uint32_t, kMaxCandidates> keys; // scores, so that a larger key is a better score
  Shared<int, kMaxSelected> chosen;      // candidate indices in time order
  Shared<int, 1> count;                  // how many are chosen
};

// -- sums ---------------------------------------------------------------------------------------

// out[c] = sum over r < rows of row(r)[c] for c < dim, dim up to 256. Neighbouring threads take
// neighbouring columns, N each; groups of them take every groups-th row; then one thread a column
// adds the groups up.
template <int N, class T, class Row>
__device__ __forceinline__ void sum_rows(int rows, int dim, Row row, float* out) {
  SumPlan& shared = shared_memory<SumPlan>();
  int lanes = dim / N;
  int groups = kThreads / lanes;
  int group = static_cast<int>(threadIdx.x) / lanes;
  int column = static_cast<int>(threadIdx.x) % lanes * N;
  if (group < groups) {
    float sum[N] = {};
#pragma unroll 4
    for (int r = group; r < rows; r += groups) {
      Vec<T, N> x = load_vec<N>(row(r) + column);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += to_float(x[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) shared.sums[group * dim + column + i] = sum[i];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < dim) {
    float sum = 0.0f;
    for (int g = 0; g < groups; ++g) sum += shared.sums[g * dim + static_cast<int>(threadIdx.x)];
    store(out + threadIdx.x, sum);
  }
}

// Grid: heads, chunks, streams.
template <class T>
__device__ __forceinline__ void sum_tokens(const SumTokensParams& p) {
  int head = blockIdx.x, chunk = blockIdx.y, stream = blockIdx.z;
  int first = min(chunk * p.chunk_tokens, p.tokens);
  int rows = min(p.chunk_tokens, p.tokens - first);
  const T* x = address<const T>(p.x) + stream * p.x_strides[0] + first * p.x_strides[1] + head * p.x_strides[2];
  float* out =
      address<float>(p.sums) + stream * p.sum_strides[0] + chunk * p.sum_strides[1] + head * p.sum_strides[2];
  auto row = [&](int r) { return x + r * p.x_strides[1]; };
  if (p.vectors) {
    sum_rows<kLane16<T>, T>(rows, p.dim, row, out);
  } else {
    sum_rows<1, T>(rows, p.dim, row, out);
  }
}

// Grid: heads, blocks.
template <class T>
__device__ __forceinline__ void sum_keys(const SumKeysParams& p) {
  int head = blockIdx.x, block = blockIdx.y;
  int to = load(address<const int>(p.rows) + block);
  if (to < 0 || to >= p.row_count) return;
  const T* k = address<const T>(p.k) + head * p.k_strides[1];
  const int* pages = address<const int>(p.pages) + static_cast<int64_t>(block) * p.block_pages;
  float* out = address<float>(p.sums) + to * p.sum_strides[0] + head * p.sum_strides[1];
  auto row = [&](int r) {
    int page = load(pages + r / p.page_tokens);
    return k + page * p.k_strides[0] + r % p.page_tokens * p.k_strides[2];
  };
  if (p.vectors) {
    sum_rows<kLane16<T>, T>(p.tokens, p.dim, row, out);
  } else {
    sum_rows<1, T>(p.tokens, p.dim, row, out);
  }
}

// -- scores -------------------------------------------------------------------------------------

// Candidates in use: what the host cannot see is held to what there is.
__device__ __forceinline__ int candidates_in_use(uint64_t counts, int stream, int max_candidates, int slots) {
  int count = load(address<const int>(counts) + stream);
  return slots == 0 ? 0 : max(0, min(count, max_candidates));
}

__device__ __forceinline__ int slot_of(uint64_t candidates, int64_t at, int slots) {
  return max(0, min(load(address<const int>(candidates) + at), slots - 1));
}

// Grid: groups of candidates, streams. Every block adds the queries' chunks up for itself (they are
// in L2), then each warp takes a candidate.
__device__ __forceinline__ void score(const ScoreBlocksParams& p) {
  ScorePlan& shared = shared_memory<ScorePlan>();
  int tid = threadIdx.x, stream = blockIdx.y;
  int count = candidates_in_use(p.counts, stream, p.max_candidates, p.slots);
  int first = blockIdx.x * (kThreads / kWarp);
  if (first >= count) return;

  int width = p.kv_heads * p.dim, group = p.q_heads / p.kv_heads;
  const float* partial = address<const float>(p.query_sums) + stream * p.query_sum_strides[0];
  for (int c = tid; c < width; c += kThreads) {
    int head = c / p.dim * group;
    float sum = 0.0f;
    for (int h = head; h < head + group; ++h) {
      const float* from = partial + h * p.query_sum_strides[2] + c % p.dim;
#pragma unroll 8
      for (int chunk = 0; chunk < p.chunks; ++chunk) sum += load(from + chunk * p.query_sum_strides[1]);
    }
    shared.query[c] = sum;
  }
  __syncthreads();

  int m = first + tid / kWarp, lane = tid % kWarp;
  if (m >= count) return;
  int slot = slot_of(p.candidates, stream * p.candidate_stride + m, p.slots);
  const float* keys = address<const float>(p.key_sums) + slot * p.key_sum_strides[0];
  float score = 0.0f;
#pragma unroll 4
  for (int c = lane; c < width; c += kWarp) {
    score += shared.query[c] * load(keys + c / p.dim * p.key_sum_strides[1] + c % p.dim);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(kFullWarp, score, offset);
  if (lane == 0) store(address<float>(p.scores) + stream * p.score_stride + m, score);
}

// -- selection ----------------------------------------------------------------------------------

// A key that grows with the score: 0 for NaN, the same for both zeros.
__device__ __forceinline__ uint32_t sort_key(float score) {
  uint32_t bits = __float_as_uint(score + 0.0f);
  if (score != score) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The `selected`-th largest key of `count` > `selected`: the largest number that so many keys reach.
__device__ __forceinline__ uint32_t threshold(SelectPlan& shared, int count, int selected) {
  uint32_t found = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    int reach = 0;
    for (int base = 0; base < count; base += kThreads) {
      int m = base + static_cast<int>(threadIdx.x);
      reach += __syncthreads_count(m < count && shared.keys[m] >= (found | bit));
    }
    if (reach >= selected) found |= bit;
  }
  return found;
}

// One warp: the candidates above `limit`, and the first `ties` of those equal to it.
__device__ __forceinline__ void collect(SelectPlan& shared, int count, uint32_t limit, int ties) {
  int lane = threadIdx.x, taken = 0;
  unsigned before = (1u << lane) - 1;
  for (int base = 0; base < count; base += kWarp) {
    int m = base + lane;
    uint32_t key = m < count ? shared.keys[m] : 0;
    unsigned equal = __ballot_sync(kFullWarp, m < count && key == limit);
    bool mine = m < count && (key > limit || (key == limit && __popc(equal & before) < ties));
    unsigned all = __ballot_sync(kFullWarp, mine);
    if (mine) shared.chosen[taken + __popc(all & before)] = m;
    taken += __popc(all);
    ties -= __popc(equal);
  }
  if (lane == 0) shared.count[0] = taken;
}

// What a stream's context is made of; the same in all threads.
struct Layout {
  const Segment* draft;
  int prefix, total; // segments of the draft
  int chosen;
};

// Copies a piece of a page list; all threads take part.
__device__ __forceinline__ void copy_pages(int* to, int room, const int* from, int count) {
  for (int i = threadIdx.x; i < min(count, room); i += kThreads) store(to + i, load(from + i));
}

// Segments `from` to `to` of the draft as the context's from `at` on; returns the next free page.
__device__ __forceinline__ int copy_segments(const SelectBlocksParams& p, int stream, const Layout& layout, int from,
                                             int to, int at, int page, float turned) {
  const int* draft_pages = address<const int>(p.draft_pages) + static_cast<int64_t>(stream) * p.draft_max_pages;
  int* pages = address<int>(p.pages) + static_cast<int64_t>(stream) * p.max_pages;
  Segment* segments = address<Segment>(p.segments) + static_cast<int64_t>(stream) * p.max_segments;
  for (int i = from; i < to; ++i, ++at) {
    Segment segment = load(layout.draft + i);
    int first = segment.first_page;
    int count = min((segment.tokens + p.page_tokens - 1) / p.page_tokens, p.draft_max_pages - first);
    copy_pages(pages + page, p.max_pages - page, draft_pages + first, count);
    segment.first_page = page;
    segment.rotation += turned;
    if (threadIdx.x == 0) store(segments + at, segment);
    page += count;
  }
  return page;
}

// The context: prefix, chosen blocks, the rest, packed to the right.
__device__ __forceinline__ void lay_out(const SelectBlocksParams& p, int stream, const SelectPlan& shared,
                                        const Layout& layout) {
  int n = layout.chosen;
  int page = copy_segments(p, stream, layout, 0, layout.prefix, 0, 0, n * p.block_frames);

  float behind = layout.prefix < layout.total ? load(&layout.draft[layout.prefix].rotation) : 0.0f;
  Segment* segments = address<Segment>(p.segments) + static_cast<int64_t>(stream) * p.max_segments + layout.prefix;
  int* pages = address<int>(p.pages) + static_cast<int64_t>(stream) * p.max_pages;
  for (int j = threadIdx.x; j < n; j += kThreads) {
    Segment segment;
    segment.first_page = page + j * p.block_pages;
    segment.tokens = p.block_tokens;
    segment.rotation = behind + (n - j) * p.block_frames;
    segment.key_bias = p.key_bias;
    segment.slot_bias = p.slot_bias;
    segment.reserved = 0;
    store(segments + j, segment);
  }
  for (int i = threadIdx.x; i < n * p.block_pages; i += kThreads) {
    int64_t candidate = stream * p.candidate_stride + shared.chosen[i / p.block_pages];
    int64_t slot = slot_of(p.candidates, candidate, p.slots);
    const int* from = address<const int>(p.slot_pages) + slot * p.slot_max_pages;
    store(pages + page + i, load(from + i % p.block_pages));
  }
  page += n * p.block_pages;

  copy_segments(p, stream, layout, layout.prefix, layout.total, layout.prefix + n, page, 0.0f);
  if (threadIdx.x == 0) store(address<int>(p.segment_counts) + stream, layout.total + n);
}

// Grid: streams.
__device__ __forceinline__ void select(const SelectBlocksParams& p) {
  SelectPlan& shared = shared_memory<SelectPlan>();
  int tid = threadIdx.x, stream = blockIdx.x;
  int count = candidates_in_use(p.counts, stream, p.max_candidates, p.slots);
  const float* scores = address<const float>(p.scores) + stream * p.score_stride;
  for (int m = tid; m < count; m += kThreads) shared.keys[m] = sort_key(load(scores + m));
  __syncthreads();

  // Without a choice to make, all candidates are above the limit or among the ties.
  uint32_t limit = 0;
  int ties = p.selected;
  if (p.selected > 0 && count > p.selected) {
    limit = threshold(shared, count, p.selected);
    for (int base = 0; base < count; base += kThreads) {
      ties -= __syncthreads_count(base + tid < count && shared.keys[base + tid] > limit);
    }
  }
  if (tid < kWarp) collect(shared, p.selected > 0 ? count : 0, limit, ties);
  __syncthreads();

  Layout layout;
  layout.draft = address<const Segment>(p.draft_segments) + static_cast<int64_t>(stream) * p.draft_max_segments;
  layout.total = max(0, min(load(address<const int>(p.draft_counts) + stream), p.draft_max_segments));
  layout.prefix = max(0, min(load(address<const int>(p.draft_prefix) + stream), layout.total));
  layout.chosen = shared.count[0];
  int* chosen = address<int>(p.chosen) + stream * p.chosen_stride;
  for (int j = tid; j < p.selected; j += kThreads) store(chosen + j, j < layout.chosen ? shared.chosen[j] : -1);
  lay_out(p, stream, shared, layout);
}

}  // namespace

PF_KERNEL(sum_tokens_f32, SumTokensParams, 256) { sum_tokens<float>(p); }
PF_KERNEL(sum_tokens_f16, SumTokensParams, 256) { sum_tokens<f16>(p); }
PF_KERNEL(sum_tokens_bf16, SumTokensParams, 256) { sum_tokens<bf16>(p); }

PF_KERNEL(sum_keys_f32, SumKeysParams, 256) { sum_keys<float>(p); }
PF_KERNEL(sum_keys_f16, SumKeysParams, 256) { sum_keys<f16>(p); }
PF_KERNEL(sum_keys_bf16, SumKeysParams, 256) { sum_keys<bf16>(p); }

PF_KERNEL(score_blocks, ScoreBlocksParams, 256) { score(p); }
PF_KERNEL(select_blocks, SelectBlocksParams, 256) { select(p); }
