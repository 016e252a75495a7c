/* The argument struct of every kernel: the one truth that CUDA C++ and Rust share.
 *
 * C99 with fixed-width types. A device address is a uint64_t, a stride counts elements of the
 * tensor it belongs to, the innermost stride is always 1 and is not passed. Padding is spelled
 * out, so that every struct can be copied as bytes. `T` is the dtype a kernel was made for.
 */
#ifndef PACKFORCING_PARAMS_H
#define PACKFORCING_PARAMS_H

#include <stdint.h>

/* Rotary pairs of the largest head dim that a kernel takes (128). */
#define PF_MAX_PAIRS 64
/* Lists in `DenoiseStepParams`. */
#define PF_MAX_TERMS 8
#define PF_MAX_OUTPUTS 4

/* How an element is stored, where one kernel takes several. */
#define PF_DTYPE_F32 0
#define PF_DTYPE_F16 1
#define PF_DTYPE_BF16 2

/* A run of pages that one query rotation serves. `rotation` says how many frames the query block's
 * time origin stands after the segment's: the query's temporal pairs are turned ahead by it. */
typedef struct Segment {
  int32_t first_page; /* index into the stream's page list */
  int32_t tokens;     /* keys in the segment; its last page may be partly filled */
  float rotation;     /* frames */
  float key_bias;     /* added to every logit (natural log) */
  int32_t slot_bias;  /* 1: the bias of each key's slot is added too */
  int32_t reserved;
} Segment;

/* Three-axis rotary embedding, interleaved pairs, in the order time, row, column. */
typedef struct RopeParams {
  double turns[PF_MAX_PAIRS]; /* full turns per unit of position, for each pair */
  int32_t pairs[3];           /* pairs that belong to time, row, column */
  int32_t reserved;
} RopeParams;

typedef struct AttentionParams {
  uint64_t q;         /* T [streams, q_tokens, q_heads, dim] */
  uint64_t k;         /* T [pages, kv_heads, page_tokens, dim] */
  uint64_t v;         /* T [pages, kv_heads, page_tokens, dim] */
  uint64_t slot_bias; /* f32 [pages, kv_heads, page_tokens], or 0 */
  uint64_t pages;     /* i32 [streams, max_pages] */
  uint64_t segments;  /* Segment [streams, max_segments] */
  uint64_t counts;    /* i32 [streams]: segments in use */
  uint64_t out;       /* T [streams, q_tokens, q_heads, dim] */
  uint64_t lse;       /* f32 [streams, q_tokens, q_heads], or 0 */
  int64_t q_strides[3];
  int64_t k_strides[3];
  int64_t v_strides[3];
  int64_t bias_strides[2]; /* page, head */
  int64_t out_strides[3];
  int64_t lse_strides[2]; /* stream, token */
  RopeParams rope;
  int32_t streams;
  int32_t q_tokens;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t page_tokens;
  int32_t max_pages;
  int32_t max_segments;
  float scale; /* of the logits, natural */
} AttentionParams;

/* What the copy engine of sm_90 reads a tensor by: opaque to the kernels, made by the launcher. */
typedef struct TensorMap {
  uint64_t words[16];
} __attribute__((aligned(128))) TensorMap;

/* Of attention_sm90: k and v as (column, token in page, kv head, page), in boxes of 64 columns times
 * `box_tokens` tokens. */
typedef struct AttentionSm90Params {
  TensorMap k;
  TensorMap v;
  AttentionParams a;
  int32_t box_tokens; /* divides the kernel's tile of keys, and page_tokens or no box crosses a page's end */
  int32_t reserved;
} AttentionSm90Params;

typedef struct MergeStatesParams {
  uint64_t a_out; /* T [rows, heads, dim] */
  uint64_t a_lse; /* f32 [rows, heads] */
  uint64_t b_out; /* T [rows, heads, dim] */
  uint64_t b_lse; /* f32 [rows, heads] */
  uint64_t out;   /* T [rows, heads, dim] */
  uint64_t lse;   /* f32 [rows, heads] */
  int64_t a_strides[2];
  int64_t b_strides[2];
  int64_t out_strides[2];
  int64_t a_lse_stride; /* row */
  int64_t b_lse_stride;
  int64_t lse_stride;
  int64_t rows;
  int32_t heads;
  int32_t dim;
} MergeStatesParams;

typedef struct AppendKvParams {
  uint64_t q;         /* T [streams, tokens, q_heads, dim], or 0 */
  uint64_t k;         /* T [streams, tokens, kv_heads, dim] */
  uint64_t v;         /* T [streams, tokens, kv_heads, dim] */
  uint64_t q_weight;  /* T [q_heads * dim], or 0: no norm */
  uint64_t k_weight;  /* T [kv_heads * dim], or 0: no norm */
  uint64_t q_out;     /* T [streams, tokens, q_heads, dim], or 0 */
  uint64_t k_pages;   /* T [pages, kv_heads, page_tokens, dim] */
  uint64_t v_pages;   /* T [pages, kv_heads, page_tokens, dim] */
  uint64_t page_list; /* i32 [streams, max_pages] */
  uint64_t origins;   /* f32 [streams]: added to every time, or 0 */
  int64_t q_strides[3];
  int64_t k_strides[3];
  int64_t v_strides[3];
  int64_t q_out_strides[3];
  int64_t k_page_strides[3];
  int64_t v_page_strides[3];
  RopeParams rope;
  double start[3]; /* position of the first token: time, row, column */
  double step[3];  /* distance of neighbours */
  int32_t grid[3]; /* tokens along time, row, column */
  int32_t streams;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t dim;
  int32_t page_tokens;
  int32_t max_pages;
  float eps;
} AppendKvParams;

typedef struct MergeTokensParams {
  uint64_t k_pages;   /* T [pages, kv_heads, page_tokens, dim], read and written */
  uint64_t v_pages;   /* T [pages, kv_heads, page_tokens, dim], read and written */
  uint64_t slot_bias; /* f32 [pages, kv_heads, page_tokens]: log sizes out, or 0 */
  uint64_t source;    /* i32 [batch, source_pages] */
  uint64_t dest;      /* i32 [batch, dest_pages] */
  int64_t k_page_strides[3];
  int64_t v_page_strides[3];
  int64_t bias_strides[2]; /* page, head */
  RopeParams rope;
  int32_t grid[3]; /* tokens of the source along time, row, column */
  int32_t cell[3]; /* tokens that one merged token stands for */
  int32_t out[3];  /* merged tokens along time, row, column */
  int32_t batch;
  int32_t kv_heads;
  int32_t dim;
  int32_t page_tokens;
  int32_t source_pages;
  int32_t dest_pages;
  int32_t reserved;
} MergeTokensParams;

/* Of all kernels of a matching. A map is a head of a block, or a block where heads are matched together. */
typedef struct MatchTokensParams {
  uint64_t k_pages;      /* T [pages, kv_heads, page_tokens, dim], read and written */
  uint64_t v_pages;      /* T [pages, kv_heads, page_tokens, dim], read and written */
  uint64_t slot_bias;    /* f32 [pages, kv_heads, page_tokens]: log sizes out, and in if `weighted`; or 0 */
  uint64_t source;       /* i32 [batch, source_pages] */
  uint64_t dest;         /* i32 [batch, dest_pages] */
  uint64_t destinations; /* i32 [destination_count], ascending */
  uint64_t turns;        /* f32 [sum over axes of extent * pairs, 2]: cosine and sine by place and pair */
  uint64_t nearest;      /* i32 [batch, maps, tokens] */
  uint64_t similarity;   /* f32 [batch, maps, tokens] */
  uint64_t map;          /* i32 [batch, maps, tokens] */
  uint64_t counts;       /* i32 [batch, maps] */
  uint64_t members;      /* i32 [batch, maps, tokens] */
  uint64_t starts;       /* i32 [batch, maps, tokens + 1] */
  int64_t k_page_strides[3];
  int64_t v_page_strides[3];
  int64_t bias_strides[2]; /* page, head */
  RopeParams rope;
  int32_t grid[3]; /* tokens of a block along time, row, column */
  int32_t tokens;
  int32_t destination_count;
  int32_t kv_heads;
  int32_t maps; /* of a block: kv_heads, or 1 */
  int32_t dim;
  int32_t page_tokens;
  int32_t source_pages;
  int32_t dest_pages;
  int32_t top;     /* sources that merge; below 0: all whose similarity is at least `threshold` */
  float threshold;
  int32_t weighted;
  int32_t replace; /* 1: destinations keep their own key and value */
  int32_t reserved;
} MatchTokensParams;

typedef struct UnmergeTokensParams {
  uint64_t x;   /* T [batch, merged, heads, dim] */
  uint64_t map; /* i32 [batch, maps, tokens] */
  uint64_t out; /* T [batch, tokens, heads, dim] */
  int64_t x_strides[3];
  int64_t map_strides[2];
  int64_t out_strides[3];
  int32_t tokens;
  int32_t merged;
  int32_t heads;
  int32_t maps; /* heads, or 1 */
  int32_t dim;
  int32_t vectors; /* 1: rows of x and out are made of whole, aligned 16-byte vectors */
} UnmergeTokensParams;

/* Sums over tokens, in chunks of `chunk_tokens`. */
typedef struct SumTokensParams {
  uint64_t x;    /* T [streams, tokens, heads, dim] */
  uint64_t sums; /* f32 [streams, chunks, heads, dim] */
  int64_t x_strides[3];
  int64_t sum_strides[3];
  int32_t tokens;
  int32_t dim;
  int32_t chunk_tokens;
  int32_t vectors; /* 1: rows of x are made of whole, aligned 16-byte vectors */
} SumTokensParams;

/* Sums over the keys of paged blocks. */
typedef struct SumKeysParams {
  uint64_t k;     /* T [pages, kv_heads, page_tokens, dim] */
  uint64_t pages; /* i32 [blocks, block_pages] */
  uint64_t rows;  /* i32 [blocks]: the row of `sums` that a block fills; outside: none */
  uint64_t sums;  /* f32 [row_count, kv_heads, dim] */
  int64_t k_strides[3];
  int64_t sum_strides[2];
  int32_t tokens; /* keys of a block */
  int32_t dim;
  int32_t page_tokens;
  int32_t block_pages;
  int32_t row_count;
  int32_t vectors; /* 1: rows of k are made of whole, aligned 16-byte vectors */
} SumKeysParams;

typedef struct ScoreBlocksParams {
  uint64_t query_sums; /* f32 [streams, chunks, q_heads, dim] */
  uint64_t key_sums;   /* f32 [slots, kv_heads, dim] */
  uint64_t candidates; /* i32 [streams, max_candidates]: slots in time order */
  uint64_t counts;     /* i32 [streams]: candidates in use */
  uint64_t scores;     /* f32 [streams, max_candidates] */
  int64_t query_sum_strides[3];
  int64_t key_sum_strides[2];
  int64_t candidate_stride; /* stream */
  int64_t score_stride;     /* stream */
  int32_t chunks;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t dim;
  int32_t slots;
  int32_t max_candidates;
} ScoreBlocksParams;

typedef struct SelectBlocksParams {
  uint64_t scores;         /* f32 [streams, max_candidates] */
  uint64_t candidates;     /* i32 [streams, max_candidates]: slots in time order */
  uint64_t counts;         /* i32 [streams]: candidates in use */
  uint64_t slot_pages;     /* i32 [slots, slot_max_pages] */
  uint64_t draft_pages;    /* i32 [streams, draft_max_pages] */
  uint64_t draft_segments; /* Segment [streams, draft_max_segments] */
  uint64_t draft_counts;   /* i32 [streams]: segments in use */
  uint64_t draft_prefix;   /* i32 [streams]: segments before the chosen blocks */
  uint64_t chosen;         /* i32 [streams, selected], out: candidate indices in time order, then -1 */
  uint64_t pages;          /* i32 [streams, max_pages], out */
  uint64_t segments;       /* Segment [streams, max_segments], out */
  uint64_t segment_counts; /* i32 [streams], out */
  int64_t score_stride;     /* stream */
  int64_t candidate_stride; /* stream */
  int64_t chosen_stride;    /* stream */
  int32_t selected;
  int32_t max_candidates;
  int32_t slots;
  int32_t slot_max_pages;
  int32_t block_pages; /* of a chosen block */
  int32_t block_tokens;
  int32_t page_tokens;
  int32_t draft_max_pages;
  int32_t draft_max_segments;
  int32_t max_pages;
  int32_t max_segments;
  int32_t slot_bias;  /* of a chosen block's segment */
  float key_bias;     /* of a chosen block's segment */
  float block_frames; /* packed time that a chosen block takes up */
} SelectBlocksParams;

typedef struct DenoiseStepParams {
  uint64_t terms[PF_MAX_TERMS];     /* [outer, frames, inner] each, of its own dtype */
  uint64_t outputs[PF_MAX_OUTPUTS]; /* [outer, frames, inner] each, of its own dtype */
  uint64_t coefficients;            /* f32 [outputs, term_count + 1, frames]; the last row is the noise's */
  int64_t term_strides[PF_MAX_TERMS][2];
  int64_t output_strides[PF_MAX_OUTPUTS][2];
  int32_t term_dtypes[PF_MAX_TERMS];
  int32_t output_dtypes[PF_MAX_OUTPUTS];
  int64_t outer;
  int64_t frames;
  int64_t inner;
  uint64_t seed;
  uint64_t offset;     /* Philox counter of the first four elements */
  uint64_t noise_base; /* u64 [2], seed and offset that are added to the two above; or 0 */
  uint64_t guidance;   /* f32 [samples, 2]: factors of the last two terms' coefficients, or 0 */
  int64_t sample_rows; /* outer x frame rows of a sample */
  int32_t term_count;
  int32_t output_count;
  int32_t noise; /* 1: draw noise */
  int32_t reserved;
} DenoiseStepParams;

/* Elements whose moments one block of `guidance_moments` sums. */
#define PF_MOMENTS_PART 4096
/* Sums of c, u, c c, c u, u u. */
#define PF_MOMENTS 5

typedef struct GuidanceParams {
  uint64_t cond;    /* [rows / frames, frames, inner], of its own dtype */
  uint64_t uncond;  /* the same */
  uint64_t partial; /* f64 [samples, parts, PF_MOMENTS] */
  uint64_t weights; /* f32 [samples, 2] */
  int64_t cond_strides[2];
  int64_t uncond_strides[2];
  int64_t frames;
  int64_t inner;
  int64_t sample_rows; /* rows of a sample; it has sample_rows x inner elements */
  int64_t parts;       /* of a sample: elements / PF_MOMENTS_PART, rounded up */
  double scale;
  double rescale;
  int32_t cond_dtype;
  int32_t uncond_dtype;
  int32_t zero_star;
  int32_t reserved;
} GuidanceParams;

#endif
