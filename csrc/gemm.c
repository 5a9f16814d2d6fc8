/* gemm.c - c = start + a.b of one or two segments, by tiles that stay in registers.
 *
 * For each block of the right-hand side (BLOCK_K terms by BLOCK_N columns, packed into panels of TILE_COLS
 * columns) every tile of rows is copied once and swept over all panels.  With few rows a right-hand side
 * whose rows are contiguous is read in place instead.
 */
#include "internal.h"

#include <string.h>

static const float zeros[TILE_COLS];

/* c = start + a . b for one tile.  `rows` is a constant wherever this is inlined, so acc lives in registers;
 * start may be c itself, and start_stride 0 repeats one row of it (a bias).  It is added last: a sum of several
 * blocks rounds as a sum of short ones, not as one long chain.  `ahead` is how many floats further on in each row of b
 * the next tile starts, where those rows lie too far apart for the hardware to foresee; 0 for a panel. */
static inline __attribute__((always_inline)) void tile(
    const int rows, float *c, ptrdiff_t c_stride, const float *start, ptrdiff_t start_stride,
    const float *restrict a, const float *restrict b, ptrdiff_t b_stride, ptrdiff_t depth, const int ahead)
{
    float_lanes acc[TILE_ROWS][TILE_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        /* c is wanted once the sum is there, and mostly not in the first cache by itself. */
        __builtin_prefetch(c + i * c_stride, 1);
        __builtin_prefetch(c + i * c_stride + TILE_COLS - 1, 1);
#pragma GCC unroll 4
        for (int j = 0; j < TILE_LANES; j++)
            acc[i][j] = (float_lanes){0};
    }
    for (ptrdiff_t k = 0; k < depth; k++) {
        if (ahead)
            for (int j = 0; j < TILE_COLS; j += 16)
                __builtin_prefetch(b + k * b_stride + ahead + j);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < TILE_LANES; j++)
                acc[i][j] += a[i * TILE_STRIDE + k] * load_lanes(b + k * b_stride + j * LANES);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE_LANES; j++)
            store_lanes(c + i * c_stride + j * LANES,
                        load_lanes(start + i * start_stride + j * LANES) + acc[i][j]);
}

typedef void tile_function(float *c, ptrdiff_t c_stride, const float *start, ptrdiff_t start_stride,
                           const float *a, const float *b, ptrdiff_t b_stride, ptrdiff_t depth);

#define DEFINE_TILE(rows)                                                                                             \
    static void tile_##rows(float *c, ptrdiff_t c_stride, const float *start, ptrdiff_t start_stride,                 \
                            const float *a, const float *b, ptrdiff_t b_stride, ptrdiff_t depth)                      \
    {                                                                                                                 \
        tile(rows, c, c_stride, start, start_stride, a, b, b_stride, depth, 0);                                       \
    }                                                                                                                 \
    static void in_place_tile_##rows(float *c, ptrdiff_t c_stride, const float *start, ptrdiff_t start_stride,        \
                                     const float *a, const float *b, ptrdiff_t b_stride, ptrdiff_t depth)             \
    {                                                                                                                 \
        tile(rows, c, c_stride, start, start_stride, a, b, b_stride, depth, FETCH_COLS);                              \
    }

EVERY_TILE(DEFINE_TILE)

#define PANEL_TILE(rows) tile_##rows,
#define IN_PLACE_TILE(rows) in_place_tile_##rows,
static tile_function *const tiles[TILE_ROWS + 1] = {NULL, EVERY_TILE(PANEL_TILE)};
static tile_function *const in_place_tiles[TILE_ROWS + 1] = {NULL, EVERY_TILE(IN_PLACE_TILE)};

/* The last columns, fewer than a tile is wide: computed in a full one, of which `cols` are kept. */
static void edge_tile(ptrdiff_t rows, ptrdiff_t cols, float *c, ptrdiff_t c_stride, const float *start,
                      ptrdiff_t start_stride, const float *a, const float *b, ptrdiff_t depth)
{
    float full[TILE_ROWS * TILE_COLS] = {0};
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(full + i * TILE_COLS, start + i * start_stride, (size_t)cols * sizeof *c);
    tiles[rows](full, TILE_COLS, full, TILE_COLS, a, b, TILE_COLS, depth);
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(c + i * c_stride, full + i * TILE_COLS, (size_t)cols * sizeof *c);
}

/* Terms [k0, k1) of rows [i, i + rows) of one left-hand matrix, times scale. */
static void copy_rows(float *restrict tile_a, view a, ptrdiff_t i, ptrdiff_t rows, ptrdiff_t k0, ptrdiff_t k1,
                      float scale)
{
    if (a.transposed) {
        for (ptrdiff_t k = k0; k < k1; k++)
            for (ptrdiff_t row = 0; row < rows; row++)
                tile_a[row * TILE_STRIDE + k - k0] = scale * line_of(a, k)[i + row];
    } else {
        for (ptrdiff_t row = 0; row < rows; row++)
            for (ptrdiff_t k = k0; k < k1; k++)
                tile_a[row * TILE_STRIDE + k - k0] = scale * line_of(a, i + row)[k];
    }
}

static void copy_tile(float *tile_a, const product *p, ptrdiff_t i, ptrdiff_t rows, ptrdiff_t k0, ptrdiff_t k1)
{
    const ptrdiff_t first = smaller(k0, p->first.k), middle = smaller(k1, p->first.k);
    if (first < middle)
        copy_rows(tile_a, p->first.a, i, rows, first, middle, p->first.scale);
    if (k1 > p->first.k)
        copy_rows(tile_a + (middle - first), p->second.a, i, rows, k0 + middle - first - p->first.k,
                  k1 - p->first.k, p->second.scale);
}

/* Ask for a part of the next tile's rows while this one is swept over one panel of several: the rows lie too far apart
 * for the hardware to foresee them. */
static void fetch_rows(view a, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t panel, ptrdiff_t panels)
{
    const ptrdiff_t lines = ceil_div(k1 - k0, LINE);
    for (ptrdiff_t i = i0; i < i1; i++)
        for (ptrdiff_t line = panel * lines / panels; line < (panel + 1) * lines / panels; line++)
            __builtin_prefetch(line_of(a, i) + k0 + line * LINE, 0, 2);
}

/* Rows of a tile: as many as fit, but 8 rows as 4 + 4 and not as 6 + 2, since a low tile has too few sums in
 * flight to hide the time of one. */
static ptrdiff_t tile_height(const product *p)
{
    return p->m ? ceil_div(p->m, ceil_div(p->m, TILE_ROWS)) : 1;
}

/* Terms [k0, k1) for one rectangle at most BLOCK_N wide; or of any width, read in place (direct), and then they
 * come from one segment and only the last panel may have to be packed. */
static void block(const product *p, rect where, ptrdiff_t k0, ptrdiff_t k1, int direct, int go_on, float *scratch)
{
    float *const tile_a = scratch, *const panels = scratch + TILE_ROWS * TILE_STRIDE;
    const ptrdiff_t depth = k1 - k0, panel_size = direct ? 0 : depth * TILE_COLS;
    const ptrdiff_t whole = where.j1 - (where.j1 - where.j0) % TILE_COLS;
    const ptrdiff_t start_stride = go_on ? p->n : 0, height = tile_height(p);
    const ptrdiff_t n_panels = ceil_div(where.j1 - where.j0, TILE_COLS);
    const int fetch = !direct && !p->first.a.transposed && k1 <= p->first.k;
    const segment *const source = k0 < p->first.k ? &p->first : &p->second;
    const float *in_place = NULL;

    if (direct && depth > 0)
        in_place = line_of(source->b, k0 < p->first.k ? k0 : k0 - p->first.k);
    minilora_pack(panels, p, k0, k1, direct ? whole : where.j0, where.j1);

    for (ptrdiff_t i = where.i0; i < where.i1; i += height) {
        const ptrdiff_t rows = smaller(height, where.i1 - i);
        copy_tile(tile_a, p, i, rows, k0, k1);
        for (ptrdiff_t j = where.j0; j < where.j1; j += TILE_COLS) {
            float *const c = p->c + i * p->n + j;
            const float *const panel = panels + (j - where.j0) / TILE_COLS * panel_size;
            const float *const start = go_on ? c : p->bias ? p->bias + j : zeros;
            if (fetch)
                fetch_rows(p->first.a, i + rows, smaller(i + rows + height, where.i1), k0, k1,
                           (j - where.j0) / TILE_COLS, n_panels);
            if (j >= whole)
                edge_tile(rows, where.j1 - j, c, p->n, start, start_stride, tile_a, panel, depth);
            else if (in_place)
                in_place_tiles[rows](c, p->n, start, start_stride, tile_a, in_place + j, source->b.stride, depth);
            else
                tiles[rows](c, p->n, start, start_stride, tile_a, panel, TILE_COLS, depth);
        }
    }
}

/* All terms of one rectangle at most BLOCK_N wide, right-hand side packed.  The first segment alone decides where
 * it is cut, into blocks of equal depth, so a second one that adds zeros changes no bit; that joins the last block
 * where it fits. */
static void packed_product(const product *p, rect where, float *scratch)
{
    const ptrdiff_t first = p->first.k, depth = first + p->second.k;
    const ptrdiff_t even_depth = first ? ceil_div(first, ceil_div(first, BLOCK_K)) : BLOCK_K;
    const ptrdiff_t block_depth = ceil_div(even_depth, ALIGN_K) * ALIGN_K;
    ptrdiff_t k = 0;
    do {
        ptrdiff_t end = k < first ? smaller(k + block_depth, first) : smaller(k + BLOCK_K, depth);
        if (end == first && depth - k <= BLOCK_K)
            end = depth;
        block(p, where, k, end, 0, p->accumulate || k > 0, scratch);
        k = end;
    } while (k < depth);
}

/* Terms from k on, right-hand side in place; go_on: c already holds what comes before them. */
static void direct_product(const product *p, rect where, ptrdiff_t k, int go_on, float *scratch)
{
    const ptrdiff_t depth = p->first.k + p->second.k;
    while (k < depth || !go_on) {
        const ptrdiff_t end = smaller(k + DIRECT_K, k < p->first.k ? p->first.k : depth);
        block(p, where, k, end, 1, go_on, scratch);
        go_on = 1;
        k = end;
    }
}

/* Whether dot.c may compute it: it decodes a few lines at a time into scratch, which must hold them. */
static int has_lines(const product *p)
{
    const view b = p->first.b;
    return b.transposed && (b.storage == MINILORA_F32 || p->first.k <= SCRATCH / DOT_COLS);
}

static int is_dot(const product *p)
{
    return has_lines(p) && (p->m <= DOT_M || (p->n <= NARROW_N && p->second.k == 0));
}

static int is_line(const product *p)
{
    return !p->first.b.transposed && !p->first.a.transposed && p->first.scale == 1.0f && p->m <= LINE_M;
}

static int is_direct(const product *p)
{
    return !p->first.b.transposed && p->first.b.storage == MINILORA_F32 && p->m <= DIRECT_M;
}

/* Whether all rows stay together, so that what is large is read once. */
static int few_rows(const product *p)
{
    return is_line(p) || is_direct(p) || (has_lines(p) && p->m <= DOT_M);
}

rect minilora_share(const product *p, int part, int parts)
{
    const ptrdiff_t height = few_rows(p) ? (p->m ? p->m : 1) : is_dot(p) ? DOT_ROWS : tile_height(p);
    const ptrdiff_t row_units = ceil_div(p->m, height), col_units = ceil_div(p->n, TILE_COLS);
    /* A grid of row_parts x col_parts threads.  A share costs its number of tiles, and for each of its panels
     * the packing, which takes about as long as two tiles. */
    ptrdiff_t col_parts = 1, best = -1;
    for (ptrdiff_t tries = 1; tries <= parts; tries++) {
        const ptrdiff_t cost = (ceil_div(row_units, parts / tries) + 2) * ceil_div(col_units, tries);
        if (parts % tries == 0 && (best < 0 || cost <= best)) {
            best = cost;
            col_parts = tries;
        }
    }
    const ptrdiff_t row_parts = parts / col_parts, row_part = part / col_parts, col_part = part % col_parts;
    return (rect){smaller(row_part * row_units / row_parts * height, p->m),
                  smaller((row_part + 1) * row_units / row_parts * height, p->m),
                  smaller(col_part * col_units / col_parts * TILE_COLS, p->n),
                  smaller((col_part + 1) * col_units / col_parts * TILE_COLS, p->n)};
}

void minilora_product(const product *p, rect where, float *scratch)
{
    const ptrdiff_t cols = ceil_div(where.j1 - where.j0, TILE_COLS);
    const int line = is_line(p), dot = is_dot(p), direct = few_rows(p);
    const ptrdiff_t slices = ceil_div(cols, (direct ? DIRECT_N : BLOCK_N) / TILE_COLS);
    const ptrdiff_t j0 = where.j0, j1 = where.j1;
    if (where.i0 >= where.i1)
        return;
    if (dot)
        minilora_dot_product(p, where, scratch);
    for (ptrdiff_t s = 0; s < slices; s++) {
        where.j0 = j0 + s * cols / slices * TILE_COLS;
        where.j1 = smaller(j0 + (s + 1) * cols / slices * TILE_COLS, j1);
        if (line)
            minilora_line_product(p, where, scratch);
        if (line || dot)
            direct_product(p, where, p->first.k, 1, scratch);
        else if (direct)
            direct_product(p, where, 0, p->accumulate, scratch);
        else
            packed_product(p, where, scratch);
    }
}
