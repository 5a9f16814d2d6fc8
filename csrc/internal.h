/* internal.h - block sizes of each instruction set, and the pieces that the .c files share.
 *
 * The sources are compiled once per instruction set.  MINILORA_SUFFIX, where defined, is appended to
 * every external name so that the copies can live in one library; dispatch.c chooses among them.
 */
#ifndef MINILORA_INTERNAL_H
#define MINILORA_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef MINILORA_SUFFIX
#define MINILORA_JOIN_(name, suffix) name##suffix
#define MINILORA_JOIN(name, suffix) MINILORA_JOIN_(name, suffix)
#define MINILORA_NAME(name) MINILORA_JOIN(name, MINILORA_SUFFIX)
#define minilora_lora_workspace_f32 MINILORA_NAME(minilora_lora_workspace_f32)
#define minilora_lora_forward_f32 MINILORA_NAME(minilora_lora_forward_f32)
#define minilora_mixed_lora_forward_f32 MINILORA_NAME(minilora_mixed_lora_forward_f32)
#define minilora_lora_backward_f32 MINILORA_NAME(minilora_lora_backward_f32)
#define minilora_peak_fma_f32 MINILORA_NAME(minilora_peak_fma_f32)
#define minilora_read_f32 MINILORA_NAME(minilora_read_f32)
#define minilora_team MINILORA_NAME(minilora_team)
#define minilora_meet MINILORA_NAME(minilora_meet)
#define minilora_line_bytes MINILORA_NAME(minilora_line_bytes)
#define minilora_decode MINILORA_NAME(minilora_decode)
#define minilora_transpose MINILORA_NAME(minilora_transpose)
#define minilora_pack MINILORA_NAME(minilora_pack)
#define minilora_dot_product MINILORA_NAME(minilora_dot_product)
#define minilora_line_product MINILORA_NAME(minilora_line_product)
#define minilora_share MINILORA_NAME(minilora_share)
#define minilora_product MINILORA_NAME(minilora_product)
#define minilora_attention_workspace_f32 MINILORA_NAME(minilora_attention_workspace_f32)
#define minilora_attention_forward_f32 MINILORA_NAME(minilora_attention_forward_f32)
#define minilora_attention_backward_f32 MINILORA_NAME(minilora_attention_backward_f32)
#define minilora_attention_plan MINILORA_NAME(minilora_attention_plan)
#define minilora_attention_share MINILORA_NAME(minilora_attention_share)
#define minilora_attention_cost MINILORA_NAME(minilora_attention_cost)
#define minilora_attention_tile MINILORA_NAME(minilora_attention_tile)
#define minilora_attention_ones MINILORA_NAME(minilora_attention_ones)
#define minilora_attention_pack MINILORA_NAME(minilora_attention_pack)
#define minilora_attention_pack_turned MINILORA_NAME(minilora_attention_pack_turned)
#define minilora_attention_forward_floats MINILORA_NAME(minilora_attention_forward_floats)
#define minilora_attention_backward_floats MINILORA_NAME(minilora_attention_backward_floats)
#define minilora_norm_workspace_f32 MINILORA_NAME(minilora_norm_workspace_f32)
#define minilora_rms_norm_forward_f32 MINILORA_NAME(minilora_rms_norm_forward_f32)
#define minilora_rms_norm_backward_f32 MINILORA_NAME(minilora_rms_norm_backward_f32)
#define minilora_layer_norm_forward_f32 MINILORA_NAME(minilora_layer_norm_forward_f32)
#define minilora_layer_norm_backward_f32 MINILORA_NAME(minilora_layer_norm_backward_f32)
#define minilora_silu_forward_f32 MINILORA_NAME(minilora_silu_forward_f32)
#define minilora_silu_backward_f32 MINILORA_NAME(minilora_silu_backward_f32)
#define minilora_swiglu_forward_f32 MINILORA_NAME(minilora_swiglu_forward_f32)
#define minilora_swiglu_backward_f32 MINILORA_NAME(minilora_swiglu_backward_f32)
#define minilora_gelu_forward_f32 MINILORA_NAME(minilora_gelu_forward_f32)
#define minilora_gelu_backward_f32 MINILORA_NAME(minilora_gelu_backward_f32)
#define minilora_rotary_f32 MINILORA_NAME(minilora_rotary_f32)
#define minilora_embedding_forward_f32 MINILORA_NAME(minilora_embedding_forward_f32)
#define minilora_embedding_backward_f32 MINILORA_NAME(minilora_embedding_backward_f32)
#define minilora_cross_entropy_forward_f32 MINILORA_NAME(minilora_cross_entropy_forward_f32)
#define minilora_cross_entropy_backward_f32 MINILORA_NAME(minilora_cross_entropy_backward_f32)
#define minilora_linear_cross_entropy_workspace_f32 MINILORA_NAME(minilora_linear_cross_entropy_workspace_f32)
#define minilora_linear_cross_entropy_f32 MINILORA_NAME(minilora_linear_cross_entropy_f32)
#define minilora_adamw_f32 MINILORA_NAME(minilora_adamw_f32)
#define minilora_square_sum_workspace_f32 MINILORA_NAME(minilora_square_sum_workspace_f32)
#define minilora_square_sum_f32 MINILORA_NAME(minilora_square_sum_f32)
#define minilora_scale_f32 MINILORA_NAME(minilora_scale_f32)
#endif

#include "minilora.h"

/* LANES      floats in a vector register.
 * TILE_*     the part of the output that stays in registers while gemm.c walks down the sum: as many
 *            rows as leave room for one row of the right-hand side and one broadcast.
 * DOT_*      the same for dot.c, where each output element takes a whole register. */
#if defined(__AVX512F__)
enum { LANES = 16, TILE_ROWS = 14, TILE_COLS = 32, DOT_ROWS = 4, DOT_COLS = 4 };
#elif defined(__AVX2__)
enum { LANES = 8, TILE_ROWS = 6, TILE_COLS = 16, DOT_ROWS = 3, DOT_COLS = 4 };
#elif defined(__aarch64__)
enum { LANES = 4, TILE_ROWS = 6, TILE_COLS = 16, DOT_ROWS = 4, DOT_COLS = 4 };
#else
enum { LANES = 4, TILE_ROWS = 4, TILE_COLS = 8, DOT_ROWS = 2, DOT_COLS = 4 };
#endif

enum {
    TILE_LANES = TILE_COLS / LANES,
    /* A block of the right-hand side, BLOCK_K * BLOCK_N floats, stays in the second-level cache while
     * all rows pass over it; TILE_ROWS * BLOCK_K floats of the left stay in the first. */
    BLOCK_K = 320,
    BLOCK_N = 576,
    /* Blocks start at multiples of this, where the blocks of a stored weight start too. */
    ALIGN_K = 32,
    /* Distance between the rows of a copied left-hand tile: a constant, so that one register addresses
     * all of them, and an odd number of cache lines, so that they do not compete for one cache set. */
    TILE_STRIDE = BLOCK_K + 16,
    /* Unpacked right-hand sides are walked this many rows at a time: long enough to pay for loading
     * and storing the tile, short enough for the hardware to prefetch each row. */
    DIRECT_K = 64,
    /* Floats by which their next columns are fetched ahead. */
    FETCH_COLS = 2 * TILE_COLS,
    /* ... and so many columns: whole rows where possible, but the output stays in the second-level cache. */
    DIRECT_N = 4096,
    /* Up to so many rows, packing the right-hand side costs more than it saves: where its rows are contiguous,
     * and where its columns are (dot.c); up to LINE_M of the former, it is walked line by line (dot.c too). */
    DIRECT_M = 16,
    LINE_M = 2,
    DOT_M = 48,
    /* Up to so many columns, a product of many rows is a set of dot products: a tile would be mostly
     * padding. */
    NARROW_N = 16,
    /* Floats of scratch that minilora_product needs; one such piece a thread. */
    SCRATCH = TILE_ROWS * TILE_STRIDE + BLOCK_K * BLOCK_N,
    /* Bytes, and floats, of a cache line: the pieces of a workspace start at multiples of it. */
    ALIGN = 64,
    LINE = ALIGN / 4
};

/* One use of K for every height that a tile may have. */
#if defined(__AVX512F__)
#define EVERY_TILE(K) K(1) K(2) K(3) K(4) K(5) K(6) K(7) K(8) K(9) K(10) K(11) K(12) K(13) K(14)
#elif defined(__AVX2__) || defined(__aarch64__)
#define EVERY_TILE(K) K(1) K(2) K(3) K(4) K(5) K(6)
#else
#define EVERY_TILE(K) K(1) K(2) K(3) K(4)
#endif

static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }
static inline ptrdiff_t round_up(ptrdiff_t n, ptrdiff_t whole) { return ceil_div(n, whole) * whole; }
static inline ptrdiff_t whole_lines(ptrdiff_t floats) { return round_up(floats, LINE); }

/* The first aligned float of a workspace, which has ALIGN bytes more than it needs. */
static inline float *aligned(void *workspace)
{
    return (float *)(void *)((char *)workspace + (ALIGN - (uintptr_t)workspace % ALIGN) % ALIGN);
}

/* A vector register of floats, and one of 32-bit whole numbers. */
typedef float float_lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES)));

static inline float_lanes load_lanes(const float *at)
{
    float_lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void store_lanes(float *at, float_lanes value) { memcpy(at, &value, sizeof value); }

/* A matrix where it lies: element (i, j) is number j of line i, or number i of line j if transposed; lines are
 * `stride` elements long, and storage says how an element is stored (only a frozen weight is not float32). */
typedef struct {
    const void *at;
    ptrdiff_t stride;
    int transposed;
    int storage;
} view;

static inline const float *line_of(view v, ptrdiff_t line) { return (const float *)v.at + line * v.stride; }

/* The terms that one pair of matrices adds to a product: scale * a (m, k) . b (k, n). */
typedef struct {
    view a, b;
    ptrdiff_t k;
    float scale;
} segment;

/* c (m, n) = start + first + second, where start is c itself (accumulate), the bias, or zero.
 *
 * The sum is cut into blocks of at most BLOCK_K terms, each summed from zero in registers and then added to c.
 * second.b is never transposed; first.a is not where first.b is, and first.scale is 1 there. */
typedef struct {
    float *c;                   /* (m, n), rows n apart */
    const float *bias;          /* (n) or NULL; ignored by accumulate */
    int accumulate;
    ptrdiff_t m, n;
    segment first, second;
} product;

/* Rows [i0, i1) and columns [j0, j1) of an output. */
typedef struct {
    ptrdiff_t i0, i1, j0, j1;
} rect;

/* Bytes of a line of so many elements: whole blocks, where the storage has blocks. */
ptrdiff_t minilora_line_bytes(int storage, ptrdiff_t elements);

/* Elements [first, first + count) of a line, as float32. */
void minilora_decode(float *out, view from, ptrdiff_t line, ptrdiff_t first, ptrdiff_t count);

/* dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols. */
void minilora_transpose(float *dst, ptrdiff_t dst_stride, const float *src, ptrdiff_t src_stride,
                        ptrdiff_t rows, ptrdiff_t cols);

/* Terms [k0, k1) of both segments, columns [j0, j1), as panels one after the other: rows of TILE_COLS floats, the last
 * panel's padded with zeros. */
void minilora_pack(float *panels, const product *p, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j0, ptrdiff_t j1);

/* c = bias + first on the rectangle, for a transposed first.b; scratch as below. */
void minilora_dot_product(const product *p, rect where, float *scratch);

/* The same for a first.b that is not transposed; or c += first, if p says so. */
void minilora_line_product(const product *p, rect where, float *scratch);

/* The part of the output that thread `part` of `parts` computes: whole tiles, disjoint, covering all. */
rect minilora_share(const product *p, int part, int parts);

/* Compute a rectangle; scratch holds SCRATCH floats aligned to ALIGN bytes and belongs to this thread. */
void minilora_product(const product *p, rect where, float *scratch);

static inline void compute_share(const product *p, int part, int parts, float *scratch)
{
    minilora_product(p, minilora_share(p, part, parts), scratch);
}

/* One thread's part of a job. */
typedef void part_function(const void *job, int part, int parts);

/* Call work(job, part, parts) on a team of at most n_threads; on this thread alone where the job's cost, in
 * multiply-adds or what takes as long, is too small to share. */
void minilora_team(part_function *work, const void *job, double cost, int n_threads);

/* Inside a job: wait until every thread of its team is here. */
void minilora_meet(int parts);

/* The first of `items` that belongs to `part`: a team's parts are disjoint, in order, and as even as can be. */
static inline ptrdiff_t part_start(ptrdiff_t items, int part, int parts)
{
    return items / parts * part + smaller(items % parts, part);
}

#endif /* MINILORA_INTERNAL_H */
