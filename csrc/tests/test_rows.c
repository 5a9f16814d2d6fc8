/* test_rows.c - norms, activations, rotary positions and table look-ups: every compiled instruction set against plain
 * double-precision loops, under bounds that follow from the number of roundings.
 *
 * Outputs and workspaces start as NaN, every array is its own allocation of the exact size (so that AddressSanitizer
 * sees one float too many), and each case runs with 1, 2 and 3 threads, which must agree bit by bit.
 */
#include "check.h"

static const char *what = "";

/* All that a case allocates; freed at its end.  The last float ends one byte before the allocation does, which makes
 * size 0 legal. */
static void *owned[64];
static int owned_count;

static void *take(size_t bytes)
{
    void *const memory = malloc(bytes + 1);
    if (!memory || owned_count == 64)
        abort();
    return owned[owned_count++] = memory;
}

static void free_all(void)
{
    while (owned_count > 0)
        free(owned[--owned_count]);
    cases++;
}

static float *nans(ptrdiff_t size)
{
    float *const made = take((size_t)size * sizeof(float));
    for (ptrdiff_t i = 0; i < size; i++)
        made[i] = NAN;
    return made;
}

static float *numbers(ptrdiff_t size, float magnitude, float centre)
{
    float *const made = take((size_t)size * sizeof(float));
    for (ptrdiff_t i = 0; i < size; i++)
        made[i] = centre + magnitude * uniform();
    return made;
}

static void expect(ptrdiff_t i, ptrdiff_t j, float got, double want, double allowed)
{
    if (is_off((double)got, want, allowed))
        printf("%s[%td,%td] = %.9g, want %.9g +- %.3g\n", what, i, j, (double)got, want, allowed);
}

static void expect_same(const float *one, const float *other, ptrdiff_t size, int threads)
{
    if (differ(one, other, size))
        printf("%s differs between 1 and %d threads\n", what, threads);
}

static void check_rms_norm(ptrdiff_t rows, ptrdiff_t d)
{
    const float eps = 1e-5f;
    const float *const x = numbers(rows * d, 3, 0), *const grad = numbers(rows * d, 2, 0), *const weight = numbers(d, 1, 1);
    const float *const old = numbers(d, 1, 0);
    float *y[4], *inv[4], *grad_x[4], *grad_weight[4], *added[4], *alone_x = nans(rows * d), *alone_weight = nans(d);
    for (int threads = 1; threads <= 3; threads++) {
        const size_t bytes = minilora_norm_workspace_f32(rows, d);
        float *const space = nans((ptrdiff_t)(bytes / sizeof(float)));
        y[threads] = nans(rows * d), inv[threads] = nans(rows);
        grad_x[threads] = nans(rows * d), grad_weight[threads] = nans(d);
        added[threads] = take((size_t)d * sizeof(float));
        if (d)
            memcpy(added[threads], old, (size_t)d * sizeof(float));
        minilora_rms_norm_forward_f32(y[threads], inv[threads], x, weight, rows, d, eps, threads);
        minilora_rms_norm_backward_f32(grad_x[threads], grad_weight[threads], grad, x, inv[threads], weight, space,
                                       rows, d, 0, threads);
        minilora_rms_norm_backward_f32(NULL, added[threads], grad, x, inv[threads], NULL, space, rows, d, 1, threads);
        what = "rms_norm";
        expect_same(y[1], y[threads], rows * d, threads);
        expect_same(inv[1], inv[threads], rows, threads);
        expect_same(grad_x[1], grad_x[threads], rows * d, threads);
        expect_same(grad_weight[1], grad_weight[threads], d, threads);
        expect_same(added[1], added[threads], d, threads);
        if (threads == 1) {
            minilora_rms_norm_backward_f32(alone_x, NULL, grad, x, inv[1], weight, NULL, rows, d, 0, 1);
            minilora_rms_norm_backward_f32(NULL, alone_weight, grad, x, inv[1], NULL, space, rows, d, 0, 1);
            expect_same(alone_x, grad_x[1], rows * d, 1);
            expect_same(alone_weight, grad_weight[1], d, 1);
        }
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        double squares = 0, along = 0, size = 0;
        for (ptrdiff_t j = 0; j < d; j++)
            squares += (double)x[i * d + j] * (double)x[i * d + j];
        const double exact = 1 / sqrt(squares / (d > 0 ? (double)d : 1) + (double)eps), got = (double)inv[1][i];
        what = "inv_rms";
        expect(i, 0, inv[1][i], exact, gamma_of((double)d + 5) * exact);
        for (ptrdiff_t j = 0; j < d; j++) {
            const double term = (double)grad[i * d + j] * (double)weight[j] * (double)x[i * d + j] * got;
            along += term / (double)d;
            size += fabs(term) / (double)d;
            const double want = (double)x[i * d + j] * exact * (double)weight[j];
            what = "rms_norm y";
            expect(i, j, y[1][i * d + j], want, gamma_of((double)d + 8) * fabs(want));
        }
        for (ptrdiff_t j = 0; j < d; j++) {
            const double g = (double)grad[i * d + j] * (double)weight[j], unit = (double)x[i * d + j] * got;
            what = "rms_norm grad_x";
            expect(i, j, grad_x[1][i * d + j], got * (g - unit * along),
                   gamma_of((double)d + 9) * got * (fabs(g) + fabs(unit) * size));
        }
    }
    for (ptrdiff_t j = 0; j < d; j++) {
        double sum = 0, size = 0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double term = (double)grad[i * d + j] * (double)x[i * d + j] * (double)inv[1][i];
            sum += term;
            size += fabs(term);
        }
        what = "rms_norm grad_weight";
        expect(0, j, grad_weight[1][j], sum, gamma_of((double)rows + 3) * size);
        expect(1, j, added[1][j], sum + (double)old[j], gamma_of((double)rows + 4) * (size + fabs((double)old[j])));
    }
    free_all();
}

static void check_layer_norm(ptrdiff_t rows, ptrdiff_t d, float centre)
{
    const float eps = 1e-5f;
    const float *const x = numbers(rows * d, 3, centre), *const grad = numbers(rows * d, 2, 0);
    const float *const weight = numbers(d, 1, 1), *const bias = numbers(d, 1, 0), *const old = numbers(d, 1, 0);
    float *y[4], *mean[4], *inv[4], *grad_x[4], *grads[4][2], *added[4][2], *alone[3] = {nans(rows * d), nans(d), nans(d)};
    for (int threads = 1; threads <= 3; threads++) {
        const size_t bytes = minilora_norm_workspace_f32(rows, d);
        float *const space = nans((ptrdiff_t)(bytes / sizeof(float)));
        y[threads] = nans(rows * d), mean[threads] = nans(rows), inv[threads] = nans(rows);
        grad_x[threads] = nans(rows * d);
        for (int k = 0; k < 2; k++) {
            grads[threads][k] = nans(d);
            added[threads][k] = take((size_t)d * sizeof(float));
            if (d)
                memcpy(added[threads][k], old, (size_t)d * sizeof(float));
        }
        minilora_layer_norm_forward_f32(y[threads], mean[threads], inv[threads], x, weight, bias, rows, d, eps, threads);
        minilora_layer_norm_backward_f32(grad_x[threads], grads[threads][0], grads[threads][1], grad, x, mean[threads],
                                         inv[threads], weight, space, rows, d, 0, threads);
        minilora_layer_norm_backward_f32(NULL, added[threads][0], added[threads][1], grad, x, mean[threads],
                                         inv[threads], NULL, space, rows, d, 1, threads);
        what = "layer_norm";
        expect_same(y[1], y[threads], rows * d, threads);
        expect_same(mean[1], mean[threads], rows, threads);
        expect_same(inv[1], inv[threads], rows, threads);
        expect_same(grad_x[1], grad_x[threads], rows * d, threads);
        for (int k = 0; k < 2; k++) {
            expect_same(grads[1][k], grads[threads][k], d, threads);
            expect_same(added[1][k], added[threads][k], d, threads);
        }
        if (threads == 1) {
            minilora_layer_norm_backward_f32(alone[0], NULL, NULL, grad, x, mean[1], inv[1], weight, NULL, rows, d, 0, 1);
            minilora_layer_norm_backward_f32(NULL, alone[1], NULL, grad, x, mean[1], inv[1], NULL, space, rows, d, 0, 1);
            minilora_layer_norm_backward_f32(NULL, NULL, alone[2], grad, NULL, NULL, NULL, NULL, space, rows, d, 0, 1);
            expect_same(alone[0], grad_x[1], rows * d, 1);
            expect_same(alone[1], grads[1][0], d, 1);
            expect_same(alone[2], grads[1][1], d, 1);
        }
    }
    double *const off_unit = take((size_t)(rows * d) * sizeof(double));
    const double n = d > 0 ? (double)d : 1;
    for (ptrdiff_t i = 0; i < rows; i++) {
        const float *const row = x + i * d, *const g_row = grad + i * d;
        double exact_mean = 0, spread = 0, variance = 0, off_variance = 0;
        for (ptrdiff_t j = 0; j < d; j++) {
            exact_mean += ((double)row[j] - (double)row[0]) / n;
            spread += fabs((double)row[j] - (double)row[0]) / n;
        }
        what = "mean";
        expect(i, 0, mean[1][i], exact_mean, gamma_of(n + 2) * spread);
        /* A centred element c is off by the rounding of its difference from the first, of the mean, and its own. */
        for (ptrdiff_t j = 0; j < d; j++) {
            const double c = (double)row[j] - (double)row[0] - exact_mean;
            const double off = gamma_of(n + 4) * (fabs((double)row[j] - (double)row[0]) + spread);
            variance += c * c / n;
            off_variance += (2 * fabs(c) * off + off * off) / n;
        }
        off_variance += gamma_of(n + 3) * (variance + off_variance);
        const double exact = 1 / sqrt(variance + (double)eps);
        const double off_inv = off_variance / (variance + (double)eps) + gamma_of(4);     /* at least twice its half */
        what = "inv_std";
        expect(i, 0, inv[1][i], exact, off_inv * exact);
        /* The backward pass takes mean and inv as they are. */
        const double m = (double)mean[1][i], s = (double)inv[1][i];
        double mean_g = 0, size_g = 0, along = 0, off_along = 0;
        for (ptrdiff_t j = 0; j < d; j++) {
            const double c = (double)row[j] - (double)row[0] - exact_mean;
            const double off = gamma_of(n + 4) * (fabs((double)row[j] - (double)row[0]) + spread);
            const double scaled = fabs(c * exact * (double)weight[j]);
            what = "layer_norm y";
            expect(i, j, y[1][i * d + j], c * exact * (double)weight[j] + (double)bias[j],
                   (scaled + off * exact * fabs((double)weight[j])) * (off_inv + gamma_of(4))
                   + off * exact * fabs((double)weight[j]) + gamma_of(4) * fabs((double)bias[j]));
            const double g = (double)g_row[j] * (double)weight[j], first = (double)g_row[0] * (double)weight[0];
            mean_g += g / n;
            size_g += (fabs(g) + fabs(first)) / n;
            off_unit[i * d + j] = gamma_of(4) * s * (fabs((double)row[j] - (double)row[0]) + fabs(m));
        }
        for (ptrdiff_t j = 0; j < d; j++) {
            const double g = (double)g_row[j] * (double)weight[j], first = (double)g_row[0] * (double)weight[0];
            const double c = g - mean_g, unit = ((double)row[j] - (double)row[0] - m) * s, off = off_unit[i * d + j];
            const double off_c = gamma_of(n + 5) * (fabs(g) + fabs(first) + size_g);
            along += c * unit / n;
            off_along += ((fabs(c) + off_c) * off + off_c * fabs(unit) + gamma_of(n + 4) * fabs(c * unit)) / n;
        }
        for (ptrdiff_t j = 0; j < d; j++) {
            const double g = (double)g_row[j] * (double)weight[j], first = (double)g_row[0] * (double)weight[0];
            const double c = g - mean_g, unit = ((double)row[j] - (double)row[0] - m) * s, off = off_unit[i * d + j];
            const double off_c = gamma_of(n + 5) * (fabs(g) + fabs(first) + size_g);
            what = "layer_norm grad_x";
            expect(i, j, grad_x[1][i * d + j], s * (c - unit * along),
                   s * (1 + gamma_of(5)) * (off_c + (fabs(unit) + off) * off_along + off * fabs(along))
                   + gamma_of(5) * s * (fabs(c) + fabs(unit * along)));
        }
    }
    for (ptrdiff_t j = 0; j < d; j++) {
        double sums[2] = {0, 0}, sizes[2] = {0, 0}, off = 0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double g = (double)grad[i * d + j];
            const double unit = ((double)x[i * d + j] - (double)x[i * d] - (double)mean[1][i]) * (double)inv[1][i];
            sums[0] += g * unit, sizes[0] += fabs(g * unit), off += fabs(g) * off_unit[i * d + j];
            sums[1] += g, sizes[1] += fabs(g);
        }
        what = "layer_norm gradients for weight and bias";
        for (int k = 0; k < 2; k++) {
            const double slack = k == 0 ? off * (1 + gamma_of((double)rows + 4)) : 0;
            expect(k, j, grads[1][k][j], sums[k], gamma_of((double)rows + 3) * sizes[k] + slack);
            expect(k + 2, j, added[1][k][j], sums[k] + (double)old[j],
                   gamma_of((double)rows + 4) * (sizes[k] + fabs((double)old[j])) + slack);
        }
    }
    free_all();
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double share(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }

/* Elements out to where everything over- or underflows, and densely around 0. */
static float *spread_numbers(ptrdiff_t n)
{
    float *const made = numbers(n, 4, 0);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (i % 3 == 1)
            made[i] *= 30;
        if (i % 7 == 2)
            made[i] *= 1e-4f;
    }
    if (n > 40)
        memcpy(made, ((float[]){0, -0.0f, 88.6f, -88.6f, 89, -89, 104, -104, 15, -15, 14.6f, -14.6f, 1e30f, -1e30f}),
               14 * sizeof(float));
    return made;
}

/* Below the smallest normal number a result has fewer digits, and sigmoid has none where exp(-x) overflows, from
 * x = -88.4 on: x s(x) is 3.5e-37 there. */
static const double TINY = 4e-37;

static void check_activations(ptrdiff_t n)
{
    const float *const x = spread_numbers(n), *const up = numbers(n, 2, 0), *const grad = numbers(n, 2, 0);
    float *out[4][9];
    for (int threads = 1; threads <= 3; threads++) {
        float **const o = out[threads];
        for (int k = 0; k < 9; k++)
            o[k] = nans(n);
        minilora_silu_forward_f32(o[0], x, n, threads);
        minilora_silu_backward_f32(o[1], grad, x, n, threads);
        minilora_swiglu_forward_f32(o[2], x, up, n, threads);
        minilora_swiglu_backward_f32(o[3], o[4], grad, x, up, n, threads);
        minilora_gelu_forward_f32(o[5], x, n, 0, threads);
        minilora_gelu_backward_f32(o[6], grad, x, n, 0, threads);
        minilora_gelu_forward_f32(o[7], x, n, 1, threads);
        minilora_gelu_backward_f32(o[8], grad, x, n, 1, threads);
        for (int k = 0; k < 9; k++) {
            what = "an activation";
            expect_same(out[1][k], o[k], n, threads);
        }
    }
    float *const gate_alone = nans(n), *const up_alone = nans(n);
    minilora_swiglu_backward_f32(gate_alone, NULL, grad, x, up, n, 1);
    minilora_swiglu_backward_f32(NULL, up_alone, grad, x, NULL, n, 1);
    what = "a gradient of swiglu alone";
    expect_same(gate_alone, out[1][3], n, 1);
    expect_same(up_alone, out[1][4], n, 1);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double v = (double)x[i], s = sigmoid(v), g = (double)grad[i], w = (double)up[i];
        const double slope = s * (1 + v * (1 - s)), size = s * (1 + fabs(v)), far = fabs(v) < 1e3 ? 1 + fabs(v) : 1;
        what = "silu";
        expect(0, i, out[1][0][i], v * s, 8 * U * fabs(v * s) + TINY);
        what = "silu gradient";
        expect(0, i, out[1][1][i], g * slope, fabs(g) * (16 * U * size + TINY * far));
        what = "swiglu";
        expect(0, i, out[1][2][i], v * s * w, fabs(w) * (9 * U * fabs(v * s) + TINY));
        what = "swiglu gradient for gate";
        expect(0, i, out[1][3][i], g * slope * w, fabs(g * w) * (17 * U * size + TINY * far));
        what = "swiglu gradient for up";
        expect(0, i, out[1][4][i], g * v * s, fabs(g) * (9 * U * fabs(v * s) + TINY));
        /* exp to 4 u, the rest of its exponent to 2, a product; eleven coefficients and as many multiply-adds of positive
         * terms, each off by u or less: 22; a quotient, two products. */
        const double p = share(v), bell = exp(-0.5 * v * v) / sqrt(2 * acos(-1));
        what = "gelu";
        expect(0, i, out[1][5][i], v * p, 32 * U * fabs(v * p) + TINY);
        what = "gelu gradient";
        expect(0, i, out[1][6][i], g * (p + v * bell), fabs(g) * (34 * U * (p + fabs(v * bell)) + TINY * far));
        /* u's terms have one sign, and it is off by 7 u; the exponential multiplies that by u. */
        const double c = 2 * sqrt(2 / acos(-1)), inner = fabs(v) < 1e3 ? c * (v + 0.044715 * v * v * v) : v;
        const double t = sigmoid(inner), rest = sigmoid(-inner), off = 10 + 7 * fabs(inner) * rest;
        const double steep = fabs(v) < 1e3 ? v * c * (1 + 3 * 0.044715 * v * v) * t * rest : 0;
        what = "gelu by tanh";
        expect(0, i, out[1][7][i], v * t, off * U * fabs(v * t) + TINY);
        what = "gelu by tanh gradient";
        expect(0, i, out[1][8][i], g * (t + steep),
               fabs(g) * ((off + 2) * U * t + (24 + 14 * fabs(inner)) * U * fabs(steep) + TINY * far * far));
    }
    free_all();
}

/* NaN gives NaN and nothing else does, beside the infinities whose product with a share of 0 it is. */
static void check_special_values(void)
{
    const float x[4] = {NAN, INFINITY, -INFINITY, 1}, one[4] = {1, 1, 1, 1};
    float y[4];
    what = "special values";
    for (int k = 0; k < 4; k++) {
        if (k == 0)
            minilora_silu_forward_f32(y, x, 4, 1);
        if (k == 1)
            minilora_swiglu_forward_f32(y, x, one, 4, 1);
        if (k >= 2)
            minilora_gelu_forward_f32(y, x, 4, k - 2, 1);
        if ((!isnan(y[0]) || !isinf(y[1]) || !isnan(y[2]) || !isfinite(y[3])) && fails())
            printf("special value %d: %g %g %g %g\n", k, (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
    }
    const float rows[6] = {1, NAN, 2, 3, INFINITY, 4}, weight[3] = {1, 1, 1}, bias[3] = {0, 0, 0};
    float out[9], kept[3], mean[3];
    minilora_rms_norm_forward_f32(out, kept, rows, weight, 2, 3, 0, 1);
    if ((!isnan(out[0]) || !isnan(out[2]) || !(out[3] == 0) || !isnan(out[4])) && fails())
        puts("rms_norm of NaN and infinity");
    minilora_layer_norm_forward_f32(out, mean, kept, rows, weight, bias, 2, 3, 0, 1);
    for (int i = 0; i < 6; i++)
        if (!isnan(out[i]) && fails())
            puts("layer_norm of NaN and infinity");
    cases++;
}

static void check_rotary(ptrdiff_t positions, ptrdiff_t heads, ptrdiff_t half)
{
    const ptrdiff_t size = positions * heads * 2 * half;
    const float *const x = numbers(size, 2, 0);
    const float *const cosine = numbers(positions * half, 1, 0), *const sine = numbers(positions * half, 1, 0);
    for (int back = 0; back < 2; back++) {
        float *y[4];
        what = "rotary";
        for (int threads = 1; threads <= 3; threads++) {
            y[threads] = nans(size);
            minilora_rotary_f32(y[threads], x, cosine, sine, positions, heads, half, back, threads);
            expect_same(y[1], y[threads], size, threads);
        }
        for (ptrdiff_t i = 0; i < positions * heads; i++)
            for (ptrdiff_t j = 0; j < half; j++) {
                const double c = (double)cosine[i / heads * half + j];
                const double s = (back ? -1 : 1) * (double)sine[i / heads * half + j];
                const double first = (double)x[2 * i * half + j], second = (double)x[2 * i * half + half + j];
                expect(i, j, y[1][2 * i * half + j], first * c - second * s,
                       gamma_of(2) * (fabs(first * c) + fabs(second * s)));
                expect(i, j + half, y[1][2 * i * half + half + j], second * c + first * s,
                       gamma_of(2) * (fabs(second * c) + fabs(first * s)));
            }
    }
    free_all();
}

static void check_embedding(ptrdiff_t n, ptrdiff_t v, ptrdiff_t d)
{
    const float *const weight = numbers(v * d, 1, 0), *const grad = numbers(n * d, 1, 0);
    int64_t *const ids = take((size_t)n * sizeof *ids);
    float *const want = take((size_t)(v * d) * sizeof(float));
    for (ptrdiff_t i = 0; i < n; i++)
        ids[i] = (int64_t)((uniform() + 1) / 2 * (float)v) % v;
    memset(want, 0, (size_t)(v * d) * sizeof(float));
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j < d; j++)
            want[ids[i] * d + j] += grad[i * d + j];
    for (int threads = 1; threads <= 3; threads++) {
        float *const y = nans(n * d), *const sums = take((size_t)(v * d) * sizeof(float));
        memset(sums, 0, (size_t)(v * d) * sizeof(float));
        minilora_embedding_forward_f32(y, weight, ids, n, d, threads);
        minilora_embedding_backward_f32(sums, grad, ids, n, d, threads);
        what = "embedding gradient";
        expect_same(want, sums, v * d, threads);
        what = "embedding";
        for (ptrdiff_t i = 0; i < n; i++)
            expect_same(weight + ids[i] * d, y + i * d, d, threads);
    }
    free_all();
}

static void check_isa(void)
{
    static const ptrdiff_t sizes[] = {0, 1, 2, 5, 16, 33, 130};
    for (size_t a = 0; a < 7; a++)
        for (size_t b = 0; b < 7; b++) {
            check_rms_norm(sizes[a], sizes[b]);
            check_layer_norm(sizes[a], sizes[b], 0);
            check_layer_norm(sizes[a], sizes[b], 1000);
            check_embedding(sizes[a], 1 + sizes[b], sizes[(a + b) % 7]);
        }
    /* Each width around a block of partial sums; more rows than chunks. */
    for (ptrdiff_t d = 60; d <= 68; d++) {
        check_rms_norm(3, d);
        check_layer_norm(3, d, 5);
    }
    check_rms_norm(1500, 7);
    check_layer_norm(1500, 7, 1);
    check_rms_norm(20, 1603);
    check_layer_norm(20, 1603, 1);
    for (ptrdiff_t n = 0; n <= 70; n++)
        check_activations(n);
    check_activations(1024);
    check_activations(1025);
    check_activations(20000);
    for (ptrdiff_t half = 0; half <= 40; half++)
        check_rotary(half % 4, half % 3, half);
    check_rotary(7, 3, 32);
    check_special_values();
}

int main(void) { return check_every_isa("rows", check_isa); }
