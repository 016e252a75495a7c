// Runs every shipped kernel over small shapes that hurt: tails, partly filled pages, pages in no order,
// grouped heads, several streams, empty streams. A sanitizer watches; here only plain sanity is looked
// at: that everything was written, and is a number. A kernel without a row in the table is an error.
#include <math.h>
#include <params.h>

#include <initializer_list>
#include <vector>

#include "sanitize.h"

using namespace sanitize;

namespace {

// -- numbers ------------------------------------------------------------------------------------

enum DType { F32, F16, BF16 };

size_t bytes_of(DType t) { return t == F32 ? 4 : 2; }

float get(const Buffer& b, DType t, size_t i) {
  if (t == F32) return b.as<float>()[i];
  uint16_t bits = b.as<uint16_t>()[i];
  return t == F16 ? simt::float_from_half(bits) : simt::float_from_bfloat(bits);
}

void set(const Buffer& b, DType t, size_t i, float x) {
  if (t == F32) b.as<float>()[i] = x;
  if (t == F16) b.as<uint16_t>()[i] = simt::half_from_float(x);
  if (t == BF16) b.as<uint16_t>()[i] = simt::bfloat_from_float(x);
}

// Numbers between -1 and 1, none of them the same soon.
Buffer numbers(DType t, size_t n) {
  Buffer b(n * bytes_of(t));
  for (size_t i = 0; i < n; ++i) set(b, t, i, sinf(static_cast<float>(i % 10007) * 0.7f));
  return b;
}

template <class T>
Buffer list(std::initializer_list<T> values) {
  Buffer b(values.size() * sizeof(T));
  memcpy(b.as<T>(), values.begin(), values.size() * sizeof(T));
  return b;
}

RopeParams rope(int dim) {
  RopeParams r = {};
  int pairs = dim / 2, space = dim / 6;
  r.pairs[0] = pairs - 2 * space;
  r.pairs[1] = r.pairs[2] = space;
  for (int i = 0; i < pairs; ++i) r.turns[i] = 0.15 / (1 + i);
  return r;
}

// -- one run ------------------------------------------------------------------------------------

bool failed = false;

struct Run {
  const char* kernel;
  DType dtype;
  int variant;  // a number of the table's, 0 and up
  uint64_t seed;

  void fail(const char* what) const {
    fprintf(stderr, "%s, seed %llu: %s\n", kernel, static_cast<unsigned long long>(seed), what);
    failed = true;
  }
  template <class Params>
  void launch(const Params& p, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared_bytes,
              std::initializer_list<SimtSpan> spans) const {
    if (!sanitize::launch(kernel, p, x, y, z, threads, shared_bytes, spans, seed)) fail("it did not run to its end");
  }
  // [outer, inner] elements from `first` on must be finite.
  void finite(const char* name, const Buffer& b, DType t, size_t first, size_t count) const {
    for (size_t i = first; i < first + count; ++i) {
      if (!isfinite(get(b, t, i))) {
        char text[128];
        snprintf(text, sizeof text, "%s[%zu] is %g", name, i, static_cast<double>(get(b, t, i)));
        return fail(text);
      }
    }
  }
  void is(const char* name, long long got, long long expected) const {
    if (got == expected) return;
    char text[128];
    snprintf(text, sizeof text, "%s is %lld, not %lld", name, got, expected);
    fail(text);
  }
};

uint32_t up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

// -- kernels ------------------------------------------------------------------------------------

// A pool as the copy engine reads it: boxes of 64 columns and `tokens` tokens.
TensorMap boxes(const Buffer& pool, const int64_t (&strides)[3], int dim, int page_tokens, int heads, int pages, int tokens) {
  SimtTensorMap map = {};
  map.magic = SIMT_TENSOR_MAP;
  map.address = pool.address();
  map.rank = 4, map.element_bytes = 2, map.swizzle = 128;
  const int extents[] = {dim, page_tokens, heads, pages, 1}, sizes[] = {64, tokens, 1, 1, 1};
  for (int d = 0; d < 5; ++d) map.dim[d] = static_cast<uint32_t>(extents[d]), map.box[d] = static_cast<uint32_t>(sizes[d]);
  for (int d = 0; d < 3; ++d) map.stride[d] = static_cast<uint64_t>(2 * strides[2 - d]);
  TensorMap words = {};
  memcpy(&words, &map, sizeof map);
  return words;
}

// Three streams over pages of 24 tokens (tiles are of 64, or 96): one with segments that end inside a page,
// inside a tile and on both, one of whose segments is empty; one with a single key; one with none. 130
// queries: a block and a piece of one; for ThreadSanitizer, to which each thread is dear, a piece alone.
// Two query heads for a kv head. `variant` is the head dim.
void attention(const Run& run) {
  const int dim = run.variant, streams = 3, q_tokens = kExact ? 130 : 100, q_heads = 2, kv_heads = 1, page_tokens = 24;
  const int pool = 12, max_pages = 10, max_segments = 4;
  const size_t rows = static_cast<size_t>(streams) * q_tokens * q_heads;
  Buffer q = numbers(run.dtype, rows * dim), out(rows * dim * 2), lse(rows * 4);
  Buffer k = numbers(run.dtype, static_cast<size_t>(pool) * kv_heads * page_tokens * dim);
  Buffer v = numbers(run.dtype, static_cast<size_t>(pool) * kv_heads * page_tokens * dim);
  Buffer bias = numbers(F32, static_cast<size_t>(pool) * kv_heads * page_tokens);
  Buffer pages = list<int32_t>({11, 0, 7, 3, 9, 5, 1, 2, 4, 6, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  const Segment none = {0, 0, 0.0f, 0.0f, 0, 0};
  Buffer segments = list<Segment>({{0, 100, 3.0f, 0.5f, 0, 0}, {5, 0, 1.0f, 0.0f, 0, 0}, {5, 64, 2.0f, 0.0f, 1, 0}, {8, 48, 0.0f, -1.0f, 0, 0},
                                   {0, 1, 1.0f, 0.0f, 1, 0}, none, none, none, none, none, none, none});
  Buffer counts = list<int32_t>({4, 1, 0});
  const bool plain = run.seed % 2 == 0;

  AttentionParams p = {};
  p.q = q.address(), p.k = k.address(), p.v = v.address(), p.out = out.address();
  p.slot_bias = plain ? bias.address() : 0;
  p.lse = plain ? lse.address() : 0;
  p.pages = pages.address(), p.segments = segments.address(), p.counts = counts.address();
  for (int64_t* s : {p.q_strides, p.out_strides}) s[0] = q_tokens * q_heads * dim, s[1] = q_heads * dim, s[2] = dim;
  for (int64_t* s : {p.k_strides, p.v_strides}) s[0] = kv_heads * page_tokens * dim, s[1] = page_tokens * dim, s[2] = dim;
  p.bias_strides[0] = kv_heads * page_tokens, p.bias_strides[1] = page_tokens;
  p.lse_strides[0] = q_tokens * q_heads, p.lse_strides[1] = q_heads;
  p.rope = rope(dim);
  p.streams = streams, p.q_tokens = q_tokens, p.q_heads = q_heads, p.kv_heads = kv_heads;
  p.page_tokens = page_tokens, p.max_pages = max_pages, p.max_segments = max_segments;
  // Below 0 every tile is biased by key, which the builds without pages do not know.
  p.scale = plain || strstr(run.kernel, "plain") ? 0.125f : -0.125f;
  const auto spans = {q.span(false),     k.span(false),        v.span(false),      bias.span(false), pages.span(false),
                      segments.span(false), counts.span(false), out.span(true), lse.span(true)};
  if (strstr(run.kernel, "sm90")) {
    const uint32_t groups = strstr(run.kernel, "overlapped") ? 2 : 3;
    const uint32_t shared = up(2 * dim * (64 * groups + 2 * 3 * 96) + 3 * (16 + 4 * 96) + 3 * 8 * PF_MAX_PAIRS + 8 * 13, 1024);
    AttentionSm90Params p90 = {};
    p90.a = p;
    p90.box_tokens = 24;
    p90.k = boxes(k, p.k_strides, dim, page_tokens, kv_heads, pool, p90.box_tokens);
    p90.v = boxes(v, p.v_strides, dim, page_tokens, kv_heads, pool, p90.box_tokens);
    run.launch(p90, (q_tokens + 64 * groups - 1) / (64 * groups), q_heads, streams, 128 * (1 + groups), shared, spans);
  } else {
    const uint32_t shared = 2 * (128 + 2 * 2 * 64) * dim + 2 * (8 * PF_MAX_PAIRS + 4 * 64);
    run.launch(p, (q_tokens + 127) / 128, q_heads, streams, 256, shared, spans);
  }
  run.finite("out", out, run.dtype, 0, rows * dim);
  if (plain) run.finite("lse", lse, F32, 0, rows / streams * 2);
  // What knows no segments attends to a page of its own in every stream.
  if (plain && !strstr(run.kernel, "plain")) run.is("lse of no keys is -inf", get(lse, F32, rows - 1) == -INFINITY, 1);
}

// 37 rows of 3 heads of 40 elements: blocks end in the middle of a row.
void merge_states(const Run& run) {
  const int rows = 37, heads = 3, dim = 40;
  const size_t n = static_cast<size_t>(rows) * heads;
  Buffer a = numbers(run.dtype, n * dim), b = numbers(run.dtype, n * dim), out(n * dim * bytes_of(run.dtype));
  Buffer a_lse = numbers(F32, n), b_lse = numbers(F32, n), lse(n * 4);
  a_lse.as<float>()[0] = a_lse.as<float>()[1] = b_lse.as<float>()[1] = b_lse.as<float>()[2] = -INFINITY;
  MergeStatesParams p = {};
  p.a_out = a.address(), p.a_lse = a_lse.address(), p.b_out = b.address(), p.b_lse = b_lse.address();
  p.out = out.address(), p.lse = lse.address();
  for (int64_t* s : {p.a_strides, p.b_strides, p.out_strides}) s[0] = heads * dim, s[1] = dim;
  p.a_lse_stride = p.b_lse_stride = p.lse_stride = heads;
  p.rows = rows, p.heads = heads, p.dim = dim;
  const uint32_t lanes = dim * bytes_of(run.dtype) / 16;
  run.launch(p, up(rows * heads * lanes, 256) / 256, 1, 1, 256, 0,
             {a.span(false), a_lse.span(false), b.span(false), b_lse.span(false), out.span(true), lse.span(true)});
  run.finite("out", out, run.dtype, 0, n * dim);
  run.finite("lse", lse, F32, 0, 1);
  run.finite("lse", lse, F32, 2, n - 2);
  run.is("lse of no keys is -inf", get(lse, F32, 1) == -INFINITY, 1);
}

// 2 x 3 x 3 tokens of two streams in pages of 7: the last page has slots to zero. Five query heads take
// two passes of a thread; norm and origins come and go with the seed.
void append_kv(const Run& run) {
  const int streams = 2, tokens = 18, q_heads = 6, kv_heads = 3, dim = 40, page_tokens = 7, max_pages = 3, pool = 8;
  const DType t = run.dtype;
  const size_t q_n = static_cast<size_t>(streams) * tokens * q_heads * dim;
  const size_t kv_n = static_cast<size_t>(streams) * tokens * kv_heads * dim;
  const size_t page = static_cast<size_t>(kv_heads) * page_tokens * dim;
  Buffer q = numbers(t, q_n), k = numbers(t, kv_n), v = numbers(t, kv_n), q_out(q_n * bytes_of(t));
  Buffer q_weight = numbers(t, q_heads * dim), k_weight = numbers(t, kv_heads * dim);
  Buffer k_pages(pool * page * bytes_of(t)), v_pages(pool * page * bytes_of(t));
  const int used[] = {5, 0, 3, 7, 1, 2};
  Buffer pages = list<int32_t>({5, 0, 3, 7, 1, 2}), origins = list<float>({0.0f, 12.5f});
  const bool norm = run.seed % 2 == 0, queries = run.seed % 3 != 1;

  AppendKvParams p = {};
  p.k = k.address(), p.v = v.address(), p.k_pages = k_pages.address(), p.v_pages = v_pages.address();
  if (queries) p.q = q.address(), p.q_out = q_out.address();
  if (norm) p.k_weight = k_weight.address(), p.origins = origins.address();
  if (norm && queries) p.q_weight = q_weight.address();
  p.page_list = pages.address();
  for (int64_t* s : {p.q_strides, p.q_out_strides}) s[0] = tokens * q_heads * dim, s[1] = q_heads * dim, s[2] = dim;
  for (int64_t* s : {p.k_strides, p.v_strides}) s[0] = tokens * kv_heads * dim, s[1] = kv_heads * dim, s[2] = dim;
  for (int64_t* s : {p.k_page_strides, p.v_page_strides}) s[0] = page, s[1] = page_tokens * dim, s[2] = dim;
  p.rope = rope(dim);
  p.start[0] = 4.0;
  p.step[0] = p.step[1] = p.step[2] = 1.0;
  p.grid[0] = 2, p.grid[1] = p.grid[2] = 3;
  p.streams = streams, p.q_heads = queries ? q_heads : 0, p.kv_heads = kv_heads, p.dim = dim;
  p.page_tokens = page_tokens, p.max_pages = max_pages, p.eps = 1e-6f;
  const uint32_t lanes = dim * bytes_of(t) / 16, passes = 4;
  const uint32_t threads = up(up(queries ? q_heads : kv_heads, passes) / passes * lanes, 32);
  run.launch(p, max_pages * page_tokens, streams, 1, threads, 8 * PF_MAX_PAIRS + 2 * 4 * 512 / 32,
             {q.span(false), k.span(false), v.span(false), q_weight.span(false), k_weight.span(false),
              pages.span(false), origins.span(false), q_out.span(true), k_pages.span(true), v_pages.span(true)});
  if (queries) run.finite("q_out", q_out, t, 0, q_n);
  for (int u : used) run.finite("k_pages", k_pages, t, u * page, page);
  for (int u : used) run.finite("v_pages", v_pages, t, u * page, page);
}

// 3 x 5 x 6 tokens over cells of 2 x 2 x 4, which do not fill it: 2 x 3 x 2 merged tokens in pages of 7.
// A second run has one cell of all 90 tokens, in pages of 5, and heads for several groups of blocks.
void merge_tokens(const Run& run) {
  const bool one = run.seed % 2 == 1;
  const int batch = 2, dim = 32, heads = one ? 33 : 3, page_tokens = one ? 5 : 7;
  const int source_pages = one ? 18 : 13, dest_pages = one ? 1 : 2, pool = 2 * (source_pages + dest_pages);
  const DType t = run.dtype;
  const size_t page = static_cast<size_t>(heads) * page_tokens * dim;
  Buffer k = numbers(t, pool * page), v = numbers(t, pool * page), bias(static_cast<size_t>(pool) * heads * page_tokens * 4);
  Buffer source(batch * source_pages * 4), dest(batch * dest_pages * 4);
  for (int i = 0; i < batch * source_pages; ++i) source.as<int32_t>()[i] = pool - 1 - i;
  for (int i = 0; i < batch * dest_pages; ++i) dest.as<int32_t>()[i] = i;
  const size_t written = batch * dest_pages * page;
  memset(k.as<char>(), 0xff, written * bytes_of(t));
  memset(v.as<char>(), 0xff, written * bytes_of(t));

  MergeTokensParams p = {};
  p.k_pages = k.address(), p.v_pages = v.address(), p.slot_bias = bias.address();
  p.source = source.address(), p.dest = dest.address();
  for (int64_t* s : {p.k_page_strides, p.v_page_strides}) s[0] = page, s[1] = page_tokens * dim, s[2] = dim;
  p.bias_strides[0] = heads * page_tokens, p.bias_strides[1] = page_tokens;
  p.rope = rope(dim);
  const int grid[] = {3, 5, 6}, cell[] = {2, 2, 4};
  for (int axis = 0; axis < 3; ++axis) {
    p.grid[axis] = grid[axis];
    p.cell[axis] = one ? grid[axis] : cell[axis];
    p.out[axis] = (grid[axis] + p.cell[axis] - 1) / p.cell[axis];
  }
  p.batch = batch, p.kv_heads = heads, p.dim = dim, p.page_tokens = page_tokens;
  p.source_pages = source_pages, p.dest_pages = dest_pages;
  const uint32_t lanes = dim * bytes_of(t) / 16;
  uint32_t groups = up(heads * lanes, 256) / 256;
  const uint32_t threads = up(up(heads, groups) / groups * lanes, 32);
  groups = up(heads, threads / lanes) / (threads / lanes);
  run.launch(p, dest_pages * page_tokens, batch, 2 * groups, threads, 8 * 4096 + 24 * 128,
             {source.span(false), dest.span(false), k.span(true), v.span(true), bias.span(true)});
  run.finite("k_pages", k, t, 0, written);
  run.finite("v_pages", v, t, 0, written);
  run.finite("slot_bias", bias, F32, 0, static_cast<size_t>(batch) * dest_pages * heads * page_tokens);
}

// 45 tokens in chunks of 20; a head dim of 24, or of 21, which no vector fits.
void sum_tokens(const Run& run) {
  const int streams = 2, tokens = 45, heads = 2, chunks = 3, dim = run.seed % 2 ? 21 : 24;
  Buffer x = numbers(run.dtype, static_cast<size_t>(streams) * tokens * heads * dim);
  Buffer sums(static_cast<size_t>(streams) * chunks * heads * dim * 4);
  SumTokensParams p = {};
  p.x = x.address(), p.sums = sums.address();
  p.x_strides[0] = tokens * heads * dim, p.x_strides[1] = heads * dim, p.x_strides[2] = dim;
  p.sum_strides[0] = chunks * heads * dim, p.sum_strides[1] = heads * dim, p.sum_strides[2] = dim;
  p.tokens = tokens, p.dim = dim, p.chunk_tokens = 20, p.vectors = dim == 24;
  run.launch(p, heads, chunks, streams, 256, 4 * 256 * 8, {x.span(false), sums.span(true)});
  run.finite("sums", sums, F32, 0, static_cast<size_t>(streams) * chunks * heads * dim);
}

// Three blocks of 17 keys in pages of 7, of which one has no row.
void sum_keys(const Run& run) {
  const int pool = 10, heads = 2, page_tokens = 7, dim = run.seed % 2 ? 21 : 24, rows = 4;
  Buffer k = numbers(run.dtype, static_cast<size_t>(pool) * heads * page_tokens * dim);
  Buffer pages = list<int32_t>({9, 1, 4, 0, 2, 3, 8, 7, 5}), to = list<int32_t>({3, -1, 0});
  Buffer sums(static_cast<size_t>(rows) * heads * dim * 4);
  SumKeysParams p = {};
  p.k = k.address(), p.pages = pages.address(), p.rows = to.address(), p.sums = sums.address();
  p.k_strides[0] = heads * page_tokens * dim, p.k_strides[1] = page_tokens * dim, p.k_strides[2] = dim;
  p.sum_strides[0] = heads * dim, p.sum_strides[1] = dim;
  p.tokens = 17, p.dim = dim, p.page_tokens = page_tokens, p.block_pages = 3, p.row_count = rows;
  p.vectors = dim == 24;
  run.launch(p, heads, 3, 1, 256, 4 * 256 * 8, {k.span(false), pages.span(false), to.span(false), sums.span(true)});
  for (int row : {0, 3}) run.finite("sums", sums, F32, static_cast<size_t>(row) * heads * dim, heads * dim);
}

// 19 candidates in one stream, 3 in another: groups of eight that are not full.
void score_blocks(const Run& run) {
  const int streams = 2, chunks = 3, q_heads = 4, kv_heads = 2, dim = 24, slots = 20, most = 19;
  Buffer query = numbers(F32, static_cast<size_t>(streams) * chunks * q_heads * dim);
  Buffer keys = numbers(F32, static_cast<size_t>(slots) * kv_heads * dim);
  Buffer candidates(streams * most * 4), counts = list<int32_t>({19, 3}), scores(streams * most * 4);
  for (int i = 0; i < streams * most; ++i) candidates.as<int32_t>()[i] = i % slots;
  ScoreBlocksParams p = {};
  p.query_sums = query.address(), p.key_sums = keys.address(), p.candidates = candidates.address();
  p.counts = counts.address(), p.scores = scores.address();
  p.query_sum_strides[0] = chunks * q_heads * dim, p.query_sum_strides[1] = q_heads * dim, p.query_sum_strides[2] = dim;
  p.key_sum_strides[0] = kv_heads * dim, p.key_sum_strides[1] = dim;
  p.candidate_stride = p.score_stride = most;
  p.chunks = chunks, p.q_heads = q_heads, p.kv_heads = kv_heads, p.dim = dim, p.slots = slots, p.max_candidates = most;
  run.launch(p, (most + 7) / 8, streams, 1, 256, 4 * 8192,
             {query.span(false), keys.span(false), candidates.span(false), counts.span(false), scores.span(true)});
  run.finite("scores", scores, F32, 0, most);
  run.finite("scores", scores, F32, most, 3);
}

// Five of 300 candidates, many with equal scores; a stream with fewer candidates than are chosen, and
// one with none.
void select_blocks(const Run& run) {
  const int streams = 3, most = 300, slots = 300, selected = 5, block_pages = 2, page_tokens = 8;
  const int draft_pages = 6, draft_segments = 3, max_pages = draft_pages + selected * block_pages;
  const int max_segments = draft_segments + selected;
  Buffer scores(streams * most * 4), candidates(streams * most * 4), slot_pages(slots * block_pages * 4);
  for (int i = 0; i < streams * most; ++i) {
    scores.as<float>()[i] = static_cast<float>(i * 7 % 11);
    candidates.as<int32_t>()[i] = i % slots;
  }
  for (int i = 0; i < slots * block_pages; ++i) slot_pages.as<int32_t>()[i] = i;
  Buffer counts = list<int32_t>({300, 3, 0}), prefix = list<int32_t>({1, 3, 0}), draft_counts = list<int32_t>({3, 3, 2});
  Buffer pages_in(streams * draft_pages * 4), segments_in(streams * draft_segments * sizeof(Segment));
  for (int i = 0; i < streams * draft_pages; ++i) pages_in.as<int32_t>()[i] = 900 + i;
  for (int i = 0; i < streams * draft_segments; ++i)
    segments_in.as<Segment>()[i] = {2 * (i % draft_segments), 13, static_cast<float>(i), 0.0f, 0, 0};
  Buffer chosen(streams * selected * 4), pages(streams * max_pages * 4);
  Buffer segments(streams * max_segments * sizeof(Segment)), segment_counts(streams * 4);

  SelectBlocksParams p = {};
  p.scores = scores.address(), p.candidates = candidates.address(), p.counts = counts.address();
  p.slot_pages = slot_pages.address(), p.draft_pages = pages_in.address(), p.draft_segments = segments_in.address();
  p.draft_counts = draft_counts.address(), p.draft_prefix = prefix.address(), p.chosen = chosen.address();
  p.pages = pages.address(), p.segments = segments.address(), p.segment_counts = segment_counts.address();
  p.score_stride = p.candidate_stride = most, p.chosen_stride = selected;
  p.selected = selected, p.max_candidates = most, p.slots = slots, p.slot_max_pages = block_pages;
  p.block_pages = block_pages, p.block_tokens = 16, p.page_tokens = page_tokens;
  p.draft_max_pages = draft_pages, p.draft_max_segments = draft_segments;
  p.max_pages = max_pages, p.max_segments = max_segments, p.block_frames = 4.0f;
  run.launch(p, streams, 1, 1, 256, 4 * (8192 + 1024 + 1),
             {scores.span(false), candidates.span(false), counts.span(false), slot_pages.span(false),
              pages_in.span(false), segments_in.span(false), draft_counts.span(false), prefix.span(false),
              chosen.span(true), pages.span(true), segments.span(true), segment_counts.span(true)});
  const int in_use[] = {5, 3, 0}, in_draft[] = {3, 3, 2};
  for (int s = 0; s < streams; ++s) {
    run.is("segments", segment_counts.as<int32_t>()[s], in_use[s] + in_draft[s]);
    for (int j = 0; j < selected; ++j)
      run.is("chosen is set", chosen.as<int32_t>()[s * selected + j] >= 0, j < in_use[s]);
    for (int i = 0; i < 2 * in_draft[s] + block_pages * in_use[s]; ++i)
      run.is("page is set", pages.as<int32_t>()[s * max_pages + i] >= 0, 1);
  }
}

// 3 x 5 frames; rows of `variant` elements a vector, and a last block that is not full. Terms and outputs
// of every dtype, an output that is a term, too.
void denoise_step(const Run& run) {
  const int outer = 3, frames = 5, inner = run.variant * 24 + (run.variant == 1 ? 1 : 0);
  const int64_t n = int64_t{outer} * frames * inner;
  Buffer x = numbers(F32, n), v = numbers(BF16, n), w = numbers(F16, n), out(n * 2);
  Buffer coefficients = numbers(F32, 2 * (3 + 1) * frames);
  DenoiseStepParams p = {};
  const DType types[] = {F32, BF16, F16};
  const int tags[] = {PF_DTYPE_F32, PF_DTYPE_F16, PF_DTYPE_BF16};
  const uint64_t terms[] = {x.address(), v.address(), w.address()};
  for (int i = 0; i < 3; ++i) {
    p.terms[i] = terms[i];
    p.term_strides[i][0] = int64_t{frames} * inner, p.term_strides[i][1] = inner;
    p.term_dtypes[i] = tags[types[i]];
  }
  p.outputs[0] = x.address(), p.outputs[1] = out.address();
  for (int i = 0; i < 2; ++i) p.output_strides[i][0] = int64_t{frames} * inner, p.output_strides[i][1] = inner;
  p.output_dtypes[0] = PF_DTYPE_F32, p.output_dtypes[1] = PF_DTYPE_BF16;
  p.coefficients = coefficients.address();
  p.outer = outer, p.frames = frames, p.inner = inner, p.seed = 7, p.offset = 3;
  p.term_count = 3, p.output_count = 2, p.noise = run.seed % 2;
  Buffer base = list<uint64_t>({5, 9}), weights = numbers(F32, outer * 2);
  if (run.seed % 2) p.noise_base = base.address(), p.guidance = weights.address(), p.sample_rows = frames;
  const uint32_t lanes = run.variant == 8 ? 8 : 4;
  const uint32_t threads = up(static_cast<uint32_t>(n), lanes) / lanes;
  run.launch(p, up(threads, 256) / 256, 1, 1, 256, 0,
             {x.span(true), v.span(false), w.span(false), out.span(true), coefficients.span(false), base.span(false),
              weights.span(false)});
  run.finite("x", x, F32, 0, n);
  run.finite("out", out, BF16, 0, n);
}

// Blocks of 2 x 3 x 5 tokens, two of them, in pages of 8 of which the last is not full; two heads that
// match each for itself, or together.
struct Matched {
  static constexpr int batch = 2, heads = 2, tokens = 30, page_tokens = 8, pool = 12, chosen = 5, staying = 10;
  MatchTokensParams p = {};
  Buffer source = list<int32_t>({3, 9, 0, 7, 5, 1, 11, 2}), dest = list<int32_t>({4, 10, 6, 8});
  Buffer destinations = list<int32_t>({0, 3, 10, 17, 25});
  Buffer k, v, bias = numbers(F32, pool * heads * page_tokens), turns;
  Buffer nearest, similarity, map, counts, members, starts;

  Matched(const Run& run, int dim, int maps)
      : k(numbers(run.dtype, static_cast<size_t>(pool) * heads * page_tokens * dim)),
        v(numbers(run.dtype, static_cast<size_t>(pool) * heads * page_tokens * dim)),
        turns(numbers(F32, 2 * 5 * dim)),  // a table of more than it takes
        nearest(4 * batch * maps * tokens),
        similarity(4 * batch * maps * tokens),
        map(4 * batch * maps * tokens),
        counts(4 * batch * maps),
        members(4 * batch * maps * tokens),
        starts(4 * batch * maps * (tokens + 1)) {
    p.k_pages = k.address(), p.v_pages = v.address(), p.slot_bias = bias.address();
    p.source = source.address(), p.dest = dest.address(), p.destinations = destinations.address();
    p.turns = turns.address(), p.nearest = nearest.address(), p.similarity = similarity.address();
    p.map = map.address(), p.counts = counts.address(), p.members = members.address(), p.starts = starts.address();
    for (int64_t* s : {p.k_page_strides, p.v_page_strides})
      s[0] = heads * page_tokens * dim, s[1] = page_tokens * dim, s[2] = dim;
    p.bias_strides[0] = heads * page_tokens, p.bias_strides[1] = page_tokens;
    p.rope = rope(dim);
    p.grid[0] = 2, p.grid[1] = 3, p.grid[2] = 5;
    p.tokens = tokens, p.destination_count = chosen, p.kv_heads = heads, p.maps = maps, p.dim = dim;
    p.page_tokens = page_tokens, p.source_pages = 4, p.dest_pages = 2;
    p.top = tokens - staying, p.weighted = run.seed % 2, p.replace = run.seed % 3 == 2;
  }
  void launch(const Run& run, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared) const {
    run.launch(p, x, y, z, threads, shared,
               {k.span(true), v.span(true), bias.span(true), source.span(false), dest.span(false),
                destinations.span(false), turns.span(false), nearest.span(true), similarity.span(true), map.span(true),
                counts.span(true), members.span(true), starts.span(true)});
  }
};

// `variant` is the head dim.
void score_tokens(const Run& run) {
  const int maps = 1 + run.seed % 2;
  Matched m(run, run.variant, maps);
  const uint32_t tile = run.dtype == F32 ? 32 : 64, row = run.dtype == F32 ? 4 * run.variant + 16 : 2 * run.variant;
  m.launch(run, 1, maps, Matched::batch, 256, up((128 + tile) * (row + 28) + 4 * 128, 128));
  for (int i = 0; i < Matched::batch * maps * Matched::tokens; ++i) {
    const int to = m.nearest.as<int32_t>()[i];
    run.is("a destination", to == 0 || to == 3 || to == 10 || to == 17 || to == 25, 1);
  }
}

void choose_tokens(const Run& run) {
  Matched m(run, 64, 2);
  const int32_t at[] = {0, 3, 10, 17, 25};
  for (int i = 0; i < Matched::batch * 2 * Matched::tokens; ++i) {
    const int token = i % Matched::tokens;
    int to = at[i * 7 % 5];
    for (int d : at) to = d == token ? token : to;
    m.nearest.as<int32_t>()[i] = to;
    // Few different numbers, so that ties are cut through.
    m.similarity.as<float>()[i] = to == token ? INFINITY : static_cast<float>(i % 3) - 1.0f;
  }
  m.launch(run, Matched::batch * 2, 1, 1, 512, 6 * 16384 + 4 * 512 / 32);
  for (int map = 0; map < Matched::batch * 2; ++map) {
    run.is("staying tokens", m.counts.as<int32_t>()[map], Matched::staying);
    long long sum = 0;
    for (int i = 0; i < Matched::tokens; ++i) sum += m.members.as<int32_t>()[map * Matched::tokens + i];
    run.is("the sum of all members", sum, Matched::tokens * (Matched::tokens - 1) / 2);
  }
}

void merge_members(const Run& run) {
  const int dim = 64;
  Matched m(run, dim, 2);
  for (int map = 0; map < Matched::batch * 2; ++map) {
    // Three tokens each; one merged token stands for the last alone, and the slots behind for none.
    const int merged = Matched::staying + 1;
    m.counts.as<int32_t>()[map] = merged;
    int32_t* starts = m.starts.as<int32_t>() + map * (Matched::tokens + 1);
    for (int i = 0; i < merged; ++i) starts[i] = i < 10 ? i * 29 / 10 : 29;
    starts[merged] = Matched::tokens;
    for (int i = 0; i < Matched::tokens; ++i) {
      m.members.as<int32_t>()[map * Matched::tokens + i] = (i * 7 + map) % Matched::tokens;
      m.nearest.as<int32_t>()[map * Matched::tokens + i] = i / 6 * 6;
    }
  }
  const uint32_t lanes = dim * static_cast<uint32_t>(bytes_of(run.dtype)) / 16;
  m.launch(run, 2 * Matched::page_tokens, Matched::heads, Matched::batch, up(2 * lanes, 32), 24 * 32);
  const size_t page = static_cast<size_t>(Matched::heads) * Matched::page_tokens * dim;
  for (int dest : {4, 10, 6, 8}) {
    run.finite("k", m.k, run.dtype, dest * page, page);
    run.finite("v", m.v, run.dtype, dest * page, page);
  }
}

// Rows of whole vectors, or of 7.
void unmerge_tokens(const Run& run) {
  const bool vectors = run.seed % 2 == 0;
  const int batch = 2, heads = 2, tokens = 9, merged = 4, dim = vectors ? 16 : 7;
  Buffer x = numbers(run.dtype, batch * merged * heads * dim);
  Buffer out(batch * tokens * heads * dim * bytes_of(run.dtype)), map(4 * batch * tokens);
  for (int i = 0; i < batch * tokens; ++i) map.as<int32_t>()[i] = i % merged;
  UnmergeTokensParams p = {};
  p.x = x.address(), p.map = map.address(), p.out = out.address();
  p.x_strides[0] = merged * heads * dim, p.x_strides[1] = heads * dim, p.x_strides[2] = dim;
  p.map_strides[0] = p.map_strides[1] = tokens;
  p.out_strides[0] = tokens * heads * dim, p.out_strides[1] = heads * dim, p.out_strides[2] = dim;
  p.tokens = tokens, p.merged = merged, p.heads = heads, p.maps = 1, p.dim = dim, p.vectors = vectors;
  const uint32_t lanes = vectors ? dim * static_cast<uint32_t>(bytes_of(run.dtype)) / 16 : dim;
  run.launch(p, up(tokens * heads * lanes, 256) / 256, batch, 1, 256, 0, {x.span(false), map.span(false), out.span(true)});
  run.finite("out", out, run.dtype, 0, static_cast<size_t>(batch) * tokens * heads * dim);
}

// Two samples of 3 rows, each of more than a part; `variant` elements a load.
void guidance_moments(const Run& run) {
  const int samples = 2, rows = 3, inner = PF_MOMENTS_PART / 2 + (run.variant == 4 ? 4 : 3);
  const int parts = (rows * inner + PF_MOMENTS_PART - 1) / PF_MOMENTS_PART;
  Buffer c = numbers(BF16, samples * rows * inner), u = numbers(F32, samples * rows * inner);
  Buffer partial(8 * samples * parts * PF_MOMENTS), weights(4 * samples * 2);
  GuidanceParams p = {};
  p.cond = c.address(), p.uncond = u.address(), p.partial = partial.address(), p.weights = weights.address();
  p.cond_strides[0] = p.uncond_strides[0] = int64_t{rows} * inner;
  p.cond_strides[1] = p.uncond_strides[1] = inner;
  p.frames = rows, p.inner = inner, p.sample_rows = rows, p.parts = parts;
  p.cond_dtype = PF_DTYPE_BF16, p.uncond_dtype = PF_DTYPE_F32;
  run.launch(p, samples * parts, 1, 1, 256, 8 * PF_MOMENTS * 256, {c.span(false), u.span(false), partial.span(true)});
  for (int i = 0; i < samples * parts * PF_MOMENTS; ++i) run.is("a finite moment", isfinite(partial.as<double>()[i]), 1);
}

void guidance_weights(const Run& run) {
  const int samples = 2, parts = 300;  // more than threads
  Buffer partial(8 * samples * parts * PF_MOMENTS), weights(4 * samples * 2);
  for (int i = 0; i < samples * parts * PF_MOMENTS; ++i) partial.as<double>()[i] = i % PF_MOMENTS < 2 ? 0.0 : i % PF_MOMENTS == 3 ? 0.5 : 1.0;
  GuidanceParams p = {};
  p.partial = partial.address(), p.weights = weights.address();
  p.sample_rows = 3, p.inner = 7, p.parts = parts, p.scale = 5.0, p.rescale = 0.7, p.zero_star = run.seed % 2;
  run.launch(p, samples, 1, 1, 256, 8 * PF_MOMENTS * 256, {partial.span(false), weights.span(true)});
  run.finite("weights", weights, F32, 0, samples * 2);
}

// -- the table ----------------------------------------------------------------------------------

struct Case {
  const char* kernel;
  void (*run)(const Run&);
  DType dtype;
  int variant;
};

const Case kCases[] = {
    {"attention_sm80_f16_64", attention, F16, 64},
    {"attention_sm80_f16_128", attention, F16, 128},
    {"attention_sm80_bf16_64", attention, BF16, 64},
    {"attention_sm80_bf16_128", attention, BF16, 128},
    {"attention_sm90_f16_64", attention, F16, 64},
    {"attention_sm90_f16_128", attention, F16, 128},
    {"attention_sm90_bf16_64", attention, BF16, 64},
    {"attention_sm90_bf16_128", attention, BF16, 128},
    {"attention_sm90_free_bf16_128", attention, BF16, 128},
    {"attention_sm90_overlapped_bf16_128", attention, BF16, 128},
    {"attention_sm90_plain_bf16_128", attention, BF16, 128},
    {"attention_sm90_overlapped_plain_bf16_128", attention, BF16, 128},
    {"merge_states_f32", merge_states, F32, 0},
    {"merge_states_f16", merge_states, F16, 0},
    {"merge_states_bf16", merge_states, BF16, 0},
    {"append_kv_f32", append_kv, F32, 0},
    {"append_kv_f16", append_kv, F16, 0},
    {"append_kv_bf16", append_kv, BF16, 0},
    {"merge_tokens_f32", merge_tokens, F32, 0},
    {"merge_tokens_f16", merge_tokens, F16, 0},
    {"merge_tokens_bf16", merge_tokens, BF16, 0},
    {"sum_tokens_f32", sum_tokens, F32, 0},
    {"sum_tokens_f16", sum_tokens, F16, 0},
    {"sum_tokens_bf16", sum_tokens, BF16, 0},
    {"sum_keys_f32", sum_keys, F32, 0},
    {"sum_keys_f16", sum_keys, F16, 0},
    {"sum_keys_bf16", sum_keys, BF16, 0},
    {"score_blocks", score_blocks, F32, 0},
    {"select_blocks", select_blocks, F32, 0},
    {"denoise_step_vec8", denoise_step, F32, 8},
    {"denoise_step_vec4", denoise_step, F32, 4},
    {"denoise_step_any", denoise_step, F32, 1},
    {"score_tokens_f32_64", score_tokens, F32, 64},
    {"score_tokens_f32_128", score_tokens, F32, 128},
    {"score_tokens_f16_64", score_tokens, F16, 64},
    {"score_tokens_f16_128", score_tokens, F16, 128},
    {"score_tokens_bf16_64", score_tokens, BF16, 64},
    {"score_tokens_bf16_128", score_tokens, BF16, 128},
    {"choose_tokens", choose_tokens, F32, 0},
    {"merge_members_f32", merge_members, F32, 0},
    {"merge_members_f16", merge_members, F16, 0},
    {"merge_members_bf16", merge_members, BF16, 0},
    {"unmerge_tokens_f32", unmerge_tokens, F32, 0},
    {"unmerge_tokens_f16", unmerge_tokens, F16, 0},
    {"unmerge_tokens_bf16", unmerge_tokens, BF16, 0},
    {"guidance_moments_vec4", guidance_moments, F32, 4},
    {"guidance_moments_any", guidance_moments, F32, 1},
    {"guidance_weights", guidance_weights, F32, 0},
};

// Every seed is another schedule; 0, 1, 2 let copies land late, early and at random.
// ThreadSanitizer sees what is ordered, whatever the schedule: two, for what depends on the seed's parity.
constexpr uint64_t kSeeds = kExact ? 3 : 2;

}  // namespace

int main() {
  for (size_t i = 0; i < simt_kernel_count; ++i) {
    bool found = false;
    for (const Case& c : kCases) found |= strcmp(c.kernel, simt_kernels[i]->name) == 0;
    if (!found) fprintf(stderr, "no case runs the kernel %s\n", simt_kernels[i]->name), failed = true;
  }
  for (const Case& c : kCases) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) c.run({c.kernel, c.dtype, c.variant, seed});
  }
  if (failed) return 1;
  printf("%zu shipped kernels, %llu schedules each: nothing was found\n", sizeof kCases / sizeof *kCases,
         static_cast<unsigned long long>(kSeeds));
  return 0;
}
