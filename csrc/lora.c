/* lora.c - the low-rank linear layer and its gradients, each one parallel region over the products of gemm.c. */
#include "internal.h"

/* The pieces of a workspace. */
typedef struct {
    float *turned_a;            /* A^T (r, k): with it x . A finds its terms side by side, and grad_h . A^T its rows */
    float *grad_h;              /* grad . B^T (m, r) */
    float *turned_grad_a;       /* grad_A^T (r, k) */
    float *scratch;             /* SCRATCH floats for each thread */
} parts_of_workspace;

size_t minilora_lora_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads)
{
    (void)n;
    const ptrdiff_t threads = n_threads < 1 ? 1 : n_threads;
    return ALIGN + sizeof(float) * (size_t)(2 * whole_lines(r * k) + whole_lines(m * r) + threads * whole_lines(SCRATCH));
}

static parts_of_workspace cut(void *workspace, ptrdiff_t m, ptrdiff_t k, ptrdiff_t r)
{
    float *const start = aligned(workspace);
    return (parts_of_workspace){
        .turned_a = start,
        .turned_grad_a = start + whole_lines(r * k),
        .grad_h = start + 2 * whole_lines(r * k),
        .scratch = start + 2 * whole_lines(r * k) + whole_lines(m * r),
    };
}

/* In multiply-adds; each float of W counts 16 times more for its reading. */
static double cost(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r)
{
    return (double)(m + 16) * ((double)n * (double)k + (double)r * (double)(n + k));
}

typedef struct {
    product down, whole;
    float *scratch;
} forward_job;

static void forward_part(const void *job, int part, int parts)
{
    const forward_job *const all = job;
    float *const scratch = all->scratch + part * whole_lines(SCRATCH);
    if (all->down.n > 0) {
        compute_share(&all->down, part, parts, scratch);
        minilora_meet(parts);
    }
    compute_share(&all->whole, part, parts, scratch);
}

void minilora_lora_forward_f32(float *restrict y, float *restrict hidden,
                               const float *restrict x, const void *restrict w, const float *restrict a,
                               const float *restrict b, const float *restrict bias, void *restrict workspace,
                               ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                               float scale, int w_layout, int w_storage, int n_threads)
{
    const parts_of_workspace space = cut(workspace, m, k, r);
    const int transposed = w_layout == MINILORA_W_NK;
    const forward_job job = {
        .down = {
            .c = hidden, .m = m, .n = r,
            .first = {{x, k, 0, 0}, {space.turned_a, k, 1, 0}, k, 1.0f},
        },
        .whole = {
            .c = y, .bias = bias, .m = m, .n = n,
            .first = {{x, k, 0, 0}, {w, transposed ? k : n, transposed, w_storage}, k, 1.0f},
            .second = {{hidden, r, 0, 0}, {b, n, 0, 0}, r, scale},
        },
        .scratch = space.scratch,
    };
    if (m == 0)
        return;
    minilora_transpose(space.turned_a, k, a, r, k, r);
    minilora_team(forward_part, &job, cost(m, n, k, r), n_threads);
}

typedef struct {
    product whole;
    const minilora_span *spans;
    ptrdiff_t n_spans;
    float *scratch;
} mixed_job;

/* Each thread's own spans, since most are too small to share. */
static void mixed_part(const void *job, int part, int parts)
{
    const mixed_job *const all = job;
    const view x = all->whole.first.a;
    const ptrdiff_t n = all->whole.n, k = all->whole.first.k;
    const ptrdiff_t begin = part_start(all->n_spans, part, parts), end = part_start(all->n_spans, part + 1, parts);
    float *const scratch = all->scratch + part * whole_lines(SCRATCH);
    for (ptrdiff_t i = begin; i < end; i++) {
        const minilora_span span = all->spans[i];
        const product down = {
            .c = span.hidden, .m = span.count, .n = span.r,
            .first = {{line_of(x, span.first), k, 0, 0}, {span.a, span.r, 0, 0}, k, 1.0f},
        };
        compute_share(&down, 0, 1, scratch);
    }
    compute_share(&all->whole, part, parts, scratch);
    minilora_meet(parts);
    for (ptrdiff_t i = begin; i < end; i++) {
        const minilora_span span = all->spans[i];
        const product up = {
            .c = all->whole.c + span.first * n, .accumulate = 1, .m = span.count, .n = n,
            .first = {{span.hidden, span.r, 0, 0}, {span.b, n, 0, 0}, span.r, span.scale},
        };
        compute_share(&up, 0, 1, scratch);
    }
}

void minilora_mixed_lora_forward_f32(float *restrict y, const float *restrict x, const void *restrict w,
                                     const float *restrict bias, const minilora_span *restrict spans,
                                     void *restrict workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,
                                     ptrdiff_t n_spans, ptrdiff_t max_r, int w_layout, int w_storage, int n_threads)
{
    const parts_of_workspace space = cut(workspace, m, k, max_r);
    const int transposed = w_layout == MINILORA_W_NK;
    const mixed_job job = {
        .whole = {
            .c = y, .bias = bias, .m = m, .n = n,
            .first = {{x, k, 0, 0}, {w, transposed ? k : n, transposed, w_storage}, k, 1.0f},
        },
        .spans = spans, .n_spans = n_spans, .scratch = space.scratch,
    };
    if (m == 0)
        return;
    minilora_team(mixed_part, &job, cost(m, n, k, max_r), n_threads);
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

typedef struct {
    product up, whole, turned_grad_a, grad_b;
    float *grad_a, *scratch;
} backward_job;

/* Each product where its output is wanted; grad_h first, since two of the others read all of it. */
static void backward_part(const void *job, int part, int parts)
{
    const backward_job *const all = job;
    float *const scratch = all->scratch + part * whole_lines(SCRATCH);
    const int low_rank = all->up.n > 0;
    if (low_rank && (all->whole.c || all->grad_a)) {
        compute_share(&all->up, part, parts, scratch);
        minilora_meet(parts);
    }
    if (low_rank && all->grad_a)
        grad_a_share(all->grad_a, &all->turned_grad_a, part, parts, scratch);
    if (low_rank && all->grad_b.c)
        compute_share(&all->grad_b, part, parts, scratch);
    if (all->whole.c)
        compute_share(&all->whole, part, parts, scratch);
}

void minilora_lora_backward_f32(float *restrict grad_x, float *restrict grad_a, float *restrict grad_b,
                                const float *restrict grad, const float *restrict x,
                                const float *restrict hidden, const void *restrict w,
                                const float *restrict a, const float *restrict b, void *restrict workspace,
                                ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                float scale, int accumulate, int w_layout, int w_storage, int n_threads)
{
    const parts_of_workspace space = cut(workspace, m, k, r);
    const int transposed = w_layout != MINILORA_W_NK;           /* of W^T (n, k) */
    const backward_job job = {
        .up = {
            .c = space.grad_h, .m = m, .n = r,
            .first = {{grad, n, 0, 0}, {b, n, 1, 0}, n, 1.0f},
        },
        .whole = {
            .c = grad_x, .m = m, .n = k,
            .first = {{grad, n, 0, 0}, {w, transposed ? n : k, transposed, w_storage}, n, 1.0f},
            .second = {{space.grad_h, r, 0, 0}, {space.turned_a, k, 0, 0}, r, scale},
        },
        .turned_grad_a = {
            .c = space.turned_grad_a, .accumulate = accumulate, .m = r, .n = k,
            .first = {{space.grad_h, r, 1, 0}, {x, k, 0, 0}, m, scale},
        },
        .grad_b = {
            .c = grad_b, .accumulate = accumulate, .m = r, .n = n,
            .first = {{hidden, r, 1, 0}, {grad, n, 0, 0}, m, scale},
        },
        .grad_a = grad_a, .scratch = space.scratch,
    };
    if (grad_x)
        minilora_transpose(space.turned_a, k, a, r, k, r);
    minilora_team(backward_part, &job, cost(m, n, k, r), n_threads);
}
