/* attention.c - the forward pass: rows of queries walk over blocks of keys with a running peak and sum.
 *
 * Milakov & Gimelshein 2018, arXiv:1805.02867; in blocks as Dao et al. 2022, arXiv:2205.14135.
 */
#include "attention.h"

/* The scratch of one thread, and where each piece of it starts. */
typedef struct {
    float *turned_k;            /* a block of keys, transposed: panels of TILE_COLS keys, d rows each */
    float *v;                   /* its values: panels of TILE_COLS components, KEYS rows each */
    float *queries;             /* a tile of rows, scaled: pieces of TILE_ROWS rows */
    float *weights;             /* its scores, then e^(score - peak) (TILE_ROWS, STRIDE) */
    float *hidden;              /* (KEYS) */
    float *y;                   /* the rows of a unit (rows, width), relative to the peak of each */
    float *peak, *total;        /* (rows) */
    ptrdiff_t size;             /* of all of them, in floats */
} pieces;

static ptrdiff_t most_rows(const plan *p) { return ceil_div(p->t, p->cuts) * p->share; }

static pieces cut_scratch(const plan *p, float *at)
{
    const ptrdiff_t rows = whole_lines(most_rows(p));
    pieces s = {.turned_k = at};
    s.v = s.turned_k + KEYS * p->d;
    s.queries = s.v + KEYS * p->width;
    s.weights = s.queries + ceil_div(p->width, KEYS) * TILE_ROWS * STRIDE;
    s.hidden = s.weights + TILE_ROWS * STRIDE;
    s.y = s.hidden + KEYS;
    s.peak = s.y + rows * p->width;
    s.total = s.peak + rows;
    s.size = whole_lines(s.total + rows - at);
    return s;
}

/* What a split leaves of a pair's rows: y (rows, width), then peak (rows) and total (rows). */
static ptrdiff_t partial_size(const plan *p)
{
    return p->splits > 1 ? whole_lines(most_rows(p) * (p->width + 2)) : 0;
}

ptrdiff_t minilora_attention_forward_floats(const plan *p, ptrdiff_t pairs, int n_threads)
{
    return pairs * p->splits * partial_size(p) + n_threads * cut_scratch(p, NULL).size;
}

typedef struct {
    plan p;
    span units;
    float *y, *stats;
    const float *q, *k, *v;
    const unsigned char *mask;
    float *partial, *scratch;
} forward_job;

/* Rows of a tile, rounded up to what minilora_transpose moves at once. */
enum { QUADS = (TILE_ROWS + 3) / 4 * 4 };

/* LANES numbers of each row beside one another: what is left of a reduction along the rows runs over all of them at once,
 * instead of over ever shorter parts of each. */
typedef struct {
    float of[QUADS][LANES];
} side;

/* into[i] = the largest of into[i] and row i. */
static void largest(float *restrict into, const side *rows)
{
    float turned[LANES][QUADS];
    minilora_transpose(turned[0], QUADS, rows->of[0], LANES, QUADS, LANES);
    for (int lane = 0; lane < LANES; lane++)
#pragma omp simd
        for (int i = 0; i < QUADS; i++)
            into[i] = turned[lane][i] > into[i] ? turned[lane][i] : into[i];
}

/* into[i] = keep[i] * into[i] + the sum of row i. */
static void sum(float *restrict into, const float *keep, const side *rows)
{
    float turned[LANES][QUADS];
    minilora_transpose(turned[0], QUADS, rows->of[0], LANES, QUADS, LANES);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
#pragma omp simd
            for (int i = 0; i < QUADS; i++)
                turned[lane][i] += turned[lane + half][i];
#pragma omp simd
    for (int i = 0; i < QUADS; i++)
        into[i] = keep[i] * into[i] + turned[0][i];
}

/* The scores of a tile's rows, columns [c0, c1), become weights relative to the peak of each row, which rises where one
 * of them is above it; then keep says by how much what came before shrinks. */
static void soften(ptrdiff_t rows, float *scores, float *peak, float *total, float *keep, ptrdiff_t c0, ptrdiff_t c1)
{
    side side = {{{0}}};
    float now[QUADS], before[QUADS], sums[QUADS];
    for (ptrdiff_t i = 0; i < QUADS; i++) {
        now[i] = before[i] = i < rows ? peak[i] : 0.0f;
        sums[i] = i < rows ? total[i] : 0.0f;
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        const float *const row = scores + i * STRIDE;
        float *const top = side.of[i];
#pragma omp simd
        for (int j = 0; j < LANES; j++)
            top[j] = row[c0 + j];
        for (ptrdiff_t c = c0 + LANES; c < c1; c += LANES)
#pragma omp simd
            for (int j = 0; j < LANES; j++)
                top[j] = row[c + j] > top[j] ? row[c + j] : top[j];
    }
    largest(now, &side);
#pragma omp simd
    for (int i = 0; i < QUADS; i++)
        keep[i] = weight(before[i] - now[i]);
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *const row = scores + i * STRIDE, *const part = side.of[i];
        const float highest = now[i];
#pragma omp simd
        for (int j = 0; j < LANES; j++)
            part[j] = 0.0f;
        for (ptrdiff_t c = c0; c < c1; c += LANES)
#pragma omp simd
            for (int j = 0; j < LANES; j++) {
                const float w = weight(row[c + j] - highest);
                row[c + j] = w;
                part[j] += w;
            }
    }
    sum(sums, keep, &side);
    for (ptrdiff_t i = 0; i < rows; i++) {
        peak[i] = now[i];
        total[i] = sums[i];
    }
}

/* Rows [r0, r0 + rows) of a unit over a block of keys, of which [c0, c1) are seen by some of them. */
static void go_over(const forward_job *job, const unit *u, const pieces *s, ptrdiff_t r0, ptrdiff_t rows,
                    ptrdiff_t block, ptrdiff_t keys, const float *v, ptrdiff_t v_panel, ptrdiff_t v_row, int masked)
{
    const plan *const p = &job->p;
    const span first = columns_of(p, u, r0, block, keys), last = columns_of(p, u, r0 + rows - 1, block, keys);
    const ptrdiff_t c0 = first.lo / TILE_COLS * TILE_COLS, c1 = round_up(last.hi, TILE_COLS);
    float keep[QUADS];
    if (first.lo >= last.hi)
        return;
    copy_rows(p, u, s->queries, TILE_ROWS * STRIDE, job->q, r0, rows, p->scale);
    products(rows, s->weights, s->queries, TILE_ROWS * STRIDE, s->turned_k, p->d, c0, c1);
    for (ptrdiff_t i = 0; i < rows; i++) {
        hide(s->weights + i * STRIDE, columns_of(p, u, r0 + i, block, keys), c0, c1, masked ? s->hidden : NULL);
        /* Rows lie H * D floats apart, which no prefetcher follows: ask for a next one, and for where this one goes. */
        fetch_row(p, u, job->q, r0 + rows + i);
        fetch_row(p, u, job->y, r0 + i);
    }
    soften(rows, s->weights, s->peak + r0, s->total + r0, keep, c0, c1);
    for (ptrdiff_t e = 0; e < p->width; e += TILE_COLS)
        minilora_attention_tile(0, rows, s->y + r0 * p->width + e, p->width, keep, s->weights + first.lo,
                                v + e / TILE_COLS * v_panel + first.lo * v_row, v_row, last.hi - first.lo);
}

/* y = (sum of weights times v) / total, and what backward needs of the softmax. */
static void finish(const forward_job *job, ptrdiff_t at, const float *sums, float peak, float total)
{
    const float part = total == 0.0f ? 0.0f : 1.0f / total;     /* written so that NaN stays */
    float *const y = job->y + at;
#pragma omp simd
    for (ptrdiff_t e = 0; e < job->p.d; e++)
        y[e] = sums[e] * part;
    if (job->stats) {
        job->stats[at / job->p.d * 2] = peak;
        job->stats[at / job->p.d * 2 + 1] = part;
    }
}

static void compute_unit(const forward_job *job, ptrdiff_t index, float *scratch)
{
    const plan *const p = &job->p;
    const unit u = unit_at(p, index);
    const ptrdiff_t rows = (u.t1 - u.t0) * p->share, height = even_height(rows);
    const ptrdiff_t blocks = ceil_div(larger(u.k1 - u.k0, 0), KEYS);
    const ptrdiff_t size = blocks ? round_up(ceil_div(u.k1 - u.k0, blocks), TILE_COLS) : KEYS;
    const float *const k = job->k + u.entry * p->k_step + u.group * p->d;
    const float *const v = job->v + u.entry * p->v_step + u.group * p->d;
    const ptrdiff_t step = p->g * p->d;
    pieces s = cut_scratch(p, scratch);
    /* For few rows it does not pay to copy the values. */
    const int in_place = rows <= TILE_ROWS && p->width == p->d;

    if (p->splits > 1) {
        s.y = job->partial + (index - job->units.lo) * partial_size(p);
        s.peak = s.y + rows * p->width;
        s.total = s.peak + rows;
    }
    for (ptrdiff_t i = 0; i < rows * p->width; i++)
        s.y[i] = 0.0f;
    for (ptrdiff_t r = 0; r < rows; r++) {
        s.peak[r] = -FLT_MAX;   /* and not -INFINITY, of which a row that sees nothing would make NaN */
        s.total[r] = 0.0f;
    }
    for (ptrdiff_t block = u.k0, keys; block == u.k0 || block < u.k1; block += size) {
        keys = larger(smaller(size, u.k1 - block), 0);
        minilora_attention_pack_turned(s.turned_k, k + block * step, step, keys, p->d);
        if (!in_place)
            minilora_attention_pack(s.v, v + block * step, step, keys, p->d);
        if (job->mask)
            hidden_keys(s.hidden, job->mask + u.entry * p->s + block, keys);
        for (ptrdiff_t r = 0; r < rows; r += height) {
            const ptrdiff_t end = smaller(r + height, rows);
            go_over(job, &u, &s, r, end - r, block, keys, in_place ? v + block * step : s.v,
                    in_place ? TILE_COLS : KEYS * TILE_COLS, in_place ? step : TILE_COLS, job->mask != NULL);
            for (ptrdiff_t i = r; i < end && block + size >= u.k1 && p->splits == 1; i++)
                finish(job, row_at(p, &u, i), s.y + i * p->width, s.peak[i], s.total[i]);
        }
    }
}

/* Put the splits of one row together, in their order; the first one's y is overwritten. */
static void join(const forward_job *job, ptrdiff_t index, ptrdiff_t r)
{
    const plan *const p = &job->p;
    const unit u = unit_at(p, index);
    const ptrdiff_t rows = p->t * p->share, size = partial_size(p);
    float *const first = job->partial + (index - job->units.lo) * size, *const sums = first + r * p->width;
    float peak = -FLT_MAX, total = 0.0f;
    for (ptrdiff_t i = 0; i < p->splits; i++) {
        const float other = first[i * size + rows * p->width + r];
        peak = other > peak ? other : peak;
    }
    for (ptrdiff_t i = 0; i < p->splits; i++) {
        const float *const part = first + i * size;
        const float keep = weight(part[rows * p->width + r] - peak);
        total += keep * part[rows * (p->width + 1) + r];
#pragma omp simd
        for (ptrdiff_t e = 0; e < p->d; e++)
            sums[e] = (i ? sums[e] : 0.0f) + keep * part[r * p->width + e];
    }
    finish(job, row_at(p, &u, r), sums, peak, total);
}

static void forward_part(const void *of, int part, int parts)
{
    const forward_job *const job = of;
    const plan *const p = &job->p;
    const span mine = minilora_attention_share(p, job->units, part, parts);
    float *const scratch = job->scratch + part * cut_scratch(p, NULL).size;
    for (ptrdiff_t i = mine.lo; i < mine.hi; i++)
        compute_unit(job, i, scratch);
    if (p->splits > 1) {
        const ptrdiff_t rows = p->t * p->share, all = (job->units.hi - job->units.lo) / p->splits * rows;
        minilora_meet(parts);
        for (ptrdiff_t i = part_start(all, part, parts); i < part_start(all, part + 1, parts); i++)
            join(job, job->units.lo + i / rows * p->splits, i % rows);
    }
}

void minilora_attention_forward_f32(float *restrict y, float *restrict stats, const float *restrict q,
                                    const float *restrict k, const float *restrict v,
                                    const unsigned char *restrict mask, void *restrict workspace,
                                    ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                    ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                    ptrdiff_t window, int causal, float scale, int n_threads)
{
    forward_job job = {
        .p = minilora_attention_plan(b, t, s, h, g, d, 0),
        .y = y, .stats = stats, .q = q, .k = k, .v = v, .mask = mask,
        .partial = aligned(workspace),
    };
    plan *const p = &job.p;
    p->k_step = k_step;
    p->v_step = v_step;
    p->window = smaller(window, t + s);         /* as wide as all, and too small to overflow */
    p->causal = causal;
    p->scale = scale;
    job.units = (span){first * p->cuts * p->splits, last * p->cuts * p->splits};
    job.scratch = job.partial + (last - first) * p->splits * partial_size(p);
    if (t * p->share * d == 0 || first >= last)
        return;
    minilora_team(forward_part, &job, minilora_attention_cost(p, job.units), n_threads);
}
