/* attention_tile.c - the register tiles of attention, how its operands are packed, and how its work is cut. */
#include "attention.h"

#define ONE(rows) 1.0f,
const float minilora_attention_ones[TILE_ROWS] = {EVERY_TILE(ONE)};

/* `turned` and `rows` are constants wherever this is inlined, so acc lives in registers. */
static inline __attribute__((always_inline)) void tile(
    const int turned, const int rows, float *c, ptrdiff_t c_stride, const float *keep,
    const float *restrict a, const float *restrict b, ptrdiff_t b_stride, ptrdiff_t depth)
{
    const ptrdiff_t row_step = turned ? 1 : STRIDE, term_step = turned ? STRIDE : 1;
    float_lanes acc[TILE_ROWS][TILE_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE_LANES; j++)
            acc[i][j] = (float_lanes){0};
    for (ptrdiff_t k = 0; k < depth; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < TILE_LANES; j++)
                acc[i][j] += a[i * row_step + k * term_step] * load_lanes(b + k * b_stride + j * LANES);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE_LANES; j++) {
            float *const out = c + i * c_stride + j * LANES;
            store_lanes(out, keep ? keep[i] * load_lanes(out) + acc[i][j] : acc[i][j]);
        }
}

typedef void tile_function(float *c, ptrdiff_t c_stride, const float *keep, const float *a, const float *b,
                           ptrdiff_t b_stride, ptrdiff_t depth);

#define DEFINE_TILE(rows)                                                                                      \
    static void tile_##rows(float *c, ptrdiff_t c_stride, const float *keep, const float *a, const float *b,   \
                            ptrdiff_t b_stride, ptrdiff_t depth)                                               \
    {                                                                                                          \
        tile(0, rows, c, c_stride, keep, a, b, b_stride, depth);                                               \
    }                                                                                                          \
    static void turned_##rows(float *c, ptrdiff_t c_stride, const float *keep, const float *a, const float *b, \
                              ptrdiff_t b_stride, ptrdiff_t depth)                                             \
    {                                                                                                          \
        tile(1, rows, c, c_stride, keep, a, b, b_stride, depth);                                               \
    }

EVERY_TILE(DEFINE_TILE)
#define PLAIN_TILE(rows) tile_##rows,
#define TURNED_TILE(rows) turned_##rows,

static tile_function *const tiles[2][TILE_ROWS + 1] = {{NULL, EVERY_TILE(PLAIN_TILE)}, {NULL, EVERY_TILE(TURNED_TILE)}};

void minilora_attention_tile(int turned, ptrdiff_t rows, float *c, ptrdiff_t c_stride, const float *keep,
                             const float *a, const float *b, ptrdiff_t b_stride, ptrdiff_t depth)
{
    tiles[turned][rows](c, c_stride, keep, a, b, b_stride, depth);
}

void minilora_attention_pack(float *restrict panels, const float *restrict from, ptrdiff_t step, ptrdiff_t rows,
                             ptrdiff_t d)
{
    for (ptrdiff_t e = 0; e < d; e += TILE_COLS, panels += KEYS * TILE_COLS) {
        const ptrdiff_t cols = smaller(TILE_COLS, d - e);
        if (cols < TILE_COLS)   /* nobody reads what comes of the padding, but numbers below the normal ones are slow */
            memset(panels, 0, (size_t)(rows * TILE_COLS) * sizeof *panels);
        for (ptrdiff_t i = 0; i < rows; i++)
            memcpy(panels + i * TILE_COLS, from + i * step + e, (size_t)cols * sizeof *panels);
    }
}

void minilora_attention_pack_turned(float *restrict panels, const float *restrict from, ptrdiff_t step,
                                    ptrdiff_t rows, ptrdiff_t d)
{
    for (ptrdiff_t i = 0; i < rows; i += TILE_COLS, panels += d * TILE_COLS) {
        const ptrdiff_t cols = smaller(TILE_COLS, rows - i);
        if (cols < TILE_COLS)
            memset(panels, 0, (size_t)(d * TILE_COLS) * sizeof *panels);
        minilora_transpose(panels, TILE_COLS, from + i * step, step, cols, d);
    }
}

enum {
    /* Units that a call should have, so that threads find an even share. */
    UNITS = 8,
    /* Rows of a cut: enough to pay for packing the keys, few enough that their outputs stay in the second-level
     * cache. */
    FEWEST_ROWS = 112,
    MOST_ROWS = 768,
    /* Up to so many rows a pair, the keys are split and the partial results put together. */
    SPLIT_ROWS = 64,
    SPLIT_KEYS = 2 * KEYS,
    /* The backward pass holds a copy of grad_k and grad_v for each cut, so it cuts only where pairs are fewer. */
    ENOUGH_PAIRS = 8
};

plan minilora_attention_plan(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                             int backward)
{
    plan p = {.b = b, .t = t, .s = s, .h = h, .g = g, .d = d, .share = g ? h / g : 0,
              .width = round_up(d, TILE_COLS), .cuts = 1, .splits = 1};
    const ptrdiff_t rows = t * p.share, pairs = b * g, wanted = pairs ? ceil_div(UNITS, pairs) : 1;
    if (backward)
        p.cuts = pairs < ENOUGH_PAIRS ? smaller(wanted, rows / FEWEST_ROWS) : 1;
    else if (rows <= SPLIT_ROWS)
        p.splits = larger(1, smaller(wanted, s / SPLIT_KEYS));
    else
        p.cuts = larger(ceil_div(rows, MOST_ROWS), smaller(wanted, rows / FEWEST_ROWS));
    p.cuts = larger(1, smaller(p.cuts, t));
    return p;
}

/* In multiply-adds of one product; packing the keys costs about as much as four rows. */
static double unit_cost(const plan *p, ptrdiff_t index)
{
    const unit u = unit_at(p, index);
    const double rows = (double)((u.t1 - u.t0) * p->share), keys = (double)larger(u.k1 - u.k0, 0);
    /* A causal cut sees its last keys with its last query only. */
    const double corner = p->causal ? 0.5 * (double)smaller(u.t1 - u.t0, larger(u.k1 - u.k0, 0)) : 0.0;
    return ((rows + 4.0) * (keys - corner) + rows) * (double)p->d + 1.0;
}

double minilora_attention_cost(const plan *p, span units)
{
    double total = 0.0;
    for (ptrdiff_t i = units.lo; i < units.hi; i++) {
        const unit u = unit_at(p, i);
        total += unit_cost(p, i) + 32.0 * (double)larger(u.k1 - u.k0, 0) * (double)p->d;
    }
    return total;
}

span minilora_attention_share(const plan *p, span units, int part, int parts)
{
    double total = 0.0, before = 0.0;
    span mine = {units.hi, units.hi};
    for (ptrdiff_t i = units.lo; i < units.hi; i++)
        total += unit_cost(p, i);
    for (ptrdiff_t i = units.lo; i < units.hi; i++) {
        /* The part in which the middle of a unit falls has it. */
        const double cost = unit_cost(p, i), middle = (before + 0.5 * cost) * parts;
        if (mine.lo == units.hi && middle >= total * part)
            mine.lo = i;
        if (mine.hi == units.hi && part + 1 < parts && middle >= total * (part + 1))
            mine.hi = i;
        before += cost;
    }
    return mine;
}
