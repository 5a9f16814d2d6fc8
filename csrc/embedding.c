/* embedding.c - gather rows of a table, and add gradients up in the rows they came from. */
#include "internal.h"

#include <string.h>

typedef struct {
    float *y, *grad_weight;
    const float *weight, *grad;
    const int64_t *ids;
    ptrdiff_t n, d;
} lookup;

static void gather_part(const void *job, int part, int parts)
{
    const lookup *const p = job;
    const ptrdiff_t d = p->d, end = part_start(p->n, part + 1, parts);
    for (ptrdiff_t i = part_start(p->n, part, parts); i < end; i++)
        memcpy(p->y + i * d, p->weight + p->ids[i] * d, (size_t)d * sizeof(float));
}

void minilora_embedding_forward_f32(float *restrict y, const float *restrict weight, const int64_t *restrict ids,
                                    ptrdiff_t n, ptrdiff_t d, int n_threads)
{
    const lookup job = {.y = y, .weight = weight, .ids = ids, .n = n, .d = d};
    if (d > 0)
        minilora_team(gather_part, &job, 16.0 * (double)n * (double)d, n_threads);
}

/* A share is a range of columns: ids repeat, and so every sum stays with one thread and in the order of the ids. */
static void scatter_part(const void *job, int part, int parts)
{
    const lookup *const p = job;
    const ptrdiff_t d = p->d, lines = ceil_div(d, LANES);
    const ptrdiff_t start = smaller(d, LANES * part_start(lines, part, parts));
    const ptrdiff_t end = smaller(d, LANES * part_start(lines, part + 1, parts));
    for (ptrdiff_t i = 0; i < p->n; i++) {
        const float *restrict const grad = p->grad + i * d;
        float *restrict const sum = p->grad_weight + p->ids[i] * d;
#pragma omp simd
        for (ptrdiff_t j = start; j < end; j++)
            sum[j] += grad[j];
    }
}

void minilora_embedding_backward_f32(float *restrict grad_weight, const float *restrict grad,
                                     const int64_t *restrict ids, ptrdiff_t n, ptrdiff_t d, int n_threads)
{
    const lookup job = {.grad_weight = grad_weight, .grad = grad, .ids = ids, .n = n, .d = d};
    if (d > 0)
        minilora_team(scatter_part, &job, 24.0 * (double)n * (double)d, n_threads);
}
