/* test_cross_entropy.c - losses and gradients of every compiled instruction set against double precision.
 *
 * The bound follows the computation.  With delta the most that a logit of the row is off (gamma(k + 2) times the sum of
 * its terms' absolute values; 0 where the logits are given), log sum exp moves by delta at most, so the loss by 2 delta,
 * and softmax, or 1 - softmax at the label, by a factor of exp(2 delta) at most.  What the kernel adds to that is in
 * minilora.h.  Outputs and workspaces start as NaN, every array has its exact size, and 1, 2 and 3 threads must
 * agree bit by bit.
 */
#include "check.h"

typedef struct {
    ptrdiff_t m, n, k;
    int layout, accumulate;
    double spread;              /* size of the logits */
} problem;

static float *nan_array(ptrdiff_t size) { return filled(size, 0, NAN).at; }
static float *random_array(ptrdiff_t size, double scale) { return drawn(size, 0, scale).at; }

static void expect(const problem *p, const char *what, ptrdiff_t i, ptrdiff_t j, float got, double want, double allowed)
{
    if (is_off((double)got, want, allowed + 1e-37))     /* 1e-37: below the smallest normal number */
        printf("%s[%td,%td] = %.9g, want %.9g +- %.3g  (m %td n %td k %td layout %d accumulate %d)\n", what, i, j,
               (double)got, want, allowed, p->m, p->n, p->k, p->layout, p->accumulate);
}

static void expect_same(const problem *p, const char *what, const float *one, const float *other, ptrdiff_t size)
{
    if (differ(one, other, size))
        printf("other bits of %s  (m %td n %td k %td layout %d)\n", what, p->m, p->n, p->k, p->layout);
}

/* A row's exact loss, the gradient of its logits times the factor, and how far both may be off; logits in double, each
 * off by at most delta. */
static double row_of(double *grad, double *allowed, double *loss_allowed, const double *logits, ptrdiff_t n,
                     ptrdiff_t label, double factor, double delta)
{
    double peak = -INFINITY, bottom = INFINITY, others = 0.0;
    for (ptrdiff_t j = 0; j < n; j++) {
        peak = logits[j] > peak ? logits[j] : peak;
        bottom = logits[j] < bottom ? logits[j] : bottom;
    }
    for (ptrdiff_t j = 0; j < n; j++)
        others += j == label ? 0.0 : exp(logits[j] - peak);
    const double total = others + exp(logits[label] - peak);
    const double loss = logits[label] == peak ? log1p(others) : log(total) + peak - logits[label];
    const double kernel = gamma_of(2.0 * (peak - bottom + 2.0 * delta) + 2060.0);
    const double relative = exp(2.0 * delta) * (1.0 + kernel) - 1.0;
    for (ptrdiff_t j = 0; j < n; j++) {
        grad[j] = factor * (j == label ? -others : exp(logits[j] - peak)) / total;
        allowed[j] = fabs(grad[j]) * relative + fabs(factor) * 1e-37;
    }
    *loss_allowed = 2.0 * delta + (loss + 2.0 * delta) * kernel;
    return loss;
}

typedef struct {
    float *losses, *grad_x, *grad_w;
} outputs;

typedef struct {
    float *x, *w, *factors, *old;
    int64_t *labels;
} inputs;

static outputs run(const problem *p, const inputs *in, int need_x, int need_w, int threads)
{
    const size_t size = minilora_linear_cross_entropy_workspace_f32(p->m, p->n, p->k, threads);
    void *const workspace = new_bytes(size);
    memset(workspace, 0xff, size);      /* NaN */
    outputs out = {nan_array(p->m), need_x ? nan_array(p->m * p->k) : NULL, need_w ? nan_array(p->k * p->n) : NULL};
    if (need_w && p->accumulate && p->k * p->n > 0)
        memcpy(out.grad_w, in->old, (size_t)(p->k * p->n) * sizeof *in->old);
    minilora_linear_cross_entropy_f32(out.losses, out.grad_x, out.grad_w, in->x, in->w,
                                      need_x || need_w ? in->factors : NULL, in->labels, workspace,
                                      p->m, p->n, p->k, p->accumulate, p->layout, MINILORA_F32, threads);
    free(workspace);
    return out;
}

static void free_outputs(outputs *out)
{
    free(out->losses);
    free(out->grad_x);
    free(out->grad_w);
}

static void check_values(const problem *p, const inputs *in, const outputs *out)
{
    const ptrdiff_t m = p->m, n = p->n, k = p->k;
    const ptrdiff_t w_k = p->layout == MINILORA_W_KN ? n : 1, w_n = p->layout == MINILORA_W_KN ? 1 : k;
    double *const grads = new_bytes((size_t)(m * n) * sizeof *grads), *const off = new_bytes((size_t)(m * n) * sizeof *off);
    double *const logits = new_bytes((size_t)n * sizeof *logits);
    for (ptrdiff_t i = 0; i < m; i++) {
        double delta = 0.0, loss_allowed;
        for (ptrdiff_t j = 0; j < n; j++) {
            double size = 0.0;
            logits[j] = 0.0;
            for (ptrdiff_t c = 0; c < k; c++) {
                const double term = (double)in->x[i * k + c] * (double)in->w[c * w_k + j * w_n];
                logits[j] += term;
                size += fabs(term);
            }
            delta = fmax(delta, gamma_of((double)k + 2.0) * size);
        }
        double *const grad = grads + i * n, *const allowed = off + i * n;
        const double loss = row_of(grad, allowed, &loss_allowed, logits, n, in->labels[i], (double)in->factors[i], delta);
        expect(p, "loss", i, 0, out->losses[i], loss, loss_allowed);
        for (ptrdiff_t c = 0; out->grad_x && c < k; c++) {
            double want = 0.0, bound = 0.0;
            for (ptrdiff_t j = 0; j < n; j++) {
                const double weight = (double)in->w[c * w_k + j * w_n];
                want += grad[j] * weight;
                bound += fabs(weight) * (allowed[j] + gamma_of((double)n + 2.0) * (fabs(grad[j]) + allowed[j]));
            }
            expect(p, "grad_x", i, c, out->grad_x[i * k + c], want, bound);
        }
    }
    for (ptrdiff_t c = 0; out->grad_w && c < k; c++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double rounding = gamma_of((double)m + 3.0), old = p->accumulate ? (double)in->old[c * n + j] : 0.0;
            double want = old, bound = rounding * fabs(old);
            for (ptrdiff_t i = 0; i < m; i++) {
                const double x = (double)in->x[i * k + c], grad = grads[i * n + j], allowed = off[i * n + j];
                want += x * grad;
                bound += fabs(x) * (allowed + rounding * (fabs(grad) + allowed));
            }
            expect(p, "grad_w", c, j, out->grad_w[c * n + j], want, bound);
        }
    free(grads);
    free(off);
    free(logits);
}

static void check_linear(problem p)
{
    const double size = sqrt(p.spread / sqrt((double)p.k + 1.0));
    inputs in = {random_array(p.m * p.k, size), random_array(p.k * p.n, size), random_array(p.m, 1.0),
                 random_array(p.k * p.n, 1.0), new_bytes((size_t)p.m * sizeof *in.labels)};
    for (ptrdiff_t i = 0; i < p.m; i++)
        in.labels[i] = (ptrdiff_t)((double)p.n * (0.5 + 0.499 * (double)uniform()));
    outputs one = run(&p, &in, 1, 1, 1);
    check_values(&p, &in, &one);
    for (int threads = 2; threads <= 3; threads++) {
        outputs other = run(&p, &in, 1, 1, threads);
        expect_same(&p, "losses with more threads", one.losses, other.losses, p.m);
        expect_same(&p, "grad_x with more threads", one.grad_x, other.grad_x, p.m * p.k);
        expect_same(&p, "grad_w with more threads", one.grad_w, other.grad_w, p.k * p.n);
        free_outputs(&other);
    }
    outputs none = run(&p, &in, 0, 0, 2), only_x = run(&p, &in, 1, 0, 2), only_w = run(&p, &in, 0, 1, 2);
    check_values(&p, &in, &none);
    expect_same(&p, "grad_x alone", one.grad_x, only_x.grad_x, p.m * p.k);
    expect_same(&p, "grad_w alone", one.grad_w, only_w.grad_w, p.k * p.n);
    free_outputs(&none);
    free_outputs(&only_x);
    free_outputs(&only_w);
    free_outputs(&one);
    free(in.x);
    free(in.w);
    free(in.factors);
    free(in.old);
    free(in.labels);
    cases++;
}

typedef struct {
    float *losses, *peaks, *others, *grad;
} row_outputs;

static row_outputs run_rows(ptrdiff_t m, ptrdiff_t n, const float *logits, const float *factors, const int64_t *labels,
                            int threads)
{
    row_outputs out = {nan_array(m), nan_array(m), nan_array(m), nan_array(m * n)};
    minilora_cross_entropy_forward_f32(out.losses, out.peaks, out.others, logits, labels, m, n, threads);
    minilora_cross_entropy_backward_f32(out.grad, logits, out.peaks, out.others, factors, labels, m, n, threads);
    return out;
}

static void free_rows(row_outputs *out)
{
    free(out->losses);
    free(out->peaks);
    free(out->others);
    free(out->grad);
}

static void check_rows(ptrdiff_t m, ptrdiff_t n, double spread)
{
    const problem p = {.m = m, .n = n, .spread = spread};
    float *const logits = random_array(m * n, spread), *const factors = random_array(m, 1.0);
    int64_t *const labels = new_bytes((size_t)m * sizeof *labels);
    double *const row = new_bytes((size_t)n * sizeof *row), *const grad = new_bytes((size_t)n * sizeof *grad);
    double *const allowed = new_bytes((size_t)n * sizeof *allowed);
    for (ptrdiff_t i = 0; i < m; i++) {
        labels[i] = n == 0 || i % 4 == 3 ? -1 - i : (ptrdiff_t)((double)n * (0.5 + 0.499 * (double)uniform()));
        if (i % 4 == 1 && labels[i] >= 0)
            logits[i * n + labels[i]] = (float)(spread + 25.0);     /* 1 - softmax is below eps */
    }
    row_outputs one = run_rows(m, n, logits, factors, labels, 1);
    for (ptrdiff_t i = 0; i < m; i++) {
        double loss_allowed = 0.0, loss = 0.0;
        for (ptrdiff_t j = 0; j < n; j++) {
            row[j] = (double)logits[i * n + j];
            grad[j] = allowed[j] = 0.0;
        }
        if (labels[i] >= 0)
            loss = row_of(grad, allowed, &loss_allowed, row, n, labels[i], (double)factors[i], 0.0);
        expect(&p, "loss of row", i, 0, one.losses[i], loss, loss_allowed);
        for (ptrdiff_t j = 0; j < n; j++)
            expect(&p, "grad_logits", i, j, one.grad[i * n + j], grad[j], allowed[j]);
    }
    for (int threads = 2; threads <= 3; threads++) {
        row_outputs other = run_rows(m, n, logits, factors, labels, threads);
        expect_same(&p, "losses of rows with more threads", one.losses, other.losses, m);
        expect_same(&p, "grad_logits with more threads", one.grad, other.grad, m * n);
        free_rows(&other);
    }
    free_rows(&one);
    free(logits);
    free(factors);
    free(labels);
    free(row);
    free(grad);
    free(allowed);
    cases++;
}

/* No infinity and no NaN may look like a good loss. */
static void check_what_is_not_finite(void)
{
    static const float rows[][4] = {
        {NAN, 0, 1, 2}, {0, NAN, 1, 2}, {INFINITY, 0, 1, 2}, {0, INFINITY, 1, 2}, {INFINITY, INFINITY, 0, 0},
        {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
    };
    const float factor = 1.0f;
    const int64_t label = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        row_outputs out = run_rows(1, 4, rows[i], &factor, &label, 1);
        if (!isnan(out.losses[0]) && !(rows[i][1] == INFINITY && out.losses[0] == INFINITY) && fails())
            printf("not finite: row %zu has the loss %g\n", i, (double)out.losses[0]);
        free_rows(&out);
    }
    row_outputs alone = run_rows(1, 1, &rows[5][0], &factor, &label, 1);
    if (!isnan(alone.losses[0]) && fails())
        printf("not finite: -Inf alone has the loss %g\n", (double)alone.losses[0]);
    free_rows(&alone);
    cases++;
}

static void check_isa(void)
{
    static const ptrdiff_t tiny[] = {0, 1, 2, 5};
    for (int i = 0; i < 4 * 3 * 4; i++)
        check_linear((problem){tiny[i % 4], tiny[1 + i / 4 % 3], tiny[i / 12], i % 2, i / 2 % 2, 3.0});
    check_linear((problem){0, 0, 5, 0, 0, 1.0});
    for (int m = 1; m <= 40; m += 3)
        check_linear((problem){m, 65 + 3 * m, 3 + 2 * m, m % 2, m / 2 % 2, (double)m});
    check_linear((problem){60, 1300, 31, MINILORA_W_NK, 0, 20.0});
    check_linear((problem){50, 2100, 17, MINILORA_W_KN, 1, 4.0});
    check_linear((problem){1030, 37, 5, MINILORA_W_NK, 1, 4.0});        /* three chunks */
    check_linear((problem){1025, 11, 21, MINILORA_W_KN, 0, 4.0});
    for (ptrdiff_t n = 0; n <= 70; n += n < 20 ? 1 : 7)
        check_rows(9, n, 5.0);
    check_rows(0, 4, 1.0);
    check_rows(5, 1023, 60.0);
    check_rows(7, 1025, 1e-3);
    check_rows(6, 49152, 15.0);
    check_what_is_not_finite();
}

int main(void) { return check_every_isa("cross-entropy", check_isa); }
