/* optim.c - what an optimiser does to many arrays at once: AdamW, the sum of squares, a scale.
 *
 * All arrays together are cut into pieces of at most PIECE elements.  Threads share the pieces, so that neither the
 * number of arrays nor their sizes leaves one idle, and an element lies in the same piece whatever the threads. */
#include "internal.h"

#include <math.h>

enum { PIECE = 8192 };

static ptrdiff_t pieces_of(const ptrdiff_t *sizes, ptrdiff_t count)
{
    ptrdiff_t pieces = 0;
    for (ptrdiff_t a = 0; a < count; a++)
        pieces += ceil_div(sizes[a], PIECE);
    return pieces;
}

/* A walk over the pieces [next, end) of all arrays. */
typedef struct {
    const ptrdiff_t *sizes;
    ptrdiff_t array, next, end;
    ptrdiff_t first;            /* the first piece of `array` */
} walk;

static walk walk_of(const ptrdiff_t *sizes, ptrdiff_t pieces, int part, int parts)
{
    return (walk){.sizes = sizes, .next = part_start(pieces, part, parts), .end = part_start(pieces, part + 1, parts)};
}

/* Go to the next piece: elements [*from, *to) of w->array, whose number among all is w->next - 1; 0 where none is left. */
static int go_on(walk *w, ptrdiff_t *from, ptrdiff_t *to)
{
    if (w->next >= w->end)
        return 0;
    while (w->next - w->first >= ceil_div(w->sizes[w->array], PIECE))
        w->first += ceil_div(w->sizes[w->array++], PIECE);
    *from = (w->next - w->first) * PIECE;
    *to = smaller(*from + PIECE, w->sizes[w->array]);
    w->next++;
    return 1;
}

/* In multiply-adds: the time of reading and writing so many floats of each element. */
static double cost(const ptrdiff_t *sizes, ptrdiff_t count, double floats)
{
    double elements = 0.0;
    for (ptrdiff_t a = 0; a < count; a++)
        elements += (double)sizes[a];
    return 16.0 * floats * elements;
}

typedef struct {
    float *const *weights, *const *means, *const *squares;
    const float *const *grads;
    const float *rates, *roots;
    const ptrdiff_t *sizes;
    ptrdiff_t pieces;
    float keep, mean_share, square_keep, square_share, eps;
} adamw_job;

static void adamw_part(const void *job, int part, int parts)
{
    const adamw_job all = *(const adamw_job *)job;
    walk w = walk_of(all.sizes, all.pieces, part, parts);
    for (ptrdiff_t from, to; go_on(&w, &from, &to);) {
        float *const restrict weight = all.weights[w.array], *const restrict mean = all.means[w.array];
        float *const restrict square = all.squares[w.array];
        const float *const restrict grad = all.grads[w.array];
        const float rate = all.rates[w.array], root = all.roots[w.array];
#pragma omp simd
        for (ptrdiff_t j = from; j < to; j++) {
            mean[j] += (grad[j] - mean[j]) * all.mean_share;
            square[j] = square[j] * all.square_keep + grad[j] * grad[j] * all.square_share;
            weight[j] = weight[j] * all.keep - rate * (mean[j] / (sqrtf(square[j]) / root + all.eps));
        }
    }
}

void minilora_adamw_f32(float *const *weights, float *const *means, float *const *squares, const float *const *grads,
                        const float *rates, const float *roots, const ptrdiff_t *sizes, ptrdiff_t count,
                        float keep, float mean_share, float square_keep, float square_share, float eps, int n_threads)
{
    const adamw_job job = {
        weights, means, squares, grads, rates, roots, sizes, pieces_of(sizes, count),
        keep, mean_share, square_keep, square_share, eps,
    };
    minilora_team(adamw_part, &job, cost(sizes, count, 7.0), n_threads);
}

typedef struct {
    double *sums;
    const float *const *arrays;
    const ptrdiff_t *sizes;
    ptrdiff_t pieces;
} square_job;

static void square_part(const void *job, int part, int parts)
{
    const square_job all = *(const square_job *)job;
    walk w = walk_of(all.sizes, all.pieces, part, parts);
    for (ptrdiff_t from, to; go_on(&w, &from, &to);) {
        const float *const array = all.arrays[w.array];
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (ptrdiff_t j = from; j < to; j++)
            sum += (double)array[j] * (double)array[j];
        all.sums[w.next - 1] = sum;
    }
}

size_t minilora_square_sum_workspace_f32(const ptrdiff_t *sizes, ptrdiff_t count)
{
    return sizeof(double) * (size_t)pieces_of(sizes, count);
}

double minilora_square_sum_f32(const float *const *arrays, double *workspace, const ptrdiff_t *sizes, ptrdiff_t count,
                               int n_threads)
{
    const square_job job = {workspace, arrays, sizes, pieces_of(sizes, count)};
    minilora_team(square_part, &job, cost(sizes, count, 1.0), n_threads);
    double sum = 0.0;
    for (ptrdiff_t p = 0; p < job.pieces; p++)
        sum += workspace[p];
    return sum;
}

typedef struct {
    float *const *arrays;
    const ptrdiff_t *sizes;
    ptrdiff_t pieces;
    float scale;
} scale_job;

static void scale_part(const void *job, int part, int parts)
{
    const scale_job all = *(const scale_job *)job;
    walk w = walk_of(all.sizes, all.pieces, part, parts);
    for (ptrdiff_t from, to; go_on(&w, &from, &to);) {
        float *const array = all.arrays[w.array];
#pragma omp simd
        for (ptrdiff_t j = from; j < to; j++)
            array[j] *= all.scale;
    }
}

void minilora_scale_f32(float *const *arrays, const ptrdiff_t *sizes, ptrdiff_t count, float scale, int n_threads)
{
    const scale_job job = {arrays, sizes, pieces_of(sizes, count), scale};
    minilora_team(scale_part, &job, cost(sizes, count, 2.0), n_threads);
}
