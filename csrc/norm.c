/* norm.c - RMSNorm and LayerNorm of rows: each row comes from memory once, and is in cache for its further passes.
 *
 * The backward pass cuts the rows into chunks by their number alone.  The team shares the chunks, and each chunk sums
 * its own part of the gradients for weight and bias; these parts are then added in order, so threads change no bit.
 */
#include "internal.h"

#include <math.h>

enum {
    SUMS = 4 * LANES,           /* partial sums of a row: as many chains of additions as keep up with the loads */
    CHUNK_ROWS = 16,            /* rows of a chunk; more where MAX_CHUNKS of them are too few */
    MAX_CHUNKS = 64
};

/* total = the sum of `term`, an expression of j, over j < d. */
#define SUM_OF_ROW(total, d, term)                                                                                    \
    do {                                                                                                              \
        float sums[SUMS] = {0};                                                                                       \
        const ptrdiff_t whole = (d) - (d) % SUMS;                                                                     \
        for (ptrdiff_t base = 0; base < whole; base += SUMS)                                                          \
            _Pragma("omp simd") for (int lane = 0; lane < SUMS; lane++) {                                             \
                const ptrdiff_t j = base + lane;                                                                      \
                sums[lane] += (term);                                                                                 \
            }                                                                                                         \
        _Pragma("omp simd") for (ptrdiff_t j = whole; j < (d); j++) sums[j - whole] += (term);                        \
        _Pragma("GCC unroll 8") for (int half = SUMS / 2; half > 0; half /= 2)                                        \
            _Pragma("omp simd") for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];              \
        (total) = sums[0];                                                                                            \
    } while (0)

typedef struct {
    float *y, *grad_x, *grad_weight, *grad_bias;
    float *kept_mean, *kept_inv;                /* of a row; inv is 1 / root mean square or 1 / standard deviation */
    const float *grad, *x, *weight, *bias, *mean, *inv;
    float *weight_parts, *bias_parts;           /* (chunks, d) */
    ptrdiff_t rows, d;
    float count, eps;
    int accumulate;
} norm;

/* In multiply-adds: as many as a float of memory takes. */
static double cost(ptrdiff_t rows, ptrdiff_t d, int arrays) { return 8.0 * arrays * (double)rows * (double)d; }

static float count_of(ptrdiff_t d) { return d > 0 ? (float)d : 1.0f; }

static int chunks_of(ptrdiff_t rows) { return (int)smaller(ceil_div(rows, CHUNK_ROWS), MAX_CHUNKS); }

size_t minilora_norm_workspace_f32(ptrdiff_t rows, ptrdiff_t d)
{
    return ALIGN + sizeof(float) * (size_t)(2 * chunks_of(rows) * d);
}

/* total (+)= the chunks' parts, in order, in columns [j0, j1). */
static void add_parts(float *restrict total, const float *restrict parts, const norm *p, ptrdiff_t j0, ptrdiff_t j1)
{
    if (!p->accumulate)
        for (ptrdiff_t j = j0; j < j1; j++)
            total[j] = 0.0f;
    for (int chunk = 0; chunk < chunks_of(p->rows); chunk++)
#pragma omp simd
        for (ptrdiff_t j = j0; j < j1; j++)
            total[j] += parts[chunk * p->d + j];
}

/* Work on the chunks of one part of a team, and then add up what they left. */
static inline void backward_chunks(void (*chunk_rows)(const norm *, ptrdiff_t, ptrdiff_t, float *, float *),
                                   const norm *p, int part, int parts)
{
    const int chunks = chunks_of(p->rows), end = (int)part_start(chunks, part + 1, parts);
    const ptrdiff_t d = p->d;
    for (int chunk = (int)part_start(chunks, part, parts); chunk < end; chunk++) {
        float *const weight_part = p->weight_parts + chunk * d, *const bias_part = p->bias_parts + chunk * d;
        for (ptrdiff_t j = 0; p->grad_weight && j < d; j++)
            weight_part[j] = 0.0f;
        for (ptrdiff_t j = 0; p->grad_bias && j < d; j++)
            bias_part[j] = 0.0f;
        chunk_rows(p, part_start(p->rows, chunk, chunks), part_start(p->rows, chunk + 1, chunks), weight_part, bias_part);
    }
    if (!p->grad_weight && !p->grad_bias)
        return;
    minilora_meet(parts);
    const ptrdiff_t j0 = part_start(d, part, parts), j1 = part_start(d, part + 1, parts);
    if (p->grad_weight)
        add_parts(p->grad_weight, p->weight_parts, p, j0, j1);
    if (p->grad_bias)
        add_parts(p->grad_bias, p->bias_parts, p, j0, j1);
}

static void rms_forward_part(const void *job, int part, int parts)
{
    const norm *const p = job;
    const float *restrict const weight = p->weight;
    const ptrdiff_t d = p->d, end = part_start(p->rows, part + 1, parts);
    for (ptrdiff_t i = part_start(p->rows, part, parts); i < end; i++) {
        const float *restrict const x = p->x + i * d;
        float *restrict const y = p->y + i * d;
        float squares;
        SUM_OF_ROW(squares, d, x[j] * x[j]);
        const float inv = 1.0f / sqrtf(squares / p->count + p->eps);
        p->kept_inv[i] = inv;
#pragma omp simd
        for (ptrdiff_t j = 0; j < d; j++)
            y[j] = x[j] * inv * weight[j];
    }
}

void minilora_rms_norm_forward_f32(float *restrict y, float *restrict inv_rms, const float *restrict x,
                                   const float *restrict weight, ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads)
{
    const norm job = {
        .y = y, .kept_inv = inv_rms, .x = x, .weight = weight, .rows = rows, .d = d, .count = count_of(d), .eps = eps,
    };
    minilora_team(rms_forward_part, &job, cost(rows, d, 2), n_threads);
}

/* Rows [i, end), each: unit = x inv;  grad_x = inv (grad weight - unit mean(grad weight unit));  grad_weight += grad unit */
static void rms_backward_rows(const norm *p, ptrdiff_t i, ptrdiff_t end, float *restrict weight_part, float *bias_part)
{
    const float *restrict const weight = p->weight;
    const ptrdiff_t d = p->d;
    (void)bias_part;
    for (; i < end; i++) {
        const float *restrict const x = p->x + i * d, *restrict const grad = p->grad + i * d;
        const float inv = p->inv[i];
        if (p->grad_x) {
            float *restrict const grad_x = p->grad_x + i * d;
            float along;
            SUM_OF_ROW(along, d, grad[j] * weight[j] * (x[j] * inv));
            along /= p->count;
#pragma omp simd
            for (ptrdiff_t j = 0; j < d; j++)
                grad_x[j] = inv * (grad[j] * weight[j] - x[j] * inv * along);
        }
        if (p->grad_weight)
#pragma omp simd
            for (ptrdiff_t j = 0; j < d; j++)
                weight_part[j] += grad[j] * (x[j] * inv);
    }
}

static void rms_backward_part(const void *job, int part, int parts)
{
    backward_chunks(rms_backward_rows, job, part, parts);
}

void minilora_rms_norm_backward_f32(float *restrict grad_x, float *restrict grad_weight, const float *restrict grad,
                                    const float *restrict x, const float *restrict inv_rms,
                                    const float *restrict weight, void *restrict workspace, ptrdiff_t rows,
                                    ptrdiff_t d, int accumulate, int n_threads)
{
    float *const parts = aligned(workspace);
    const norm job = {
        .grad_x = grad_x, .grad_weight = grad_weight, .grad = grad, .x = x, .weight = weight, .inv = inv_rms,
        .weight_parts = parts, .bias_parts = parts + chunks_of(rows) * d, .rows = rows, .d = d, .count = count_of(d),
        .accumulate = accumulate,
    };
    minilora_team(rms_backward_part, &job, cost(rows, d, 3), n_threads);
}

/* Everything relative to the row's first element: what is left of elements that differ by less than they are large
 * is then right to the rounding of their differences, and rows of equal elements become exactly 0. */
static void layer_forward_part(const void *job, int part, int parts)
{
    const norm *const p = job;
    const float *restrict const weight = p->weight, *restrict const bias = p->bias;
    const ptrdiff_t d = p->d, end = part_start(p->rows, part + 1, parts);
    for (ptrdiff_t i = part_start(p->rows, part, parts); i < end; i++) {
        const float *restrict const x = p->x + i * d;
        float *restrict const y = p->y + i * d;
        const float first = d > 0 ? x[0] : 0.0f;
        float sum, squares;
        SUM_OF_ROW(sum, d, x[j] - first);
        const float mean = sum / p->count;
        SUM_OF_ROW(squares, d, (x[j] - first - mean) * (x[j] - first - mean));
        const float inv = 1.0f / sqrtf(squares / p->count + p->eps);
        p->kept_mean[i] = mean;
        p->kept_inv[i] = inv;
#pragma omp simd
        for (ptrdiff_t j = 0; j < d; j++)
            y[j] = (x[j] - first - mean) * inv * weight[j] + bias[j];
    }
}

void minilora_layer_norm_forward_f32(float *restrict y, float *restrict mean, float *restrict inv_std,
                                     const float *restrict x, const float *restrict weight, const float *restrict bias,
                                     ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads)
{
    const norm job = {
        .y = y, .kept_mean = mean, .kept_inv = inv_std, .x = x, .weight = weight, .bias = bias, .rows = rows, .d = d,
        .count = count_of(d), .eps = eps,
    };
    minilora_team(layer_forward_part, &job, cost(rows, d, 2), n_threads);
}

/* Rows [i, end), each: unit = (x - mean) inv;  centred = g - mean(g) with g = grad weight;
 * grad_x = inv (centred - unit mean(centred unit));  grad_weight += grad unit;  grad_bias += grad */
static void layer_backward_rows(const norm *p, ptrdiff_t i, ptrdiff_t end, float *restrict weight_part,
                                float *restrict bias_part)
{
    const float *restrict const weight = p->weight;
    const ptrdiff_t d = p->d;
    for (; i < end && d > 0; i++) {
        const float *restrict const grad = p->grad + i * d;
        if (p->grad_bias)
#pragma omp simd
            for (ptrdiff_t j = 0; j < d; j++)
                bias_part[j] += grad[j];
        if (!p->grad_x && !p->grad_weight)
            continue;
        const float *restrict const x = p->x + i * d;
        const float first = x[0], mean = p->mean[i], inv = p->inv[i];
        if (p->grad_x) {
            float *restrict const grad_x = p->grad_x + i * d;
            const float first_grad = grad[0] * weight[0];
            float mean_grad, along;
            SUM_OF_ROW(mean_grad, d, grad[j] * weight[j] - first_grad);
            mean_grad /= p->count;
            SUM_OF_ROW(along, d, (grad[j] * weight[j] - first_grad - mean_grad) * ((x[j] - first - mean) * inv));
            along /= p->count;
#pragma omp simd
            for (ptrdiff_t j = 0; j < d; j++)
                grad_x[j] = inv * (grad[j] * weight[j] - first_grad - mean_grad - (x[j] - first - mean) * inv * along);
        }
        if (p->grad_weight)
#pragma omp simd
            for (ptrdiff_t j = 0; j < d; j++)
                weight_part[j] += grad[j] * ((x[j] - first - mean) * inv);
    }
}

static void layer_backward_part(const void *job, int part, int parts)
{
    backward_chunks(layer_backward_rows, job, part, parts);
}

void minilora_layer_norm_backward_f32(float *restrict grad_x, float *restrict grad_weight, float *restrict grad_bias,
                                      const float *restrict grad, const float *restrict x, const float *restrict mean,
                                      const float *restrict inv_std, const float *restrict weight,
                                      void *restrict workspace, ptrdiff_t rows, ptrdiff_t d, int accumulate,
                                      int n_threads)
{
    float *const parts = aligned(workspace);
    const norm job = {
        .grad_x = grad_x, .grad_weight = grad_weight, .grad_bias = grad_bias, .grad = grad, .x = x, .weight = weight,
        .mean = mean, .inv = inv_std, .weight_parts = parts, .bias_parts = parts + chunks_of(rows) * d, .rows = rows,
        .d = d, .count = count_of(d), .accumulate = accumulate,
    };
    minilora_team(layer_backward_part, &job, cost(rows, d, 3), n_threads);
}
