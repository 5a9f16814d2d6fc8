/* attention.h - what the forward and the backward pass of attention share: tiles, packing, and who sees whom.
 *
 * The query heads of a group that read the same keys are rows of one matrix: row r of a cut is query t0 + r / share,
 * head r % share of the group.  Keys come in blocks of KEYS, so that nothing grows with T * S.
 */
#ifndef MINILORA_ATTENTION_H
#define MINILORA_ATTENTION_H

#include "exp.h"
#include "internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    /* Keys of a block of the forward pass, and components that a left-hand row holds before its next piece starts; a
     * multiple of TILE_COLS. */
    KEYS = 256,
    /* Keys of a block of the backward pass, which has five times as much to keep in the second-level cache. */
    GRAD_KEYS = 128,
    /* Distance between the rows of scores and of copied queries: a constant, so that one register addresses a whole
     * tile, and an odd number of cache lines. */
    STRIDE = KEYS + 16,
    /* Rows of the backward pass that go over a block of keys together: the depth of the sums over queries. */
    ROWS = 112 / TILE_ROWS * TILE_ROWS
};

/* The sizes of a call and its cut into units of work: a unit is one pair of batch entry and group, one cut of its
 * queries, and one split of its keys.  All by the sizes alone. */
typedef struct {
    ptrdiff_t b, t, s, h, g, d, k_step, v_step, window;
    int causal;
    float scale;
    ptrdiff_t share;            /* query heads of a group */
    ptrdiff_t width;            /* d, rounded up to whole tiles */
    ptrdiff_t cuts, splits;
} plan;

/* One unit: queries [t0, t1) and keys [k0, k1) of a batch entry and a group; k0 >= k1 where none is seen. */
typedef struct {
    ptrdiff_t entry, group, cut, split, t0, t1, k0, k1;
} unit;

/* Keys [lo, hi). */
typedef struct {
    ptrdiff_t lo, hi;
} span;

/* The keys that query t sees; both ends never fall as t grows. */
static inline span seen(const plan *p, ptrdiff_t t)
{
    const ptrdiff_t position = p->s - p->t + t;
    const ptrdiff_t hi = p->causal ? position + 1 : p->window ? position + p->window : p->s;
    const ptrdiff_t lo = p->window ? position - p->window + 1 : 0;
    return (span){smaller(larger(lo, 0), p->s), smaller(larger(hi, 0), p->s)};
}

static inline unit unit_at(const plan *p, ptrdiff_t index)
{
    const ptrdiff_t cut = index / p->splits % p->cuts, pair = index / p->splits / p->cuts;
    unit u = {.entry = pair / p->g, .group = pair % p->g, .cut = cut, .split = index % p->splits,
              .t0 = p->t * cut / p->cuts, .t1 = p->t * (cut + 1) / p->cuts};
    if (u.t0 < u.t1) {
        u.k0 = larger(seen(p, u.t0).lo, p->s * u.split / p->splits);
        u.k1 = smaller(seen(p, u.t1 - 1).hi, p->s * (u.split + 1) / p->splits);
    }
    return u;
}

/* The sizes as the tiles need them, cut into `cuts` * `splits` units a pair. */
plan minilora_attention_plan(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                             int backward);

/* Of units [first, last), those of `part`: in order, and as even as whole units of known cost can be. */
span minilora_attention_share(const plan *p, span units, int part, int parts);

/* In multiply-adds of one product, each float of k and v counting 16 times for its reading. */
double minilora_attention_cost(const plan *p, span units);

/* c[i, j] = keep[i] * c[i, j] + sum over k of a[i, k] * b[k, j], for i < rows <= TILE_ROWS and j < TILE_COLS; without
 * keep the sum alone.  a[i, k] lies at a[i * STRIDE + k], or where turned at a[k * STRIDE + i]. */
void minilora_attention_tile(int turned, ptrdiff_t rows, float *c, ptrdiff_t c_stride, const float *keep,
                             const float *a, const float *b, ptrdiff_t b_stride, ptrdiff_t depth);

/* keep of a sum that goes on. */
extern const float minilora_attention_ones[TILE_ROWS];

/* Rows of a matrix into panels of TILE_COLS columns, or of its transpose; each panel has KEYS or d rows. */
void minilora_attention_pack(float *panels, const float *from, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t d);
void minilora_attention_pack_turned(float *panels, const float *from, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t d);

/* scores (rows, KEYS) of rows left (rows, d), for columns [c0, c1) of the keys, whole panels.  A left-hand row is cut
 * into pieces of KEYS components, piece_size apart. */
static inline void products(ptrdiff_t rows, float *scores, const float *left, ptrdiff_t piece_size,
                            const float *panels, ptrdiff_t d, ptrdiff_t c0, ptrdiff_t c1)
{
    for (ptrdiff_t j = c0; j < c1; j += TILE_COLS) {
        const float *const panel = panels + j * d;
        ptrdiff_t e = 0;
        do {
            minilora_attention_tile(0, rows, scores + j, STRIDE, e ? minilora_attention_ones : NULL,
                                    left + e / KEYS * piece_size, panel + e * TILE_COLS, TILE_COLS,
                                    smaller(KEYS, d - e));
            e += KEYS;
        } while (e < d);
    }
}

/* Row r of a unit in an array (B, T, H, D). */
static inline ptrdiff_t row_at(const plan *p, const unit *u, ptrdiff_t r)
{
    return ((u->entry * p->t + u->t0 + r / p->share) * p->h + u->group * p->share + r % p->share) * p->d;
}

/* Copy rows [r0, r0 + rows) of a unit, times factor, in pieces of KEYS components, padded with zeros to p->width. */
static inline void copy_rows(const plan *p, const unit *u, float *restrict to, ptrdiff_t piece_size,
                             const float *restrict from, ptrdiff_t r0, ptrdiff_t rows, float factor)
{
    for (ptrdiff_t i = 0; i < rows; i++) {
        const float *const row = from + row_at(p, u, r0 + i);
        for (ptrdiff_t e = 0; e < p->width; e += KEYS) {
            float *const piece = to + e / KEYS * piece_size + i * STRIDE;
            const ptrdiff_t own = smaller(KEYS, p->d - e), all = smaller(KEYS, p->width - e);
#pragma omp simd
            for (ptrdiff_t j = 0; j < own; j++)
                piece[j] = factor * row[e + j];
            for (ptrdiff_t j = own; j < all; j++)
                piece[j] = 0.0f;
        }
    }
}

/* Bring row r of a unit, if there is one, into the cache.  One row at a time, since the processor keeps few misses in
 * flight; always inlined, since gcc drops a call that computes nothing. */
static inline __attribute__((always_inline)) void fetch_row(const plan *p, const unit *u, const float *array,
                                                            ptrdiff_t r)
{
    if (r < (u->t1 - u->t0) * p->share)
        for (ptrdiff_t e = 0, at = row_at(p, u, r); e < p->d; e += LINE)
            __builtin_prefetch(array + at + e);
}

/* Keys that row r of a unit sees in a block, as columns of it. */
static inline span columns_of(const plan *p, const unit *u, ptrdiff_t r, ptrdiff_t block, ptrdiff_t keys)
{
    const span all = seen(p, u->t0 + r / p->share);
    const ptrdiff_t lo = smaller(larger(all.lo - block, 0), keys);
    return (span){lo, larger(smaller(all.hi - block, keys), lo)};
}

/* Hide the columns of [c0, c1) that a row does not see, and those that nobody may. */
static inline void hide(float *row, span own, ptrdiff_t c0, ptrdiff_t c1, const float *hidden)
{
    for (ptrdiff_t j = c0; j < smaller(own.lo, c1); j++)
        row[j] = -INFINITY;
    for (ptrdiff_t j = larger(own.hi, c0); j < c1; j++)
        row[j] = -INFINITY;
    if (hidden) {
#pragma omp simd
        for (ptrdiff_t j = c0; j < c1; j++)
            row[j] = hidden[j] > 0.0f ? -INFINITY : row[j];
    }
}

/* e^x for x <= 0 to within 2 units in the last place; 0 below -87.7, where the exponent of 2^n becomes that of zero;
 * NaN for NaN. */
static inline float weight(float x)
{
    float shifted;
    const float e = minilora_exp_reduced(x < -88.0f ? -88.0f : x, &shifted);
    const int32_t bits = (union bits){.number = shifted}.whole - (0x4b400000 - 127);
    return e * (union bits){.whole = (int32_t)((uint32_t)bits << 23)}.number;
}

/* mask (keys) as numbers for hide(): 1 where nobody may look; NULL without a mask. */
static inline const float *hidden_keys(float *numbers, const unsigned char *mask, ptrdiff_t keys)
{
    if (!mask)
        return NULL;
    for (ptrdiff_t j = 0; j < KEYS; j++)
        numbers[j] = j < keys && !mask[j] ? 1.0f : 0.0f;
    return numbers;
}

/* Floats of workspace that a pass over so many pairs needs. */
ptrdiff_t minilora_attention_forward_floats(const plan *p, ptrdiff_t pairs, int n_threads);
ptrdiff_t minilora_attention_backward_floats(const plan *p, ptrdiff_t pairs, int n_threads);

/* Rows of a tile: as even as can be, since a low tile has too few sums in flight. */
static inline ptrdiff_t even_height(ptrdiff_t rows) { return rows ? ceil_div(rows, ceil_div(rows, TILE_ROWS)) : 1; }

#endif /* MINILORA_ATTENTION_H */
