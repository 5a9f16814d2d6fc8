/* attention_backward.c - the gradients of attention: the weights are made again, a block of keys at a time.
 *
 * With w = e^(score - peak) / total and delta = sum over d of grad * y, a row's sum of w * (grad . v):
 *
 *   grad_v  = w^T . grad
 *   change  = w * (grad . v^T - delta)
 *   grad_q  = scale * change . k
 *   grad_k  = change^T . (scale * q)
 */
#include "attention.h"

typedef struct {
    float *turned_k, *turned_v; /* a block of keys, transposed: panels of TILE_COLS keys, d rows each */
    float *k;                   /* and as it is: panels of TILE_COLS components, GRAD_KEYS rows each */
    float *grad_k, *grad_v;     /* its gradients so far (GRAD_KEYS, width) */
    float *queries, *grad;      /* a block of rows, queries scaled: pieces of (ROWS, STRIDE) */
    float *weights, *change;    /* (ROWS, STRIDE) */
    float *grad_q;              /* of a tile (TILE_ROWS, width) */
    float *hidden;              /* (GRAD_KEYS) */
    float *delta;               /* of all rows of a unit */
    ptrdiff_t size;
} pieces;

static ptrdiff_t most_rows(const plan *p) { return ceil_div(p->t, p->cuts) * p->share; }

static pieces cut_scratch(const plan *p, float *at)
{
    const ptrdiff_t left = ceil_div(p->width, KEYS) * ROWS * STRIDE;
    pieces s = {.turned_k = at};
    s.turned_v = s.turned_k + GRAD_KEYS * p->d;
    s.k = s.turned_v + GRAD_KEYS * p->d;
    s.grad_k = s.k + KEYS * p->width;
    s.grad_v = s.grad_k + GRAD_KEYS * p->width;
    s.queries = s.grad_v + GRAD_KEYS * p->width;
    s.grad = s.queries + left;
    s.weights = s.grad + left;
    s.change = s.weights + ROWS * STRIDE;
    s.grad_q = s.change + ROWS * STRIDE;
    s.hidden = s.grad_q + TILE_ROWS * p->width;
    s.delta = s.hidden + KEYS;
    s.size = whole_lines(s.delta + most_rows(p) - at);
    return s;
}

/* A cut's own grad_k (s, d), then grad_v: where a pair has several cuts, added up at the end. */
static ptrdiff_t partial_size(const plan *p) { return p->cuts > 1 ? whole_lines(2 * p->s * p->d) : 0; }

ptrdiff_t minilora_attention_backward_floats(const plan *p, ptrdiff_t pairs, int n_threads)
{
    return pairs * p->cuts * partial_size(p) + n_threads * cut_scratch(p, NULL).size;
}

typedef struct {
    plan p;
    span units;
    float *grad_q, *grad_k, *grad_v;
    const float *grad, *q, *k, *v, *y, *stats;
    const unsigned char *mask;
    float *partial, *scratch;
} backward_job;

/* A block of keys: its place, and its number. */
typedef struct {
    ptrdiff_t at, keys;
} block;

static ptrdiff_t panels_from(ptrdiff_t c) { return c / TILE_COLS * TILE_COLS; }

/* The weights of rows [i, i + rows) of those copied, which are rows r on of the unit, their change, and grad_q. */
static void make_weights(const backward_job *job, const unit *u, const pieces *s, block keys, ptrdiff_t r,
                         ptrdiff_t i, ptrdiff_t rows, const span *columns)
{
    const plan *const p = &job->p;
    const span all = {columns[i].lo, columns[i + rows - 1].hi};
    const ptrdiff_t c0 = panels_from(all.lo), c1 = round_up(all.hi, TILE_COLS), piece = ROWS * STRIDE;
    float *const weights = s->weights + i * STRIDE, *const change = s->change + i * STRIDE;
    if (all.lo >= all.hi)
        return;                 /* nobody reads them either */
    products(rows, weights, s->queries + i * STRIDE, piece, s->turned_k, p->d, c0, c1);
    if (job->grad_q || job->grad_k)
        products(rows, change, s->grad + i * STRIDE, piece, s->turned_v, p->d, c0, c1);
    for (ptrdiff_t n = 0; n < rows; n++) {
        float *const w = weights + n * STRIDE, *const dw = change + n * STRIDE;
        const ptrdiff_t at = row_at(p, u, r + i + n);
        const float peak = job->stats[at / p->d * 2], part = job->stats[at / p->d * 2 + 1];
        fetch_row(p, u, job->q, r + i + n + ROWS);
        fetch_row(p, u, job->grad, r + i + n + ROWS);
        hide(w, columns[i + n], c0, c1, job->mask ? s->hidden : NULL);
#pragma omp simd
        for (ptrdiff_t j = c0; j < c1; j++)
            w[j] = weight(w[j] - peak) * part;
        /* A tile of keys may reach beyond the panels. */
        for (ptrdiff_t j = larger(c0 - TILE_ROWS, 0); j < c0; j++)
            w[j] = dw[j] = 0.0f;
        for (ptrdiff_t j = c1; j < smaller(c1 + TILE_ROWS, keys.keys); j++)
            w[j] = dw[j] = 0.0f;
        if (job->grad_q || job->grad_k) {
            const float delta = s->delta[r + i + n];
#pragma omp simd
            for (ptrdiff_t j = c0; j < c1; j++)
                dw[j] = w[j] * (dw[j] - delta);
        }
    }
    if (!job->grad_q)
        return;
    for (ptrdiff_t e = 0; e < p->width; e += TILE_COLS)
        minilora_attention_tile(0, rows, s->grad_q + e, p->width, NULL, change + all.lo,
                                s->k + e * KEYS + all.lo * TILE_COLS, TILE_COLS, all.hi - all.lo);
    for (ptrdiff_t n = 0; n < rows; n++) {
        float *const out = job->grad_q + row_at(p, u, r + i + n);
        const float *const more = s->grad_q + n * p->width;
#pragma omp simd
        for (ptrdiff_t e = 0; e < p->d; e++)
            out[e] += p->scale * more[e];
    }
}

/* sums (keys, width) += what^T . rows, over the rows copied that see a tile of keys. */
static void add_turned(const plan *p, float *sums, const float *what, const float *rows, const span *columns,
                       ptrdiff_t count, ptrdiff_t keys)
{
    const ptrdiff_t height = even_height(keys);
    ptrdiff_t from = 0, to = 0;
    for (ptrdiff_t j = 0; j < keys; j += height) {
        const ptrdiff_t high = smaller(height, keys - j);
        while (from < count && columns[from].hi <= j)
            from++;
        while (to < count && columns[to].lo < j + high)
            to++;
        if (from < to)
            for (ptrdiff_t e = 0; e < p->width; e += TILE_COLS)
                minilora_attention_tile(1, high, sums + j * p->width + e, p->width, minilora_attention_ones,
                                        what + from * STRIDE + j,
                                        rows + (e / KEYS * ROWS + from) * STRIDE + e % KEYS, STRIDE, to - from);
    }
}

/* What all rows of a unit add to the gradients through one block of keys. */
static void go_over(const backward_job *job, const unit *u, const pieces *s, block keys)
{
    const plan *const p = &job->p;
    const ptrdiff_t all = (u->t1 - u->t0) * p->share, step = p->g * p->d;
    const float *const k = job->k + u->entry * p->k_step + u->group * p->d + keys.at * step;
    minilora_attention_pack_turned(s->turned_k, k, step, keys.keys, p->d);
    if (job->grad_q)
        minilora_attention_pack(s->k, k, step, keys.keys, p->d);
    if (job->grad_q || job->grad_k)
        minilora_attention_pack_turned(s->turned_v, job->v + u->entry * p->v_step + u->group * p->d + keys.at * step,
                                       step, keys.keys, p->d);
    if (job->mask)
        hidden_keys(s->hidden, job->mask + u->entry * p->s + keys.at, keys.keys);
    memset(s->grad_k, 0, (size_t)(keys.keys * p->width) * sizeof(float));
    memset(s->grad_v, 0, (size_t)(keys.keys * p->width) * sizeof(float));
    for (ptrdiff_t r = 0; r < all; r += ROWS) {
        const ptrdiff_t count = smaller(ROWS, all - r), height = even_height(count);
        span columns[ROWS] = {{0, 0}};
        for (ptrdiff_t i = 0; i < count; i++)
            columns[i] = columns_of(p, u, r + i, keys.at, keys.keys);
        if (columns[0].lo >= columns[count - 1].hi)
            continue;
        copy_rows(p, u, s->queries, ROWS * STRIDE, job->q, r, count, p->scale);
        copy_rows(p, u, s->grad, ROWS * STRIDE, job->grad, r, count, 1.0f);
        for (ptrdiff_t i = 0; i < count; i += height)
            make_weights(job, u, s, keys, r, i, smaller(height, count - i), columns);
        if (job->grad_v)
            add_turned(p, s->grad_v, s->weights, s->grad, columns, count, keys.keys);
        if (job->grad_k)
            add_turned(p, s->grad_k, s->change, s->queries, columns, count, keys.keys);
    }
}

/* Rows of (n, width) to rows of (n, d), step apart; zeros where there are none. */
static void store(const plan *p, float *to, ptrdiff_t step, const float *from, ptrdiff_t n)
{
    if (to)
        for (ptrdiff_t i = 0; i < n; i++) {
            if (from)
                memcpy(to + i * step, from + i * p->width, (size_t)p->d * sizeof *to);
            else
                memset(to + i * step, 0, (size_t)p->d * sizeof *to);
        }
}

static int sees(const unit *u, block keys) { return u->k0 < keys.at + keys.keys && u->k1 > keys.at; }

static void compute_unit(const backward_job *job, ptrdiff_t index, float *scratch)
{
    const plan *const p = &job->p;
    const unit u = unit_at(p, index);
    const ptrdiff_t rows = (u.t1 - u.t0) * p->share;
    const pieces s = cut_scratch(p, scratch);
    float *grad_k = job->grad_k, *grad_v = job->grad_v;
    ptrdiff_t step = p->g * p->d;
    if (p->cuts > 1) {
        grad_k = grad_k ? job->partial + (index - job->units.lo) * partial_size(p) : NULL;
        grad_v = grad_v ? job->partial + (index - job->units.lo) * partial_size(p) + p->s * p->d : NULL;
        step = p->d;
    } else {
        const ptrdiff_t at = (u.entry * p->s * p->g + u.group) * p->d;
        grad_k = grad_k ? grad_k + at : NULL;
        grad_v = grad_v ? grad_v + at : NULL;
    }
    for (ptrdiff_t r = 0; r < rows && (job->grad_q || job->grad_k); r++) {
        const ptrdiff_t at = row_at(p, &u, r), ahead = 8;
        float delta = 0.0f;
        fetch_row(p, &u, job->grad, r + ahead);
        fetch_row(p, &u, job->y, r + ahead);
        if (job->grad_q)
            fetch_row(p, &u, job->grad_q, r + ahead);
#pragma omp simd reduction(+ : delta)
        for (ptrdiff_t e = 0; e < p->d; e++)
            delta += job->grad[at + e] * job->y[at + e];
        s.delta[r] = delta;
        if (job->grad_q)
            memset(job->grad_q + at, 0, (size_t)p->d * sizeof(float));
    }
    for (ptrdiff_t at = 0; at < p->s; at += GRAD_KEYS) {
        const block keys = {at, smaller(GRAD_KEYS, p->s - at)};
        const int any = sees(&u, keys);
        if (any)
            go_over(job, &u, &s, keys);
        if (any || p->cuts == 1) {
            store(p, grad_k ? grad_k + at * step : NULL, step, any ? s.grad_k : NULL, keys.keys);
            store(p, grad_v ? grad_v + at * step : NULL, step, any ? s.grad_v : NULL, keys.keys);
        }
    }
}

/* Add up what the cuts of a pair, in their order, found for one block of keys. */
static void join(const backward_job *job, ptrdiff_t index, block keys)
{
    const plan *const p = &job->p;
    for (int which = 0; which < 2; which++) {
        float *const grads = which ? job->grad_v : job->grad_k;
        if (!grads)
            continue;
        for (ptrdiff_t j = keys.at; j < keys.at + keys.keys; j++) {
            const unit pair = unit_at(p, index);
            float *const out = grads + ((pair.entry * p->s + j) * p->g + pair.group) * p->d;
            memset(out, 0, (size_t)p->d * sizeof *out);
            for (ptrdiff_t c = 0; c < p->cuts; c++) {
                const unit u = unit_at(p, index + c);
                const float *const more = job->partial + (index + c - job->units.lo) * partial_size(p)
                                        + (which * p->s + j) * p->d;
                if (sees(&u, keys))
#pragma omp simd
                    for (ptrdiff_t e = 0; e < p->d; e++)
                        out[e] += more[e];
            }
        }
    }
}

static void backward_part(const void *of, int part, int parts)
{
    const backward_job *const job = of;
    const plan *const p = &job->p;
    const span mine = minilora_attention_share(p, job->units, part, parts);
    float *const scratch = job->scratch + part * cut_scratch(p, NULL).size;
    for (ptrdiff_t i = mine.lo; i < mine.hi; i++)
        compute_unit(job, i, scratch);
    if (p->cuts > 1 && (job->grad_k || job->grad_v)) {
        const ptrdiff_t blocks = ceil_div(p->s, GRAD_KEYS), all = (job->units.hi - job->units.lo) / p->cuts * blocks;
        minilora_meet(parts);
        for (ptrdiff_t i = part_start(all, part, parts); i < part_start(all, part + 1, parts); i++) {
            const ptrdiff_t at = i % blocks * GRAD_KEYS;
            join(job, job->units.lo + i / blocks * p->cuts, (block){at, smaller(GRAD_KEYS, p->s - at)});
        }
    }
}

void minilora_attention_backward_f32(float *restrict grad_q, float *restrict grad_k, float *restrict grad_v,
                                     const float *restrict grad, const float *restrict q, const float *restrict k,
                                     const float *restrict v, const float *restrict y, const float *restrict stats,
                                     const unsigned char *restrict mask, void *restrict workspace,
                                     ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                     ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                     ptrdiff_t window, int causal, float scale, int n_threads)
{
    backward_job job = {
        .p = minilora_attention_plan(b, t, s, h, g, d, 1),
        .grad_q = grad_q, .grad_k = grad_k, .grad_v = grad_v,
        .grad = grad, .q = q, .k = k, .v = v, .y = y, .stats = stats, .mask = mask,
        .partial = aligned(workspace),
    };
    plan *const p = &job.p;
    p->k_step = k_step;
    p->v_step = v_step;
    p->window = smaller(window, t + s);
    p->causal = causal;
    p->scale = scale;
    job.units = (span){first * p->cuts, last * p->cuts};
    job.scratch = job.partial + (last - first) * p->cuts * partial_size(p);
    if (d == 0 || first >= last)
        return;
    minilora_team(backward_part, &job, 2.5 * minilora_attention_cost(p, job.units), n_threads);
}

size_t minilora_attention_workspace_f32(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                        ptrdiff_t pairs, int backward, int n_threads)
{
    const plan p = minilora_attention_plan(b, t, s, h, g, d, backward);
    const int threads = n_threads < 1 ? 1 : n_threads;
    return ALIGN + sizeof(float) * (size_t)(backward ? minilora_attention_backward_floats(&p, pairs, threads)
                                                     : minilora_attention_forward_floats(&p, pairs, threads));
}
