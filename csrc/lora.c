/* lora.c - the low-rank linear layer and its gradients, each one parallel region over the products of gemm.c. */
#include "internal.h"

#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* Below this many multiply-adds, each float of W counted 16 times more for its reading, a parallel region is not
 * worth entering: some 10 microseconds can be won, and on a machine that others use too, milliseconds lost. */
#ifndef MINILORA_SERIAL_WORK
#define MINILORA_SERIAL_WORK 4e6
#endif

enum { ALIGN = 64 };

/* The pieces of a workspace. */
typedef struct {
    float *turned_a;            /* A^T (r, k): with it x . A finds its terms side by side, and grad_h . A^T its rows */
    float *grad_h;              /* grad . B^T (m, r) */
    float *turned_grad_a;       /* grad_A^T (r, k) */
    float *scratch;             /* SCRATCH floats for each thread */
} parts_of_workspace;

static ptrdiff_t round_up(ptrdiff_t floats) { return ceil_div(floats, ALIGN / 4) * (ALIGN / 4); }

size_t minilora_lora_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads)
{
    (void)n;
    const ptrdiff_t threads = n_threads < 1 ? 1 : n_threads;
    return ALIGN + sizeof(float) * (size_t)(2 * round_up(r * k) + round_up(m * r) + threads * round_up(SCRATCH));
}

static parts_of_workspace cut(void *workspace, ptrdiff_t m, ptrdiff_t k, ptrdiff_t r)
{
    char *const bytes = workspace;
    float *const start = (float *)(void *)(bytes + (ALIGN - (uintptr_t)workspace % ALIGN) % ALIGN);
    return (parts_of_workspace){
        .turned_a = start,
        .turned_grad_a = start + round_up(r * k),
        .grad_h = start + 2 * round_up(r * k),
        .scratch = start + 2 * round_up(r * k) + round_up(m * r),
    };
}

/* A lone thread enters no parallel region at all. */
static int team_size(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads)
{
    const double work = (double)(m + 16) * ((double)n * (double)k + (double)r * (double)(n + k));
    return work < MINILORA_SERIAL_WORK || n_threads < 1 ? 1 : n_threads;
}

/* Wait for the team, of which a lone thread knows nothing. */
static void meet(int parts)
{
    (void)parts;
#ifdef _OPENMP
    if (parts > 1) {
#pragma omp barrier
    }
#endif
}

static void compute_share(const product *p, int part, int parts, float *scratch)
{
    minilora_product(p, minilora_share(p, part, parts), scratch);
}

static void forward_share(const product *down, const product *whole, float *scratch, int part, int parts)
{
    scratch += part * round_up(SCRATCH);
    if (down->n > 0) {
        compute_share(down, part, parts, scratch);
        meet(parts);
    }
    compute_share(whole, part, parts, scratch);
}

void minilora_lora_forward_f32(float *restrict y, float *restrict hidden,
                               const float *restrict x, const float *restrict w, const float *restrict a,
                               const float *restrict b, const float *restrict bias, void *restrict workspace,
                               ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                               float scale, int w_layout, int n_threads)
{
    const parts_of_workspace space = cut(workspace, m, k, r);
    const int transposed = w_layout == MINILORA_W_NK;
    const product down = {
        .c = hidden, .m = m, .n = r,
        .first = {{x, k, 0}, {space.turned_a, k, 1}, k, 1.0f},
    };
    const product whole = {
        .c = y, .bias = bias, .m = m, .n = n,
        .first = {{x, k, 0}, {w, transposed ? k : n, transposed}, k, 1.0f},
        .second = {{hidden, r, 0}, {b, n, 0}, r, scale},
    };
    const int threads = team_size(m, n, k, r, n_threads);
    (void)threads;
    if (m == 0)
        return;
    minilora_transpose(space.turned_a, k, a, r, k, r);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        forward_share(&down, &whole, space.scratch, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    forward_share(&down, &whole, space.scratch, 0, 1);
}

/* grad_A (k, r) = x^T . grad_h, computed as its transpose: only so is the long side contiguous. */
static void grad_a_share(float *grad_a, const product *turned, int part, int parts, float *scratch)
{
    const rect share = minilora_share(turned, part, parts);
    const ptrdiff_t r = turned->m, k = turned->n, rows = share.i1 - share.i0, cols = share.j1 - share.j0;
    float *const mine = turned->c + share.i0 * k + share.j0, *const out = grad_a + share.j0 * r + share.i0;
    if (turned->accumulate)
        minilora_transpose(mine, k, out, r, cols, rows);
    minilora_product(turned, share, scratch);
    minilora_transpose(out, r, mine, k, rows, cols);
}

/* Each product where its output is wanted; grad_h first, since two of the others read all of it. */
static void backward_share(const product *up, const product *whole, const product *turned_grad_a, float *grad_a,
                           const product *whole_grad_b, float *scratch, int part, int parts)
{
    scratch += part * round_up(SCRATCH);
    if (up->n > 0 && (whole->c || grad_a)) {
        compute_share(up, part, parts, scratch);
        meet(parts);
    }
    if (up->n > 0 && grad_a)
        grad_a_share(grad_a, turned_grad_a, part, parts, scratch);
    if (up->n > 0 && whole_grad_b->c)
        compute_share(whole_grad_b, part, parts, scratch);
    if (whole->c)
        compute_share(whole, part, parts, scratch);
}

void minilora_lora_backward_f32(float *restrict grad_x, float *restrict grad_a, float *restrict grad_b,
                                const float *restrict grad, const float *restrict x,
                                const float *restrict hidden, const float *restrict w,
                                const float *restrict a, const float *restrict b, void *restrict workspace,
                                ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                float scale, int accumulate, int w_layout, int n_threads)
{
    const parts_of_workspace space = cut(workspace, m, k, r);
    const int transposed = w_layout != MINILORA_W_NK;           /* of W^T (n, k) */
    const product up = {
        .c = space.grad_h, .m = m, .n = r,
        .first = {{grad, n, 0}, {b, n, 1}, n, 1.0f},
    };
    const product whole = {
        .c = grad_x, .m = m, .n = k,
        .first = {{grad, n, 0}, {w, transposed ? n : k, transposed}, n, 1.0f},
        .second = {{space.grad_h, r, 0}, {space.turned_a, k, 0}, r, scale},
    };
    const product turned_grad_a = {
        .c = space.turned_grad_a, .accumulate = accumulate, .m = r, .n = k,
        .first = {{space.grad_h, r, 1}, {x, k, 0}, m, scale},
    };
    const product whole_grad_b = {
        .c = grad_b, .accumulate = accumulate, .m = r, .n = n,
        .first = {{hidden, r, 1}, {grad, n, 0}, m, scale},
    };
    const int threads = team_size(m, n, k, r, n_threads);
    (void)threads;
    if (grad_x)
        minilora_transpose(space.turned_a, k, a, r, k, r);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        backward_share(&up, &whole, &turned_grad_a, grad_a, &whole_grad_b, space.scratch, omp_get_thread_num(),
                       omp_get_num_threads());
        return;
    }
#endif
    backward_share(&up, &whole, &turned_grad_a, grad_a, &whole_grad_b, space.scratch, 0, 1);
}
