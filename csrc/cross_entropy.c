/* cross_entropy.c - the loss of given logits, and of a linear layer whose logits never exist all at once. */
#include "internal.h"

#include "exp.h"

#include <math.h>

enum {
    /* So many exponentials are added in single precision before double takes over. */
    SHORT_SUM = 1024,
    /* Logits that are held at once, and limits of the rows that they make: enough rows to pay for packing W, no more
     * than that needs. */
    HELD_LOGITS = 1 << 24,
    LEAST_ROWS = 16,
    MOST_ROWS = 512
};

static float largest(const float *logits, ptrdiff_t n)
{
    float peak = -INFINITY;
#pragma omp simd reduction(max : peak)
    for (ptrdiff_t j = 0; j < n; j++)
        peak = logits[j] > peak ? logits[j] : peak;
    return peak;
}

/* The sum of e^(logits - peak); its terms go to `terms`, which may be the logits, where `keep` is set. */
static inline __attribute__((always_inline)) double sum_of_exp(float *terms, const float *logits, ptrdiff_t n,
                                                               float peak, const int keep)
{
    double total = 0.0;
    for (ptrdiff_t start = 0; start < n; start += SHORT_SUM) {
        const ptrdiff_t end = smaller(start + SHORT_SUM, n);
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (ptrdiff_t j = start; j < end; j++) {
            const float term = minilora_exp(logits[j] - peak);
            if (keep)
                terms[j] = term;
            part += term;
        }
        total += (double)part;
    }
    return total;
}

/* What a row's loss is made of.  The label is left out of `others`, since it may be almost all there is: 1 - softmax
 * is others / total, and has all its digits only so. */
typedef struct {
    float peak, at_label;
    double of_label, others;    /* e^(logit - peak) of the label, and the sum of all others */
} row_sums;

static inline __attribute__((always_inline)) row_sums sums_of(float *terms, const float *logits, ptrdiff_t n,
                                                              ptrdiff_t label, const int keep)
{
    const float peak = largest(logits, n), at_label = logits[label];
    const ptrdiff_t next = label + 1;
    const double before = sum_of_exp(terms, logits, label, peak, keep);
    const double after = sum_of_exp(keep ? terms + next : NULL, logits + next, n - next, peak, keep);
    return (row_sums){peak, at_label, (double)minilora_exp(at_label - peak), before + after};
}

/* No difference of large numbers is taken: the loss is a sum of positive ones.  of_label is 1 where the label is at the
 * peak, or NaN, which must not get lost. */
static float loss_of(row_sums s)
{
    return (float)(s.at_label == s.peak ? log1p(s.others + (s.of_label - 1.0))
                                        : log(s.others + s.of_label) + ((double)s.peak - (double)s.at_label));
}

/* Rows of logits */

typedef struct {
    float *losses, *peaks, *others;
    const float *logits;
    const int64_t *labels;
    ptrdiff_t m, n;
} forward_job;

static void forward_part(const void *job, int part, int parts)
{
    const forward_job *const all = job;
    const ptrdiff_t end = part_start(all->m, part + 1, parts);
    for (ptrdiff_t i = part_start(all->m, part, parts); i < end; i++) {
        row_sums s = {0};
        if (all->labels[i] >= 0)
            s = sums_of(NULL, all->logits + i * all->n, all->n, all->labels[i], 0);
        all->losses[i] = all->labels[i] >= 0 ? loss_of(s) : 0.0f;
        all->peaks[i] = s.peak;
        all->others[i] = (float)s.others;
    }
}

typedef struct {
    float *grad_logits;
    const float *logits, *peaks, *others, *factors;
    const int64_t *labels;
    ptrdiff_t m, n;
} backward_job;

static void backward_part(const void *job, int part, int parts)
{
    const backward_job *const all = job;
    const ptrdiff_t n = all->n, end = part_start(all->m, part + 1, parts);
    for (ptrdiff_t i = part_start(all->m, part, parts); i < end; i++) {
        const float *const row = all->logits + i * n;
        float *const grad = all->grad_logits + i * n;
        if (all->labels[i] < 0) {
            for (ptrdiff_t j = 0; j < n; j++)
                grad[j] = 0.0f;
            continue;
        }
        const float peak = all->peaks[i], others = all->others[i];
        const float share = all->factors[i] / (others + minilora_exp(row[all->labels[i]] - peak));
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; j++)
            grad[j] = share * minilora_exp(row[j] - peak);
        grad[all->labels[i]] = -share * others;
    }
}

/* In multiply-adds: an exponential takes as long as some 16 of them, and so does reading its argument. */
static double cost_of_rows(ptrdiff_t m, ptrdiff_t n) { return 32.0 * (double)m * (double)n; }

void minilora_cross_entropy_forward_f32(float *restrict losses, float *restrict peaks, float *restrict others,
                                        const float *restrict logits, const int64_t *restrict labels,
                                        ptrdiff_t m, ptrdiff_t n, int n_threads)
{
    const forward_job job = {losses, peaks, others, logits, labels, m, n};
    minilora_team(forward_part, &job, cost_of_rows(m, n), n_threads);
}

void minilora_cross_entropy_backward_f32(float *restrict grad_logits, const float *restrict logits,
                                         const float *restrict peaks, const float *restrict others,
                                         const float *restrict factors, const int64_t *restrict labels,
                                         ptrdiff_t m, ptrdiff_t n, int n_threads)
{
    const backward_job job = {grad_logits, logits, peaks, others, factors, labels, m, n};
    minilora_team(backward_part, &job, cost_of_rows(m, n), n_threads);
}

/* Rows of x, whose logits are x . W */

typedef struct {
    float *losses, *grad_x, *grad_w;
    const float *x, *factors;
    view w;
    const int64_t *labels;
    float *logits, *scratch;    /* of the workspace: a chunk's logits, then their gradient; SCRATCH a thread */
    ptrdiff_t m, n, k, rows;    /* rows: of a chunk */
    int accumulate;
} linear_job;

static ptrdiff_t most_rows(ptrdiff_t n)
{
    const ptrdiff_t held = HELD_LOGITS / (n > 0 ? n : 1);
    return held < LEAST_ROWS ? LEAST_ROWS : smaller(held, MOST_ROWS);
}

/* Equal chunks, as few as the limits allow. */
static ptrdiff_t chunk_rows(ptrdiff_t m, ptrdiff_t n)
{
    return m > 0 ? ceil_div(m, ceil_div(m, most_rows(n))) : 1;
}

size_t minilora_linear_cross_entropy_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int n_threads)
{
    (void)k;
    const ptrdiff_t threads = n_threads < 1 ? 1 : n_threads;
    const ptrdiff_t rows = smaller(m, most_rows(n));    /* not those of a chunk, which fewer rows may have more of */
    return ALIGN + sizeof(float) * (size_t)(whole_lines(rows * n) + threads * whole_lines(SCRATCH));
}

/* The losses of this thread's rows of a chunk that starts at row i, and where gradients are wanted, that of the logits
 * in their place. */
static void losses_share(const linear_job *all, ptrdiff_t i, ptrdiff_t rows, int part, int parts)
{
    const ptrdiff_t n = all->n, end = i + part_start(rows, part + 1, parts);
    for (ptrdiff_t at = i + part_start(rows, part, parts); at < end; at++) {
        float *const row = all->logits + (at - i) * n;
        const int64_t label = all->labels[at];
        if (!all->grad_x && !all->grad_w) {
            all->losses[at] = loss_of(sums_of(NULL, row, n, label, 0));
            continue;
        }
        const row_sums s = sums_of(row, row, n, label, 1);
        const double exact_share = (double)all->factors[at] / (s.others + s.of_label);
        const float share = (float)exact_share;
        all->losses[at] = loss_of(s);
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; j++)
            row[j] *= share;
        row[label] = (float)(-exact_share * s.others);
    }
}

static void linear_part(const void *job, int part, int parts)
{
    const linear_job *const all = job;
    const ptrdiff_t n = all->n, k = all->k;
    float *const scratch = all->scratch + part * whole_lines(SCRATCH);
    ptrdiff_t i = 0;
    do {                        /* once without any row, for a grad_w of zeros */
        const ptrdiff_t rows = smaller(all->rows, all->m - i);
        const float *const x = all->x + i * k;
        const product logits = {
            .c = all->logits, .m = rows, .n = n,
            .first = {{x, k, 0, 0}, all->w, k, 1.0f},
        };
        const product grad_x = {
            .c = all->grad_x ? all->grad_x + i * k : NULL, .m = rows, .n = k,
            .first = {{all->logits, n, 0, 0}, {all->w.at, all->w.stride, !all->w.transposed, all->w.storage}, n, 1.0f},
        };
        const product grad_w = {
            .c = all->grad_w, .accumulate = all->accumulate || i > 0, .m = k, .n = n,
            .first = {{x, k, 1, 0}, {all->logits, n, 0, 0}, rows, 1.0f},
        };
        compute_share(&logits, part, parts, scratch);
        minilora_meet(parts);
        losses_share(all, i, rows, part, parts);
        minilora_meet(parts);
        if (grad_x.c)
            compute_share(&grad_x, part, parts, scratch);
        if (grad_w.c)
            compute_share(&grad_w, part, parts, scratch);
        i += rows;
        if (i < all->m)         /* the next chunk's logits take the place of these */
            minilora_meet(parts);
    } while (i < all->m);
}

void minilora_linear_cross_entropy_f32(float *restrict losses, float *restrict grad_x, float *restrict grad_w,
                                       const float *restrict x, const void *restrict w,
                                       const float *restrict factors, const int64_t *restrict labels,
                                       void *restrict workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,
                                       int accumulate, int w_layout, int w_storage, int n_threads)
{
    float *const start = aligned(workspace);
    const int transposed = w_layout == MINILORA_W_NK;
    const ptrdiff_t rows = chunk_rows(m, n);
    const linear_job job = {
        .losses = losses, .grad_x = grad_x, .grad_w = grad_w, .x = x, .factors = factors,
        .w = {w, transposed ? k : n, transposed, w_storage}, .labels = labels,
        .logits = start, .scratch = start + whole_lines(rows * n),
        .m = m, .n = n, .k = k, .rows = rows, .accumulate = accumulate,
    };
    const double products = 1.0 + (grad_x != NULL) + (grad_w != NULL);
    minilora_team(linear_part, &job, products * (double)(m + 16) * (double)n * (double)k, n_threads);
}
